"""Whose a claim is, and the blocks and functions that end claims by themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from forze.application.contracts.idempotency import Commit, IdempotencyPort
from forze.application.integrations.idempotency import idempotent
from forze.errors import (
    ConfigurationError,
    IdempotencyInProgress,
    IdempotencyMismatch,
    ValidationError,
)
from forze.testing.batteries.idempotency import (
    ANSWER,
    HURRIED,
    LAPSE,
    OTHER_ANSWER,
    REQUESTS,
    IdempotencyLeg,
    begun,
    is_free,
    settled,
)
from forze.testing.batteries.legs import PATIENCE, apart, cancelled
from forze.testing.batteries.refusals import refused


class Receipt(BaseModel):
    """A result with a type of its own."""

    number: int
    after: timedelta


class IdempotencyOwnership:
    """What the port promises of requests that overlap, and of those spread over tasks."""

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
        await asyncio.create_task(duplicate())
        assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED

    async def test_a_duplicate_in_one_scope_ends_nothing(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port = idempotency_leg.port

        async def duplicate() -> None:
            with refused(IdempotencyInProgress):
                await port.begin("op", "k", "h")
            assert await port.fail("op", "k", "h") is False

        async with port.scope():
            assert await port.begin("op", "k", "h") is None
            await asyncio.create_task(duplicate())
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

    async def test_a_claim_is_ended_by_a_task_started_after_it(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        """A handler under ``wait_for``, a task of its own, a thread with a copy of the context."""
        port, loop = idempotency_leg.port, asyncio.get_running_loop()

        def in_a_thread(key: str) -> Commit:
            committed = port.commit("op", key, "h", ANSWER)
            return asyncio.run_coroutine_threadsafe(committed, loop).result(PATIENCE.seconds)

        ways: tuple[Callable[[str], Awaitable[object]], ...] = (
            lambda key: asyncio.wait_for(_committed(port, key), PATIENCE.seconds),
            lambda key: asyncio.create_task(_committed(port, key)),
            lambda key: asyncio.to_thread(in_a_thread, key),
        )
        for number, ended in enumerate(ways):
            assert await asyncio.wait_for(port.begin("op", f"{number}", "h"), 5) is None
            assert await ended(f"{number}") is Commit.STORED, number
            assert await idempotency_leg.elsewhere.begin("op", f"{number}", "h") == ANSWER

    async def test_a_tenant_bound_meanwhile_changes_nothing(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        """Where records are not apart by tenant."""
        port = idempotency_leg.port
        assert await port.begin("op", "k", "h") is None
        with idempotency_leg.ctx.bind_tenant("one"):
            assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED

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
        await apart(begun(port, "k"))
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

        def at_once() -> int:
            calls.append(0)
            return 7

        for each in (port, elsewhere):
            assert await each.run("at once", "k", {}, at_once) == 7  # type: ignore[arg-type] # not async
        assert calls == [-1, 5, 0]

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
