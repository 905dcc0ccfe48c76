"""What every ``IdempotencyPort`` does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from forze.application.contracts.idempotency import (
    Commit,
    IdempotencyPort,
    IdempotencySnapshot,
    IdempotencySpec,
)
from forze.application.execution import ExecutionContext
from forze.application.integrations.idempotency import idempotent
from forze.errors import (
    BackendUnavailable,
    ConfigurationError,
    FencedOut,
    IdempotencyInProgress,
    IdempotencyMismatch,
    TenantRequired,
    ValidationError,
)
from forze.testing.batteries.legs import PATIENCE, Outage, apart, cancelled, waits
from forze.testing.batteries.refusals import refused

LEASE = timedelta(seconds=30)
LAPSE = LEASE + timedelta(seconds=1)
TTL = timedelta(hours=1)

REQUESTS = IdempotencySpec(name="requests", ttl=TTL, lease=LEASE, store=(404,), headers=("x-kept",))
PATIENT = IdempotencySpec(name="patient", ttl=TTL, lease=LEASE, wait=PATIENCE)
HURRIED = IdempotencySpec(name="hurried", ttl=TTL, lease=timedelta(milliseconds=300))
BRIEF = IdempotencySpec(name="brief", lease=LEASE, wait=timedelta(milliseconds=40))
FORGETFUL = IdempotencySpec(
    name="forgetful", ttl=TTL, lease=timedelta(milliseconds=60), max_hold=timedelta(milliseconds=1)
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


class Receipt(BaseModel):
    """A result with a type of its own."""

    number: int
    after: timedelta


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
        await asyncio.sleep(0.05)
        await idempotency_leg.pass_time(FORGETFUL.lease)
        assert await elsewhere.begin("op", "k", "h") is None

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
        duplicates = [apart(_called(each, "k")) for each in (port, elsewhere, elsewhere)]
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
        duplicate = apart(_called(elsewhere, "k"))
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

    # -- whose a claim is ----------------------------------------------------

    async def test_overlapping_requests_of_one_process_are_apart(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        """Also where both run in copies of one context, and under one scope."""
        port = idempotency_leg.port

        async def overlap(key: str) -> None:
            await port.begin("op", "before", "h")
            lapsed, finish = asyncio.Event(), asyncio.Event()

            async def first() -> Commit:
                assert await port.begin("op", key, "h") is None
                lapsed.set()
                await finish.wait()
                return await port.commit("op", key, "h", OTHER_ANSWER)

            async def second() -> Commit:
                await lapsed.wait()
                await idempotency_leg.pass_time(LAPSE)
                assert await port.begin("op", key, "h") is None
                finish.set()
                assert await one is Commit.FENCED_OUT
                return await port.commit("op", key, "h", ANSWER)

            one = asyncio.create_task(first())
            assert await asyncio.create_task(second()) is Commit.STORED
            assert await port.begin("op", key, "h") == ANSWER
            await port.fail("op", "before", "h")

        await overlap("bare")
        async with port.scope():
            await overlap("in one scope")

    async def test_whoever_was_refused_ends_nothing(self, idempotency_leg: IdempotencyLeg) -> None:
        port = idempotency_leg.port

        async def began() -> None:
            assert await port.begin("op", "k", "h") is None

        await asyncio.create_task(began())  # the claim of a task that has ended

        async def duplicate() -> None:
            with refused(IdempotencyInProgress):
                await port.begin("op", "k", "h")
            assert await port.fail("op", "k", "h") is False
            assert await port.commit("op", "k", "h", OTHER_ANSWER) is Commit.UNCLAIMED

        async def scoped() -> None:
            async with port.scope():
                await duplicate()

        await apart(duplicate())
        await apart(scoped())
        assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED

    async def test_nobody_else_ends_a_claim(self, idempotency_leg: IdempotencyLeg) -> None:
        port = idempotency_leg.port
        await port.begin("op", "k", "h")
        assert await apart(_failed(port, "k")) is False
        assert await apart(_committed(port, "k")) is Commit.UNCLAIMED
        assert await idempotency_leg.elsewhere.fail("op", "k", "h") is False
        answer = await idempotency_leg.elsewhere.commit("op", "k", "h", OTHER_ANSWER)
        assert answer is Commit.UNCLAIMED
        assert await port.commit("op", "k", "other payload", OTHER_ANSWER) is Commit.UNCLAIMED
        assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED

    async def test_a_claim_begun_by_another_task_is_ended_by_this_one(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        """``wait_for`` runs what it is given in a task of its own, with a copy of the context."""
        port = idempotency_leg.port

        async def begin(key: str) -> None:
            assert await port.begin("op", key, "h") is None

        begun: tuple[Callable[[str], Awaitable[object]], ...] = (
            lambda key: asyncio.wait_for(port.begin("op", key, "h"), 5),
            lambda key: asyncio.create_task(port.begin("op", key, "h")),
            lambda key: asyncio.gather(port.begin("op", key, "h")),
            lambda key: asyncio.wait_for(begin(key), 5),
            lambda key: asyncio.create_task(begin(key)),
            lambda key: _in_a_thread(port, key),
        )
        for number, how in enumerate(begun):
            await how(f"{number}")
            assert await _committed(port, f"{number}") is Commit.STORED, number
            await how(f"{number} failed")
            assert await port.fail("op", f"{number} failed", "h") is True, number
            async with port.scope():
                await how(f"{number} in a scope")
                committed = asyncio.wait_for(_committed(port, f"{number} in a scope"), 5)
                assert await committed is Commit.STORED

    async def test_a_scope_frees_what_was_left_open_in_it(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        async with port.scope():
            await port.begin("op", "left", "h")
            await port.begin("op", "done", "h")
            await port.commit("op", "done", "h", ANSWER)
        assert await is_free(elsewhere, "left")
        assert await elsewhere.begin("op", "done", "h") == ANSWER
        with refused(ConfigurationError):
            async with port.scope():
                await port.begin("op", "raised", "h")
                raise ConfigurationError("a handler's own")
        assert await is_free(elsewhere, "raised")

    async def test_a_request_that_is_cancelled_frees_its_key(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        began = asyncio.Event()

        async def bare() -> None:
            await port.begin("op", "k", "h")
            began.set()
            await asyncio.Event().wait()

        async def scoped() -> None:
            async with port.scope():
                await bare()

        async def block() -> None:
            async with port.claim("op", "k", "h"):
                began.set()
                await asyncio.Event().wait()

        for request in (bare, scoped, block):
            began.clear()
            task = apart(request())
            await began.wait()
            assert await cancelled(task)
            await settled(lambda: is_free(elsewhere, "k"))

    async def test_a_request_that_ends_without_a_word_is_not_kept_up(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere = (
            each.idempotency(HURRIED) for each in (idempotency_leg.ctx, idempotency_leg.other)
        )
        await apart(_called(port, "k"))
        await asyncio.sleep(0.1)
        await idempotency_leg.pass_time(HURRIED.lease)
        assert await elsewhere.begin("op", "k", "h") is None

    # -- blocks and functions ------------------------------------------------

    async def test_a_block_completes_or_frees(self, idempotency_leg: IdempotencyLeg) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        async with port.claim("op", "k", "h") as claim:
            assert (claim.generation, claim.replay, claim.takeover, claim.lost) == (
                1, None, False, False,
            )  # fmt: skip
        with refused(ConfigurationError):
            async with port.claim("op", "k", "h") as claim:
                assert claim.generation == 2
                raise ConfigurationError("a handler's own")
        async with elsewhere.claim("op", "k", "h") as claim:
            assert claim.generation == 3
            assert await claim.complete(ANSWER) is Commit.STORED
            assert await claim.complete(OTHER_ANSWER) is Commit.UNCLAIMED
        async with port.claim("op", "k", "h") as claim:
            assert claim.replay == ANSWER

    async def test_a_function_runs_once(self, idempotency_leg: IdempotencyLeg) -> None:
        calls: list[int] = []

        async def charge(number: int, *, after: timedelta) -> Receipt:
            calls.append(number)
            if number < 0:
                raise ConfigurationError("its own")
            return Receipt(number=number, after=after)

        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        after = timedelta(seconds=1)
        with refused(ConfigurationError, "its own"):
            await port.run("charge", "k", {"b": 1, "a": 2}, charge, -1, after=after)
        for each in (port, elsewhere):
            receipt = await each.run("charge", "k", {"a": 2, "b": 1}, charge, 5, after=after)
            assert receipt == Receipt(number=5, after=after)
        assert calls == [-1, 5]
        with refused(IdempotencyMismatch):
            await port.run("charge", "k", {"a": 2, "b": 2}, charge, 5, after=after)

        async def plain() -> Any:
            return {"a": [1, None]}

        for each in (port, elsewhere):
            assert await each.run("plain", "k", b"bytes", plain) == {"a": [1, None]}

        async def unfit() -> Any:
            return object()

        with refused(ValidationError, "unfit", "JSON"):
            await port.run("unfit", "k", {}, unfit)
        assert await port.run("unfit", "k", {}, plain, result=dict[str, list[int | None]]) == {
            "a": [1, None]
        }

    async def test_a_decorated_function_runs_once(self, idempotency_leg: IdempotencyLeg) -> None:
        calls: list[str] = []

        @idempotent(REQUESTS, ctx=lambda: idempotency_leg.ctx, key="payment_id")
        async def pay(payment_id: str, amount: int = 1) -> Receipt:
            calls.append(payment_id)
            return Receipt(number=amount, after=timedelta(0))

        assert (
            await pay("p1", 2) == await pay("p1", amount=2) == await pay(payment_id="p1", amount=2)
        )
        assert calls == ["p1"]
        with refused(IdempotencyMismatch):
            await pay("p1", 3)
        await pay("p2")
        assert calls == ["p1", "p2"]

        @idempotent(
            REQUESTS, ctx=lambda: idempotency_leg.ctx, operation="send", payload=lambda *_: 0,
            key=lambda to, text: f"{to}!",
        )  # fmt: skip
        async def send(to: str, text: str) -> str:
            calls.append(text)
            return text

        assert [await send("x", "first"), await send("x", "second")] == ["first", "first"]
        with refused(ConfigurationError, "nobody"):
            idempotent(REQUESTS, ctx=lambda: idempotency_leg.ctx, key="nobody")(send)

    # -- transactions --------------------------------------------------------

    async def test_an_answer_follows_its_transaction(self, idempotency_leg: IdempotencyLeg) -> None:
        port, elsewhere, ctx = idempotency_leg.port, idempotency_leg.elsewhere, idempotency_leg.ctx
        await port.begin("op", "k", "h")
        with refused(ConfigurationError, "changed our mind"):
            async with ctx.transaction("items"):
                assert await port.commit("op", "k", "h", ANSWER) is Commit.ENLISTED
                with refused(IdempotencyInProgress):
                    await apart(_called(elsewhere, "k"))
                raise ConfigurationError("changed our mind")
        with refused(IdempotencyInProgress):
            await elsewhere.begin("op", "k", "h")
        async with ctx.transaction("items"), ctx.transaction("items"):
            assert await port.commit("op", "k", "h", ANSWER) is Commit.ENLISTED
            assert await port.commit("op", "k", "h", OTHER_ANSWER) is Commit.ENLISTED
        assert await elsewhere.begin("op", "k", "h") == ANSWER

    async def test_a_key_is_free_when_its_transaction_failed(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere, ctx = idempotency_leg.port, idempotency_leg.elsewhere, idempotency_leg.ctx
        with refused(ConfigurationError):
            async with ctx.transaction("items"), port.claim("op", "block", "h") as claim:
                await claim.complete(ANSWER)
                raise ConfigurationError("a handler's own")
        assert await is_free(elsewhere, "block")
        with refused(ConfigurationError):
            async with ctx.transaction("items"):
                async with port.claim("op", "left", "h") as claim:
                    await claim.complete(ANSWER)
                raise ConfigurationError("a handler's own")
        assert await is_free(elsewhere, "left")
        with refused(ConfigurationError):
            async with port.scope(), ctx.transaction("items"):
                await port.begin("op", "scope", "h")
                await port.commit("op", "scope", "h", ANSWER)
                raise ConfigurationError("a handler's own")
        assert await is_free(elsewhere, "scope")

    async def test_a_claim_begun_in_a_transaction_is_seen_at_once(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere, ctx = idempotency_leg.port, idempotency_leg.elsewhere, idempotency_leg.ctx
        async with ctx.transaction("items"):
            assert await port.begin("op", "k", "h") is None
            with refused(IdempotencyInProgress):
                await apart(_called(elsewhere, "k"))
            assert await port.fail("op", "k", "h") is True
            assert await apart(is_free(elsewhere, "k"))

    async def test_a_stale_owner_in_a_transaction(self, idempotency_leg: IdempotencyLeg) -> None:
        """Where the transaction is the store's own, its effect goes with its answer."""
        port, elsewhere, ctx = idempotency_leg.port, idempotency_leg.elsewhere, idempotency_leg.ctx
        await port.begin("op", "k", "h")
        await idempotency_leg.pass_time(LAPSE)
        assert await elsewhere.begin("op", "k", "h") is None
        if idempotency_leg.transactional:
            with refused(FencedOut, "op"):
                async with ctx.transaction("items"):
                    await port.commit("op", "k", "h", OTHER_ANSWER)
        else:
            async with ctx.transaction("items"):
                await port.commit("op", "k", "h", OTHER_ANSWER)
        assert port.stats().fenced_out == 1
        assert await elsewhere.commit("op", "k", "h", ANSWER) is Commit.STORED


