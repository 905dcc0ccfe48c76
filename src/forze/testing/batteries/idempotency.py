"""What every ``IdempotencyPort`` does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from forze.application.contracts.idempotency import (
    Commit,
    IdempotencyPort,
    IdempotencySnapshot,
    IdempotencySpec,
)
from forze.application.execution import ExecutionContext
from forze.errors import (
    IdempotencyInProgress,
    IdempotencyMismatch,
    TenantRequired,
    ValidationError,
)
from forze.testing.batteries.legs import PATIENCE, apart, waits
from forze.testing.batteries.refusals import refused

LEASE = timedelta(seconds=30)
LAPSE = LEASE + timedelta(seconds=1)
TTL = timedelta(hours=1)

REQUESTS = IdempotencySpec(name="requests", ttl=TTL, lease=LEASE, store=(404,), headers=("x-kept",))
PATIENT = IdempotencySpec(name="patient", ttl=TTL, lease=LEASE, wait=PATIENCE)
HURRIED = IdempotencySpec(name="hurried", ttl=TTL, lease=timedelta(milliseconds=300))
BRIEF = IdempotencySpec(name="brief", lease=LEASE, wait=timedelta(milliseconds=40))
FORGETFUL = IdempotencySpec(
    name="forgetful", ttl=TTL, lease=timedelta(milliseconds=90), max_hold=timedelta(milliseconds=1)
)
OPEN = IdempotencySpec(name="open", ttl=TTL, lease=LEASE, fail="open")
OWNED = IdempotencySpec(name="owned", ttl=TTL, lease=LEASE)
SPECS = (REQUESTS, PATIENT, HURRIED, BRIEF, FORGETFUL, OPEN, OWNED)

ANSWER = IdempotencySnapshot(201, "application/json", b'{"id": 7}')
OTHER_ANSWER = IdempotencySnapshot(200, "text/plain", b"other")

KEYS = (
    "a", "A", "a/b", "a%2Fb", "a%b", "{a}", "a b", " ", "a:b", "a:changed", "é", "ключ", "..", "/",
    "\n", "a\0b", "k" * 128, "k" * 129, "k" * 255, "0" * 64, "f" * 64, "F" * 64,
    "ab6c5ce7e9d1d1b8bd6e0b3d8f1d5f9b6c2c1c8a2e1f0a9d8c7b6a5f4e3d2c1b",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyLeg:
    """An idempotency backend: two processes over one store.

    Both contexts answer :data:`SPECS`, ``OWNED`` tenant-aware, and the transaction route
    ``items``. ``pass_time`` makes the store's records older by that much. ``transactional``:
    answers are written in a transaction of that route.
    """

    ctx: ExecutionContext
    other: ExecutionContext
    pass_time: Callable[[timedelta], Awaitable[None]]
    transactional: bool = False

    @property
    def port(self) -> IdempotencyPort:
        """Of the first process."""
        return self.ctx.idempotency(REQUESTS)

    @property
    def elsewhere(self) -> IdempotencyPort:
        """Of the second process."""
        return self.other.idempotency(REQUESTS)


async def settled(check: Callable[[], Awaitable[bool]]) -> None:
    """Return once ``check`` holds; what runs apart has had its time by then."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        while not await check():  # noqa: ASYNC110 - a store notifies nobody of its records
            await asyncio.sleep(0.01)


async def is_free(port: IdempotencyPort, key: str, payload: str = "h") -> bool:
    """Whether ``begin`` would run; leaves the key as it was, but for its generation."""
    try:
        answer = await port.begin("op", key, payload)
    except IdempotencyInProgress:
        return False
    assert answer is None
    assert await port.fail("op", key, payload)
    return True


async def begun(port: IdempotencyPort, key: str) -> IdempotencySnapshot | None:
    """``begin``, as a coroutine that another task can run."""
    return await port.begin("op", key, "h")


