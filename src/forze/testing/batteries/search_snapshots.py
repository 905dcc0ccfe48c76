"""What every ``SearchResultSnapshotPort`` does, and what its signed cursors refuse."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from forze.application.contracts.search import (
    ResultId,
    SearchResultSnapshotPort,
    SearchResultSnapshotSpec,
    SnapshotState,
)
from forze.application.execution import ExecutionContext
from forze.application.integrations.snapshot_cursor import (
    SnapshotCursor,
    read_cursor,
    write_cursor,
)
from forze.errors import (
    BackendError,
    ConfigurationError,
    TenantRequired,
    ValidationError,
)
from forze.testing.batteries.legs import PATIENCE, Outage
from forze.testing.batteries.refusals import refused

SECRET = "not a secret, it is in the tests"

RESULTS = SearchResultSnapshotSpec(
    name="results", ttl=timedelta(minutes=10), max_ids=20_000, cursor_secret=SECRET
)
SHORT_RESULTS = SearchResultSnapshotSpec(name="short_results", max_ids=3)
OTHER_RESULTS = SearchResultSnapshotSpec(name="other_results")
TENANT_RESULTS = SearchResultSnapshotSpec(name="owned_results", cursor_secret=SECRET)

NAMES = (
    "a", "A", "a:b", "a/b", "a%2Fb", "{a}", "}{", " ", "*", "é", "ключ/世界", "nul\0", "..", "/",
    "!", "a!b", "a!writers", "!writers", "k" * 600,
)  # fmt: skip


class Colour(StrEnum):
    """Text by another name."""

    RED = "red"


def _uuids(number: int) -> list[ResultId]:
    return [UUID(int=(each * 7919) % 2**120) for each in range(number)]


LISTS: dict[str, list[Any]] = {
    "none": [],
    "UUIDs": _uuids(25),
    "texts of UUIDs": [str(each) for each in _uuids(25)],
    "integers": [0, -1, 1, 2**63 - 1, -(2**63), 5, 5, 2**53 + 1],
    "large integers": [1, 2**63, -(2**200)],
    "texts": ["a", "", "b" * 5_000, "é\n\0世界", "\udc80", "7", "-1"],
    "almost UUIDs": [str(UUID(int=1)).upper(), f"{{{UUID(int=2)}}}", UUID(int=3).hex, str(uuid4())],
    "all kinds": [UUID(int=5), str(UUID(int=5)), 5, "5", "", 2**64, UUID(int=0)],
    "the same twice": ["a", "b", "a", "a"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotLeg:
    """A snapshot backend: two processes over one server.

    Both contexts answer ``RESULTS``, ``SHORT_RESULTS``, ``OTHER_RESULTS`` and
    ``TENANT_RESULTS`` (tenant-aware). ``pass_time`` makes the server's entries older by that
    much; ``trips`` counts the round trips of ``ctx`` so far, and ``left`` answers what keys
    the server holds (None: there are none).
    """

    ctx: ExecutionContext
    other: ExecutionContext
    pass_time: Callable[[timedelta], Awaitable[None]]
    trips: Callable[[], int] | None = None
    left: Callable[[], list[str]] | None = None


def _port(leg: SnapshotLeg) -> SearchResultSnapshotPort:
    return leg.ctx.search_snapshot(RESULTS)


class SnapshotBehaviour:
    """What the port promises where nothing goes wrong."""

    async def test_what_went_in_comes_out(self, snapshot_leg: SnapshotLeg) -> None:
        port, other = _port(snapshot_leg), snapshot_leg.other.search_snapshot(RESULTS)
        for what, ids in LISTS.items():
            meta = await port.put_run(run_id=what, fingerprint="f", ordered_ids=ids)
            assert (meta.run_id, meta.total, meta.truncated) == (what, len(ids), False)
            for reader in (port, other):
                found = await reader.get_id_range(what, 0, 100, "f")
                assert found == ids, what
                assert list(map(type, found)) == list(map(type, ids)), what
        assert await port.get_id_range("UUIDs", 0, 100) == LISTS["UUIDs"], "runs are apart"

    async def test_pages(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        for what, ids in LISTS.items():
            await port.put_run(what, "f", ids)
            for limit in (1, 2, 3, 7, 100):
                pages: list[ResultId] = []
                for offset in range(0, len(ids) + limit, limit):
                    page = await port.get_id_range(what, offset, limit)
                    assert page == ids[offset : offset + limit], (what, offset, limit)
                    pages += page
                assert pages == ids
            for beyond in (len(ids), len(ids) + 1, 10**6, 2**70):
                assert await port.get_id_range(what, beyond, 5) == []
            assert await port.get_id_range(what, 0, 2**70) == ids
            assert await port.get_id_range(what, 0, 0) == []

    async def test_a_large_run(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        for ids in (_uuids(20_000), [f"id {each}" for each in range(20_000)], list(range(20_000))):
            meta = await port.put_run("large", "f", ids)
            assert (meta.total, meta.truncated) == (20_000, False)
            assert await port.get_id_range("large", 0, 20_000) == ids
            assert await port.get_id_range("large", 19_990, 20) == ids[19_990:]
            assert await port.get_id_range("large", 8_190, 5) == ids[8_190:8_195]

    async def test_meta_tells_what_it_is(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        await port.put_run("r", "f é", ["a", "b"], ttl=timedelta(minutes=1))
        for meta in (await port.get_meta("r"), await port.get_meta("r", "f é")):
            assert meta
            assert meta.complete
            assert (meta.run_id, meta.state, meta.fingerprint) == ("r", "complete", "f é")
            assert (meta.total, meta.truncated) == (2, False)
            assert meta.expires_in is not None
            assert timedelta(seconds=50) < meta.expires_in <= timedelta(minutes=1)
        meta = await port.get_meta("r", "g")
        assert not meta
        assert (meta.state, meta.fingerprint, meta.total) == (SnapshotState.MISMATCH, "f é", 2)
        meta = await port.get_meta("another")
        assert not meta
        assert (meta.state, meta.fingerprint, meta.total) == (SnapshotState.MISSING, None, 0)

    async def test_another_fingerprint_and_no_run_are_none(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        await port.put_run("r", "f", ["a"])
        assert await port.get_id_range("r", 0, 1, "f") == ["a"]
        for other in ("g", "F", "f ", "ff"):
            assert await port.get_id_range("r", 0, 1, other) is None
        assert await port.get_id_range("R", 0, 1) is None
        await port.put_run("none", "f", [])
        assert await port.get_id_range("none", 0, 1, "f") == [], "which is not None"

    async def test_over_the_cap_the_first_are_kept(self, snapshot_leg: SnapshotLeg) -> None:
        port = snapshot_leg.ctx.search_snapshot(SHORT_RESULTS)
        for ids, cut in ((["a", "b", "c"], False), (["a", "b", "c", "d"], True)):
            meta = await port.put_run("r", "f", iter(ids))
            assert (meta.total, meta.truncated) == (3, cut)
            meta = await port.get_meta("r")
            assert (meta.total, meta.truncated) == (3, cut)
            assert await port.get_id_range("r", 0, 10) == ["a", "b", "c"]

    async def test_a_run_takes_the_place_of_the_one_before(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        for number in (5, 20_000, 3):
            await port.put_run("r", f"f{number}", _uuids(number))
            assert (await port.get_meta("r")).total == number
            assert await port.get_id_range("r", 0, 10, f"f{number}") == _uuids(number)[:10]

    async def test_it_expires_as_one(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        for number, life in ((5, None), (20_000, None), (5, timedelta(minutes=3))):
            await port.put_run("r", "f", _uuids(number), life)
            await snapshot_leg.pass_time((life or RESULTS.ttl) - timedelta(seconds=5))
            assert await port.get_id_range("r", 0, 1) == _uuids(1)
            assert (await port.get_meta("r")).complete, "reading prolongs nothing"
            await snapshot_leg.pass_time(timedelta(seconds=6))
            assert await port.get_id_range("r", 0, 1) is None
            assert (await port.get_meta("r")).state is SnapshotState.MISSING
            if snapshot_leg.left is not None:
                assert snapshot_leg.left() == []

    async def test_a_deleted_run_leaves_nothing(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        for number in (5, 20_000):
            await port.put_run("r", "f", _uuids(number))
            assert await port.delete_run("r") is True
            assert await port.delete_run("r") is False
            assert await port.get_id_range("r", 0, 1) is None
            assert (await port.get_meta("r")).state is SnapshotState.MISSING
            if snapshot_leg.left is not None:
                assert snapshot_leg.left() == []

    async def test_every_name_is_its_own(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        for place, name in enumerate(NAMES):
            await port.put_run(name, name, [place])
        for place, name in enumerate(NAMES):
            assert await port.get_id_range(name, 0, 5, name) == [place], name
        other = snapshot_leg.ctx.search_snapshot(OTHER_RESULTS)
        assert await other.get_id_range("a", 0, 5) is None
        for place, name in enumerate(NAMES):
            assert await port.delete_run(name) is True
            rest = [await port.get_id_range(each, 0, 5) for each in NAMES[place + 1 :]]
            assert rest == [[each] for each in range(place + 1, len(NAMES))]

    async def test_tenants_are_apart(self, snapshot_leg: SnapshotLeg) -> None:
        ctx, port = snapshot_leg.ctx, snapshot_leg.ctx.search_snapshot(TENANT_RESULTS)
        assert port.tenant_aware
        assert not _port(snapshot_leg).tenant_aware
        with ctx.bind_tenant("a"):
            await port.put_run("r", "f", ["of a"])
        with ctx.bind_tenant("b"):
            assert await port.get_id_range("r", 0, 1) is None
            assert await port.delete_run("r") is False
            await port.put_run("r", "f", ["of b"])
        with ctx.bind_tenant("a"):
            assert await port.get_id_range("r", 0, 1) == ["of a"]
        for call in (
            lambda: port.get_id_range("r", 0, 1),
            lambda: port.get_meta("r"),
            lambda: port.put_run("r", "f", []),
            lambda: port.delete_run("r"),
        ):
            with refused(TenantRequired, "owned_results", "bind_tenant"):
                await call()

    async def test_a_page_is_one_trip(self, snapshot_leg: SnapshotLeg) -> None:
        if snapshot_leg.trips is None:
            return
        port = _port(snapshot_leg)
        await port.put_run("large", "f", _uuids(20_000))
        before = snapshot_leg.trips()
        await port.put_run("r", "f", _uuids(5_000))
        assert snapshot_leg.trips() - before == 1
        await port.get_id_range("large", 10_000, 50, "f")
        assert snapshot_leg.trips() - before == 2
        await port.get_id_range("large", 0, 20_000)
        assert snapshot_leg.trips() - before == 3
        await port.get_meta("large")
        assert snapshot_leg.trips() - before == 4
        await port.delete_run("large")
        assert snapshot_leg.trips() - before == 5


class SnapshotFailures:
    """What the port promises where something goes wrong."""

    async def test_readers_see_all_or_nothing(self, snapshot_leg: SnapshotLeg) -> None:
        """Two writers of one run, of different lengths, while pages and meta are read."""
        port, other = _port(snapshot_leg), snapshot_leg.other.search_snapshot(RESULTS)
        runs = {"short": list(range(10)), "long": list(range(20_000))}
        done = asyncio.Event()

        async def write(writer: SearchResultSnapshotPort, name: str) -> None:
            for _ in range(4):
                await writer.put_run("r", name, runs[name])

        async def read(reader: SearchResultSnapshotPort) -> int:
            pages = 0
            while not done.is_set():
                for name, ids in runs.items():
                    tail = await reader.get_id_range("r", len(ids) - 5, 10, name)
                    assert tail is None or tail == ids[-5:]
                    pages += tail is not None
                meta = await reader.get_meta("r")
                assert meta.state is not SnapshotState.INCOMPLETE or not pages
                assert not meta or meta.total == len(runs[str(meta.fingerprint)])
            return pages

        readers = [asyncio.create_task(read(each)) for each in (port, other)]
        await asyncio.gather(write(port, "short"), write(other, "long"), write(port, "long"))
        done.set()
        assert all(await asyncio.gather(*readers))
        assert (await port.get_meta("r")).complete
        if snapshot_leg.left is not None:
            assert len(snapshot_leg.left()) == 1, "no writer leaves anything"

    async def test_arguments_that_make_no_sense(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        await port.put_run("r", "f", ["a"])
        nothing: Any
        for nothing in ("", 5, None, b"r"):
            with refused(ValidationError, "run_id"):
                await port.put_run(nothing, "f", [])
            with refused(ValidationError, "run_id"):
                await port.get_id_range(nothing, 0, 1)
            with refused(ValidationError, "run_id"):
                await port.get_meta(nothing)
            with refused(ValidationError, "run_id"):
                await port.delete_run(nothing)
            with refused(ValidationError, "'results'", "fingerprint"):
                await port.put_run("r", nothing, [])
        with refused(ValidationError, "fingerprint", "4096"):
            await port.put_run("r", "f" * 4097, [])
        for wrong in (-1, 1.0, True, "1", None):
            with refused(ValidationError, "offset"):
                await port.get_id_range("r", wrong, 1)  # type: ignore[arg-type]
        for wrong in (-1, 1.0, True, "1", None):
            with refused(ValidationError, "limit"):
                await port.get_id_range("r", 0, wrong)  # type: ignore[arg-type]
        ttl: Any
        for ttl in (timedelta(0), timedelta(microseconds=1), 5):
            with refused(ValidationError, "ttl"):
                await port.put_run("r", "f", [], ttl)
        assert await port.get_id_range("r", 0, 9, "f") == ["a"], "as it was"

    async def test_ids_are_uuids_texts_or_integers(self, snapshot_leg: SnapshotLeg) -> None:
        port = _port(snapshot_leg)
        wrong: Any
        for wrong in (1.0, True, None, b"a", ("a",), object()):
            with refused(ValidationError, "'results'", "ordered_ids", "UUIDs, texts or integers"):
                await port.put_run("r", "f", ["a", wrong])
        for wrong in ("abc", b"abc", 5, None):
            with refused(ValidationError, "ordered_ids", "list"):
                await port.put_run("r", "f", wrong)
        assert await port.get_id_range("r", 0, 1) is None
        await port.put_run("r", "f", [Colour.RED])
        (found,) = await port.get_id_range("r", 0, 1) or []
        assert (found, type(found)) == ("red", str)

    async def test_a_list_that_fails_halfway_leaves_the_run(
        self, snapshot_leg: SnapshotLeg
    ) -> None:
        port = _port(snapshot_leg)
        await port.put_run("r", "f", ["a"])

        def failing() -> Any:
            yield from range(10_000)
            raise ZeroDivisionError

        with refused(ZeroDivisionError):
            await port.put_run("r", "g", failing())
        assert await port.get_id_range("r", 0, 9) == ["a"]

    async def test_a_spec_refuses_nonsense(self, snapshot_leg: SnapshotLeg) -> None:
        nonsense: tuple[dict[str, Any], ...] = (
            {"name": ""},
            {"name": "a", "ttl": timedelta(0)},
            {"name": "a", "ttl": 5},
            {"name": "a", "max_ids": 0},
            {"name": "a", "max_ids": True},
            {"name": "a", "max_ids": 10**9},
            {"name": "a", "cursor_secret": "short"},
            {"name": "a", "cursor_secret": 5},
        )
        for wrong in nonsense:
            with refused(ConfigurationError, "SearchResultSnapshotSpec", list(wrong)[-1]):
                SearchResultSnapshotSpec(**wrong)
        assert SECRET not in repr(RESULTS)


class SnapshotOutage:
    """What the port promises while its server is away."""

    async def test_it_is_an_error_and_no_missing_run(
        self, snapshot_leg: SnapshotLeg, outage: Outage
    ) -> None:
        port = _port(snapshot_leg)
        await port.put_run("r", "f", ["a"])
        await outage.break_backend()
        calls = (
            port.get_id_range("r", 0, 1),
            port.get_id_range("r", 0, 20_000),
            port.get_meta("r"),
            port.put_run("r", "f", ["b"]),
            port.put_run("r", "f", _uuids(20_000)),
            port.delete_run("r"),
        )
        async with asyncio.timeout(PATIENCE.total_seconds()):
            answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            assert isinstance(answer, BackendError), answer
            assert "127.0.0.1" in str(answer)
        await outage.restore()
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while True:
                with contextlib.suppress(BackendError):
                    await port.put_run("r", "f", ["c"])
                    break
                await asyncio.sleep(0.02)
        assert await port.get_id_range("r", 0, 9) == ["c"]


class CursorBehaviour:
    """Cursors: good for who was given one, and nobody else."""

    async def test_it_comes_back_as_it_was(self, snapshot_leg: SnapshotLeg) -> None:
        ctx = snapshot_leg.ctx
        for cursor in (SnapshotCursor("r", "f", 0), SnapshotCursor("ключ\n\0", "é" * 99, 2**40)):
            assert read_cursor(RESULTS, write_cursor(RESULTS, cursor)) == cursor
            with ctx.bind_tenant("a"), ctx.bind_principal("me"):
                text = write_cursor(RESULTS, cursor)
                assert read_cursor(RESULTS, text) == cursor
                assert text.replace("-", "").replace("_", "").isalnum()
        same = SearchResultSnapshotSpec(name="results", cursor_secret=SECRET.encode())
        assert read_cursor(same, write_cursor(RESULTS, cursor)) == cursor, "in another process"

    async def test_it_is_of_one_tenant_and_principal(self, snapshot_leg: SnapshotLeg) -> None:
        ctx, cursor = snapshot_leg.ctx, SnapshotCursor("r", "f", 5)
        with ctx.bind_tenant("a"), ctx.bind_principal("b"):
            text = write_cursor(RESULTS, cursor)
        with refused(ValidationError, "not a cursor of yours"):
            read_cursor(RESULTS, text)
        for tenant, principal in (("a", "c"), ("b", "b"), ("b", "a"), ("ab", "b"), ("a", "None")):
            with (
                ctx.bind_tenant(tenant),
                ctx.bind_principal(principal),
                refused(ValidationError, "not a cursor of yours"),
            ):
                read_cursor(RESULTS, text)
        with ctx.bind_tenant("a"), refused(ValidationError):
            read_cursor(RESULTS, text)
        nobodys = write_cursor(RESULTS, cursor)
        with ctx.bind_tenant("None"), ctx.bind_principal("None"), refused(ValidationError):
            read_cursor(RESULTS, nobodys)

    async def test_changed_it_is_refused(self, snapshot_leg: SnapshotLeg) -> None:
        text = write_cursor(RESULTS, SnapshotCursor("r", "f", 5))
        changed = {text[:at] for at in range(len(text))} | {text + "A", text + "=", text + " "}
        for at in range(len(text)):
            for other in "Aa0_-":
                changed.add(text[:at] + other + text[at + 1 :])
        for each in changed - {text}:
            with refused(ValidationError, "begin without one"):
                read_cursor(RESULTS, each)
        wrong: Any
        for wrong in ("é", "\udc80", 5, None, text.encode(), "e30", "W10", "A" * 10_000):
            with refused(ValidationError, "not a cursor of yours"):
                read_cursor(RESULTS, wrong)

    async def test_another_secret_or_spec_does_not_read_it(self, snapshot_leg: SnapshotLeg) -> None:
        text = write_cursor(RESULTS, SnapshotCursor("r", "f", 5))
        other = SearchResultSnapshotSpec(name="results", cursor_secret=SECRET + "!")
        for spec in (other, TENANT_RESULTS):
            with refused(ValidationError, "not a cursor of yours"):
                read_cursor(spec, text)
        with refused(ConfigurationError, "'other_results'", "cursor_secret", "token_hex"):
            write_cursor(OTHER_RESULTS, SnapshotCursor("r", "f", 5))
        with refused(ConfigurationError, "cursor_secret"):
            read_cursor(OTHER_RESULTS, text)
