"""What forze and forze 0.16.2 have in common as subjects: documents of the same names, read with
``ctx.document.query(spec).get(id)``, and a cold document whose loads PostgreSQL counts.

Needs an environment with either of them, and asyncpg.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import slow_source
from reading import Reader
from work import Read, at_once

_ASKED = """
    SELECT clock_timestamp(), count(*) FROM pg_stat_activity
    WHERE application_name = $1 AND query_start > $2
"""


class DocumentReader(Reader):
    """Subclasses wire a runtime whose specs are named as in :meth:`documents`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.ids = [UUID(each) for each in self.ids]
        self.who = f"bench-{os.getpid()}"
        """Our sessions' ``application_name``."""
        self._connection: asyncpg.Connection | None = None
        self._looked = datetime.now(UTC)
        """When PostgreSQL was last asked who has asked it anything."""

    async def watch(self) -> None:
        """A connection of our own to PostgreSQL, to make the slow source and to ask for counts."""
        self._connection = await asyncpg.connect(self.settings["postgres"])
        self.opened.push_async_callback(self._connection.close)
        await slow_source.make(self._connection)

    def through(self, ctx: Any, spec: Any) -> Read:
        """Reads as an application does, with the port resolved each time."""
        return lambda pk: ctx.document.query(spec).get(pk)

    def past(self, ctx: Any, spec: Any) -> Read:
        """Reads that go to PostgreSQL."""
        return lambda pk: ctx.document.query(spec).get(pk, skip_cache=True)

    async def missed(self, what: str) -> int:
        """As :meth:`Reader.missed`, by PostgreSQL's account, that needs nothing of the library:
        how many connections have asked it anything. Reads past the cache are meant to."""
        if what == "source":
            return 0
        assert self._connection is not None
        now, found = await self._connection.fetchrow(_ASKED, self.who, self._looked)
        self._looked = now
        return int(found)

    async def do_cold(
        self, key: int, callers: int, source_ms: float, what: str = "guarded"
    ) -> dict[str, float]:
        """As :meth:`Reader.do_cold`; ``key`` is the place of the document."""
        read, pk = self._of(self.cold, what), self.ids[key]
        assert self._connection is not None
        await slow_source.prepare(self._connection, source_ms)
        before = await slow_source.loads(self._connection, self.who, pk)
        took = await at_once(read, pk, callers)
        after = await slow_source.loads(self._connection, self.who, pk)
        return {"loads": after - before, "ms": took}
