"""One making of a value at a time over the fleet: the lease stands where the value will.

Whoever finds nothing writes ``!token`` under the entry's own key, for a term, if nothing is
there. Others who find it wait. What was made replaces the lease, if it is still there: any
write or deletion of the key in the meantime, by whomever, has removed it, and wins. A holder
extends its lease while it works; one that has crashed holds others up for a term at most.

A server that refuses scripts can do none of this safely: with the first refusal the client goes
on without leases, and what stands of this one is deleted.

After Nishtala et al., Scaling Memcache at Facebook (NSDI 2013), section 3.2.1.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Final

from fastapi_rc.calls import FAILED, Allowance, Calls
from fastapi_rc.values import is_lease

_SHORTEST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.1


class Lease:
    """A lease of ``key`` that lasts ``term_ms``, to be had by :meth:`claim`."""

    def __init__(self, calls: Calls, client: Any, key: str, term_ms: int, seconds: float) -> None:
        self._calls = calls
        self._client = client
        self._key = key
        self._term_ms = term_ms
        self._seconds = seconds
        self._token = f"!{secrets.token_hex(16)}"
        self._withdrawn = False

    async def claim(self, allowance: Allowance) -> Any:
        """None when the lease is ours; what is stored there; ``FAILED`` without an answer.

        Waits while somebody else has it, and scripts are run. One round trip, and one for each
        look meanwhile.
        """
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            found = await self._calls.ask(
                allowance, self._client.set, self._key, self._token,
                nx=True, get=True, px=self._term_ms,
            )  # fmt: skip
            if found is FAILED or found is None or not is_lease(found):
                return found
            if found in (self._token, self._token.encode()):  # a first try did arrive
                return None
            if not self._calls.runs_scripts:
                return found
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            allowance.left = self._seconds

    async def store(self, allowance: Allowance, body: str | bytes, ttl_ms: int | None) -> bool:
        """Whether the value now stands in the place of the lease."""
        ttl = "" if ttl_ms is None else ttl_ms
        stored = await self._run(allowance, "lease_store", body, ttl)
        if self._withdrawn:
            life = {} if ttl_ms is None else {"px": ttl_ms}
            stored = await self._calls.ask(allowance, self._client.set, self._key, body, **life)
            return stored is not FAILED and bool(stored)
        return bool(stored == 1)

    async def release(self) -> None:
        """Let somebody else make the value, if the lease is still ours."""
        await self._run(Allowance(self._seconds), "lease_release")

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Within the block the lease does not lapse, while the server answers."""
        keeper = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.wait((keeper,))

    async def _keep(self) -> None:
        while self._calls.runs_scripts:
            await asyncio.sleep(self._term_ms / 3000)
            if await self._run(Allowance(self._seconds), "lease_extend", self._term_ms) == 0:
                return

    async def _run(self, allowance: Allowance, script: str, *args: Any) -> Any:
        reply = FAILED
        if self._calls.runs_scripts:
            reply = await self._calls.ask(
                allowance, self._calls.run, self._client, _source(script),
                self._key, self._token, *args,
            )  # fmt: skip
        if not self._calls.runs_scripts:
            await self._withdraw(allowance)
        return reply

    async def _withdraw(self, allowance: Allowance) -> None:
        """Delete the lease, if it is ours: without scripts in two steps."""
        found = await self._calls.ask(allowance, self._client.get, self._key)
        if found in (self._token, self._token.encode()):
            self._withdrawn = True
            await self._calls.ask(allowance, self._client.delete, self._key)


@cache
def _source(script: str) -> str:
    return (files("fastapi_rc") / "lua" / f"{script}.lua").read_text("utf-8")