class IdempotencyFailures:
    """What the port promises where the store is away, and that nothing is left behind."""

    async def test_cancelled_at_any_step_nothing_is_left(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere

        async def request(key: str) -> None:
            if await port.begin("op", key, "h") is None:
                await port.commit("op", key, "h", ANSWER)

        async def block(key: str) -> None:
            async with port.claim("op", key, "h") as claim:
                if claim.replay is None:
                    await claim.complete(ANSWER)

        async def failing(key: str) -> None:
            if await port.begin("op", key, "h") is None:
                await port.fail("op", key, "h")

        for name, work in (("request", request), ("block", block), ("failing", failing)):
            step, finished = 0, False
            while not finished:
                key = f"{name} {step}"
                task = apart(work(key))
                finished = await _cancelled_at(task, step)
                await settled(lambda key=key: _ended(elsewhere, key))  # type: ignore[misc] # bound now
                step += 1
            assert step > 2

    async def test_cancelled_while_it_waits(self, idempotency_leg: IdempotencyLeg) -> None:
        port, elsewhere = (
            each.idempotency(PATIENT) for each in (idempotency_leg.ctx, idempotency_leg.other)
        )
        await port.begin("op", "k", "h")
        waiter = apart(_called(elsewhere, "k"))
        assert await waits(waiter)
        assert await cancelled(waiter)
        assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED
        assert await elsewhere.begin("op", "k", "h") == ANSWER


class IdempotencyOutage:
    """What the port promises while the store does not answer; takes ``outage``, which keeps
    the records, and clients that give up after a second or so."""

    async def test_without_its_store_it_does_not_run(
        self, idempotency_leg: IdempotencyLeg, outage: Outage
    ) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        await port.begin("op", "before", "h")
        await outage.break_backend()
        with refused(BackendUnavailable, "requests", "not run"):
            await port.begin("op", "k", "h")
        assert await port.fail("op", "before", "h") is False
        await outage.restore()
        await settled(lambda: is_free(elsewhere, "k"))
        await settled(lambda: is_free(elsewhere, "before"))

    async def test_told_to_it_runs_unprotected(
        self, idempotency_leg: IdempotencyLeg, outage: Outage
    ) -> None:
        port = idempotency_leg.ctx.idempotency(OPEN)
        await outage.break_backend()
        for key in ("k", "l"):
            assert await port.begin("op", key, "h") is None
        assert await port.commit("op", "k", "h", ANSWER) is Commit.UNCLAIMED
        assert await port.fail("op", "l", "h") is False
        assert port.stats().unprotected == 2
        await outage.restore()
        await settled(lambda: is_free(idempotency_leg.other.idempotency(OPEN), "k"))
        await port.begin("op", "k", "h")
        assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED

    async def test_work_that_is_done_is_no_failure(
        self, idempotency_leg: IdempotencyLeg, outage: Outage
    ) -> None:
        port, elsewhere = idempotency_leg.port, idempotency_leg.elsewhere
        await port.begin("op", "k", "h")
        await outage.break_backend()
        assert await port.commit("op", "k", "h", ANSWER) is Commit.DEFERRED
        assert port.stats().deferred == 1
        await outage.restore()
        await settled(lambda: _ended(elsewhere, "k"))
        assert await elsewhere.begin("op", "k", "h") == ANSWER


async def _value(value: bool) -> bool:
    return value


async def _called(port: IdempotencyPort, key: str) -> IdempotencySnapshot | None:
    return await port.begin("op", key, "h")


async def _committed(port: IdempotencyPort, key: str) -> Commit:
    return await port.commit("op", key, "h", ANSWER)


async def _failed(port: IdempotencyPort, key: str) -> bool:
    return await port.fail("op", key, "h")


async def _in_a_thread(port: IdempotencyPort, key: str) -> None:
    """Begin as a dependency does that runs in a thread with a copy of the context."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def work() -> None:
        begun = asyncio.run_coroutine_threadsafe(port.begin("op", key, "h"), loop)
        assert begun.result(PATIENCE.total_seconds()) is None
        loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()
    async with asyncio.timeout(PATIENCE.total_seconds()):
        await done


async def _cancelled_at(task: asyncio.Task[Any], step: int) -> bool:
    """Cancel ``task`` after ``step`` turns of the loop; whether it had ended before."""
    for _ in range(step):
        await asyncio.sleep(0)
    if task.done():
        await task
        return True
    await cancelled(task)
    return False


async def _ended(port: IdempotencyPort, key: str) -> bool:
    """Whether the key is free or completed, and nobody's."""
    try:
        if await port.begin("op", key, "h") is None:
            await port.fail("op", key, "h")
    except IdempotencyInProgress:
        return False
    return True