class IdempotencyBehaviour:
    """What the port promises where nothing goes wrong."""

    async def test_it_runs_once_and_is_answered_again(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        assert await port.begin("op", "k", "h") is None
        for each in (port, elsewhere):
            with refused(IdempotencyInProgress, "op", "'k'") as refusal:
                await each.begin("op", "k", "h")
            assert timedelta(0) < refusal.error.retry_after <= timedelta(seconds=1)
        assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED
        assert await port.begin("op", "k", "h") == ANSWER
        assert await elsewhere.begin("op", "k", "h") == ANSWER
        assert (port.stats().runs, port.stats().refusals, port.stats().replays) == (1, 1, 1)

    async def test_answers_come_back_as_they_were(self, idempotency_leg: IdempotencyLeg) -> None:
        port = idempotency_leg.port
        headers = (("X-Kept", "1"), ("x-kept", "Grüße"))
        for number, answer in enumerate(
            (
                IdempotencySnapshot(204, None, b""),
                IdempotencySnapshot(200, "", b"\x00\xff\r\n"),
                IdempotencySnapshot(399, "text/plain; charset=utf-8", b"x" * 600_000, headers),
            )
        ):
            key = f"k{number}"
            assert await port.begin("op", key, "h") is None
            assert await port.commit("op", key, "h", answer) is Commit.STORED
            assert await idempotency_leg.elsewhere.begin("op", key, "h") == answer

    async def test_only_headers_of_the_list_are_kept(self, idempotency_leg: IdempotencyLeg) -> None:
        port = idempotency_leg.port
        given = {"Set-Cookie": "s", "Authorization": "a", "Date": "now", "X-KEPT": "1"}
        await port.begin("op", "k", "h")
        await port.commit("op", "k", "h", IdempotencySnapshot(200, None, b"", given))  # type: ignore[arg-type] # a mapping will do
        answer = await port.begin("op", "k", "h")
        assert answer is not None
        assert answer.headers == (("X-KEPT", "1"),)

    async def test_another_payload_is_a_mismatch(self, idempotency_leg: IdempotencyLeg) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        await port.begin("op", "k", "h")
        with refused(IdempotencyMismatch, "op", "'k'"):
            await elsewhere.begin("op", "k", "other")
        await idempotency_leg.pass_time(LAPSE)
        with refused(IdempotencyMismatch):
            await elsewhere.begin("op", "k", "other")
        assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED
        with refused(IdempotencyMismatch):
            await elsewhere.begin("op", "k", "other")
        assert await elsewhere.begin("op", "k", "h") == ANSWER

    async def test_a_lapsed_claim_is_taken_over(self, idempotency_leg: IdempotencyLeg) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        await port.begin("op", "k", "h")
        await idempotency_leg.pass_time(LAPSE)
        async with elsewhere.claim("op", "k", "h") as claim:
            assert (claim.generation, claim.takeover, claim.replay) == (2, True, None)
            assert await port.commit("op", "k", "h", OTHER_ANSWER) is Commit.FENCED_OUT
            assert port.stats().fenced_out == 1
            with refused(IdempotencyInProgress):
                await port.begin("op", "k", "h")
            assert await claim.complete(ANSWER) is Commit.STORED
        assert await port.begin("op", "k", "h") == ANSWER

    async def test_a_lapsed_claim_is_still_good_for_its_answer(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        await idempotency_leg.port.begin("op", "k", "h")
        await idempotency_leg.pass_time(LAPSE)
        assert await idempotency_leg.port.commit("op", "k", "h", ANSWER) is Commit.STORED
        assert await idempotency_leg.elsewhere.begin("op", "k", "h") == ANSWER

    async def test_a_stale_owner_frees_nothing(self, idempotency_leg: IdempotencyLeg) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        await port.begin("op", "k", "h")
        await idempotency_leg.pass_time(LAPSE)
        assert await elsewhere.begin("op", "k", "h") is None
        assert await port.fail("op", "k", "h") is False
        with refused(IdempotencyInProgress):
            await port.begin("op", "k", "h")
        assert await elsewhere.commit("op", "k", "h", ANSWER) is Commit.STORED

    async def test_a_refusal_prolongs_nothing(self, idempotency_leg: IdempotencyLeg) -> None:
        await idempotency_leg.port.begin("op", "k", "h")
        await idempotency_leg.pass_time(LEASE * 2 / 3)
        with refused(IdempotencyInProgress):
            await idempotency_leg.elsewhere.begin("op", "k", "h")
        await idempotency_leg.pass_time(LEASE * 2 / 3)
        assert await idempotency_leg.elsewhere.begin("op", "k", "h") is None

    async def test_a_lease_is_kept_up_while_its_owner_works(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere = (
            each.idempotency(HURRIED) for each in (idempotency_leg.ctx, idempotency_leg.other)
        )
        async with port.claim("op", "k", "h") as claim:
            for _ in range(10):
                await asyncio.sleep(0.05)
                with refused(IdempotencyInProgress):
                    await elsewhere.begin("op", "k", "h")
            await idempotency_leg.pass_time(HURRIED.lease)
            assert await elsewhere.begin("op", "k", "h") is None
            await settled(lambda: _value(claim.lost))
            assert await claim.complete(ANSWER) is Commit.FENCED_OUT

    async def test_a_forgotten_claim_is_not_kept_up_for_ever(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere = (
            each.idempotency(FORGETFUL) for each in (idempotency_leg.ctx, idempotency_leg.other)
        )
        await port.begin("op", "k", "h")
        async with port.claim("op", "block", "h") as claim:
            for _ in range(4):
                await asyncio.sleep(0.04)
                await idempotency_leg.pass_time(FORGETFUL.lease / 3)
            assert await elsewhere.begin("op", "k", "h") is None
            assert await claim.complete(ANSWER) is Commit.STORED, "nobody took it over"

    async def test_a_failure_frees_the_key(self, idempotency_leg: IdempotencyLeg) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        await port.begin("op", "k", "h")
        assert await port.fail("op", "k", "h") is True
        assert await port.fail("op", "k", "h") is False
        async with elsewhere.claim("op", "k", "corrected") as claim:
            assert (claim.generation, claim.takeover) == (2, False)
            await claim.complete(ANSWER)
        assert await port.begin("op", "k", "corrected") == ANSWER

    async def test_an_answer_that_is_not_kept_frees_the_key(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port = idempotency_leg.port
        for status in (400, 409, 422, 500, 503):
            await port.begin("op", "k", "h")
            answer = IdempotencySnapshot(status, None, b"")
            assert await port.commit("op", "k", "h", answer) is Commit.RELEASED
        assert await port.begin("op", "k", "h") is None
        kept = IdempotencySnapshot(404, None, b"")
        assert await port.commit("op", "k", "h", kept) is Commit.STORED
        assert await port.begin("op", "k", "h") == kept

    async def test_answers_are_kept_for_the_retention(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        await port.begin("op", "k", "h")
        await port.commit("op", "k", "h", ANSWER)
        await idempotency_leg.pass_time(TTL - timedelta(minutes=1))
        assert await elsewhere.begin("op", "k", "h") == ANSWER
        await idempotency_leg.pass_time(timedelta(minutes=2))
        assert await elsewhere.begin("op", "k", "another payload") is None

    async def test_keys_operations_and_principals_are_apart(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, ctx = idempotency_leg.port, idempotency_leg.ctx
        assert len(set(KEYS)) == len(KEYS)
        for key in KEYS:
            assert await port.begin("op", key, "h") is None
        for key in KEYS:
            with refused(IdempotencyInProgress):
                await port.begin("op", key, "h")
        assert await port.begin("op2", "a", "h") is None
        for principal in ("op", "alice", "al/ice"):
            with ctx.bind_principal(principal):
                assert await port.begin("op", "a", "h") is None
        with ctx.bind_principal("x"):
            await port.begin("op", "b", "h")
            await port.commit("op", "b", "h", ANSWER)
        with ctx.bind_principal("y"):
            assert await port.begin("op", "b", "h") is None

    async def test_tenants_are_apart(self, idempotency_leg: IdempotencyLeg) -> None:
        ctx = idempotency_leg.ctx
        port = ctx.idempotency(OWNED)
        with refused(TenantRequired):
            await port.begin("op", "k", "h")
        with ctx.bind_tenant("one"):
            assert await port.begin("op", "k", "h") is None
            await port.commit("op", "k", "h", ANSWER)
        with ctx.bind_tenant("two"):
            assert await port.begin("op", "k", "h") is None
            await port.commit("op", "k", "h", OTHER_ANSWER)
        with ctx.bind_tenant("one"):
            assert await port.begin("op", "k", "h") == ANSWER

    async def test_nonsense_is_refused(self, idempotency_leg: IdempotencyLeg) -> None:
        port = idempotency_leg.port
        calls: tuple[tuple[Any, Any, Any], ...] = (
            ("op", "", "h"), ("op", "k" * 256, "h"), ("op", "é" * 128, "h"), ("op", None, "h"),
            ("op", b"k", "h"), ("", "k", "h"), ("o" * 256, "k", "h"), ("op", "k", ""),
            ("op", "k", None),
        )  # fmt: skip
        for call in calls:
            with refused(ValidationError):
                await port.begin(*call)
        await port.begin("op", "k", "h")
        with refused(ValidationError):
            await port.commit("op", "k", "h", b"body")  # type: ignore[arg-type] # what is tested
        assert await port.fail("op", "k", "h")

    async def test_a_duplicate_waits_for_the_answer(self, idempotency_leg: IdempotencyLeg) -> None:
        port, elsewhere = (
            each.idempotency(PATIENT) for each in (idempotency_leg.ctx, idempotency_leg.other)
        )
        await port.begin("op", "k", "h")
        duplicates = [apart(begun(each, "k")) for each in (port, elsewhere, elsewhere)]
        for each in duplicates:
            assert await waits(each)
        await port.commit("op", "k", "h", ANSWER)
        async with asyncio.timeout(PATIENCE.total_seconds() / 2):
            assert await asyncio.gather(*duplicates) == [ANSWER] * 3

    async def test_a_duplicate_that_waits_runs_when_the_key_is_freed(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere = (
            each.idempotency(PATIENT) for each in (idempotency_leg.ctx, idempotency_leg.other)
        )
        await port.begin("op", "k", "h")
        duplicate = apart(begun(elsewhere, "k"))
        assert await waits(duplicate)
        await port.fail("op", "k", "h")
        async with asyncio.timeout(PATIENCE.total_seconds() / 2):
            assert await duplicate is None

    async def test_a_wait_has_an_end(self, idempotency_leg: IdempotencyLeg) -> None:
        port = idempotency_leg.ctx.idempotency(BRIEF)
        await port.begin("op", "k", "h")
        for _ in range(2):
            with refused(IdempotencyInProgress):
                await idempotency_leg.other.idempotency(BRIEF).begin("op", "k", "h")
        patient = idempotency_leg.ctx.idempotency(PATIENT)
        await patient.begin("op", "bound", "h")
        bound = idempotency_leg.ctx.bind_deadline(timedelta(milliseconds=200))
        with refused(IdempotencyInProgress), bound:
            await idempotency_leg.other.idempotency(PATIENT).begin("op", "bound", "h")
        assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED

    async def test_duplicates_at_the_same_time_run_once(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        ran: list[int] = []

        async def effect(number: int) -> int:
            ran.append(number)
            await asyncio.sleep(0.01)
            return number

        ports = [each.idempotency(PATIENT) for each in (idempotency_leg.ctx, idempotency_leg.other)]
        results = await asyncio.gather(
            *(apart(ports[number % 2].run("op", "k", {}, effect, number)) for number in range(20))
        )
        assert len(ran) == 1
        assert results == ran * 20


async def _value(value: bool) -> bool:
    return value
