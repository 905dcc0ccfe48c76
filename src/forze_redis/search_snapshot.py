"""Search-result snapshots on a server: one string per run, so that it lives and dies as one.

::

    {namespace}[/{tenant}]/{run}            the run: header, fingerprint, ids (packed_ids.py)
    {namespace}[/{tenant}]/{run}!writers    who is writing it
    {namespace}[/{tenant}]/{run}!{token}    what one of them has written so far

A run that fits one command is set by it. A larger one is written in parts under a key of
its writer's, and renamed to its place with the last part. What a writer leaves behind
expires; encoded parts hold no ``!``, so no run has the name of another's parts.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from datetime import timedelta
from secrets import token_hex
from typing import Any

from forze.application.contracts.search import (
    ResultId,
    SearchResultSnapshotSpec,
    SnapshotMeta,
    SnapshotState,
)
from forze.application.integrations.snapshotting import Run, Snapshotting
from forze.errors import BackendCorrupt, ConflictError, ForzeError
from forze_redis.client import RedisClient
from forze_redis.config import RedisSearchSnapshotConfig
from forze_redis.keys import ResourceKeys
from forze_redis.packed_ids import pack_run, unpack_header, unpack_page
from forze_redis.wire.replies import BACKEND
from forze_redis.wire.scripts import load_script, pack

PART_BYTES = 128 * 1024
"""What is written in one command: little enough for the connection everybody shares."""

STAGED_MS = 30_000
"""How long parts wait for the next one."""

LARGE_PAGE = 5_000
"""Pages above this are fetched over a connection of their own."""

PAGE = load_script("snapshot_page")
META = load_script("snapshot_meta")
STAGE = load_script("snapshot_stage")
PUBLISH = load_script("snapshot_publish")
DELETE = load_script("snapshot_delete")


class RedisSearchSnapshot(Snapshotting):
    """Snapshots on a server. Implements ``SearchResultSnapshotPort``."""

    def __init__(
        self,
        client: RedisClient,
        spec: SearchResultSnapshotSpec,
        config: RedisSearchSnapshotConfig,
    ) -> None:
        super().__init__(spec)
        self._client = client
        self._keys = ResourceKeys(client, config, f"search snapshot {spec.name!r}")
        self._tenant_aware = config.tenant_aware or callable(config.namespace)

    @property
    def tenant_aware(self) -> bool:
        return self._tenant_aware

    def scope(self) -> Hashable:
        return super().scope(), self._client.current_route()

    def _address(self, run: str) -> str:
        return self._keys.of(run)

    async def _put(self, address: str, run: Run, life_ms: int) -> None:
        packed = pack_run(run)
        if len(packed) <= PART_BYTES:
            await self._client.call("SET", address, packed, "PX", life_ms)
            return
        async with self._client.hold() as here:
            await self._write(here, address, packed, life_ms)

    async def _write(self, here: RedisClient, address: str, packed: bytes, life_ms: int) -> None:
        """Part by part, each when the one before is acknowledged: others use the connection."""
        token = token_hex(8)
        staged, writers = f"{address}!{token}", _writers(address)
        last = (len(packed) - 1) // PART_BYTES * PART_BYTES
        try:
            for at in range(0, last, PART_BYTES):
                part = packed[at : at + PART_BYTES]
                arguments = (token, at, STAGED_MS, part)
                if not await here.run(STAGE, (staged, writers), arguments):
                    raise self._overtaken()
            arguments = (token, last, life_ms, packed[last:])
            if not await here.run(PUBLISH, (staged, writers, address), arguments):
                raise self._overtaken()
        except BaseException:
            with suppress(ForzeError):  # else what was written expires
                here.post(pack("UNLINK", staged))
                here.post(pack("HDEL", writers, token))
            raise

    async def _page(
        self, address: str, offset: int, limit: int, expected: str | None
    ) -> list[ResultId] | None:
        arguments = (_bytes(expected), offset, limit)
        reply: Any
        if limit > LARGE_PAGE:
            reply = await self._client.call_large("EVALSHA", PAGE.sha1, 1, address, *arguments)
        else:
            reply = await self._client.run(PAGE, (address,), arguments)
        if reply is None:
            return None
        if not isinstance(reply, list):
            raise self._corrupt()
        return unpack_page(*reply)

    async def _meta(self, address: str, run_id: str, expected: str | None) -> SnapshotMeta:
        reply = await self._client.run(META, (address, _writers(address)))
        if not isinstance(reply, list):
            state = SnapshotState.INCOMPLETE if reply else SnapshotState.MISSING
            return SnapshotMeta(run_id=run_id, state=state)
        stored, name, left_ms = reply
        header = unpack_header(stored)
        if header is None:
            raise self._corrupt()
        fingerprint = name.decode(errors="surrogatepass")
        as_expected = expected in (None, fingerprint)
        return SnapshotMeta(
            run_id=run_id,
            state=SnapshotState.COMPLETE if as_expected else SnapshotState.MISMATCH,
            fingerprint=fingerprint,
            total=header.total,
            truncated=header.truncated,
            expires_in=timedelta(milliseconds=left_ms),
        )

    async def _delete(self, address: str) -> bool:
        async with self._client.hold() as here:
            existed, tokens = await here.run(DELETE, (address, _writers(address)))
            if tokens:
                await here.call("UNLINK", *(f"{address}!{each.decode()}" for each in tokens))
        return bool(existed)

    def _overtaken(self) -> ConflictError:
        return ConflictError(
            f"search snapshot {self._spec.name!r}: the run was deleted while it was being written, "
            "or the server lost what was written of it; put it again",
            resource=self._spec.name,
        )

    def _corrupt(self) -> BackendCorrupt:
        return BackendCorrupt(
            f"search snapshot {self._spec.name!r}: the key of the run holds something else; "
            "somebody else writes under this namespace: give it another one, or delete_run()",
            backend=BACKEND,
        )


def _writers(address: str) -> str:
    return f"{address}!writers"


def _bytes(fingerprint: str | None) -> bytes:
    return b"" if fingerprint is None else fingerprint.encode(errors="surrogatepass")
