"""Idempotency beside a transaction, among cancellations, and without its store."""

from __future__ import annotations

import asyncio
from typing import Any

from forze.application.contracts.idempotency import Commit, IdempotencyPort
from forze.errors import (
    BackendUnavailable,
    ConfigurationError,
    FencedOut,
    IdempotencyInProgress,
)
from forze.testing.batteries.idempotency import (
    ANSWER,
    LAPSE,
    OPEN,
    OTHER_ANSWER,
    PATIENT,
    IdempotencyLeg,
    begun,
    is_free,
    settled,
)
from forze.testing.batteries.legs import Outage, apart, cancelled, waits
from forze.testing.batteries.refusals import refused


class IdempotencyTransactions:
    """What the port promises inside an open transaction."""

    async def test_an_answer_follows_its_transaction(self, idempotency_leg: IdempotencyLeg) -> None:
        port, elsewhere, ctx = idempotency_leg.port, idempotency_leg.elsewhere, idempotency_leg.ctx
        await port.begin("op", "k", "h")
        with refused(ConfigurationError, "changed our mind"):
            async with ctx.transaction("items"):
                assert await port.commit("op", "k", "h", ANSWER) is Commit.ENLISTED
                with refused(IdempotencyInProgress):
                    await apart(begun(elsewhere, "k"))
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

    async def test_an_answer_stands_with_its_transaction(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        """Whatever came after the answer: the effect stands, and must not come again."""
        port, elsewhere, ctx = idempotency_leg.port, idempotency_leg.elsewhere, idempotency_leg.ctx
        async with ctx.transaction("items"):
            with refused(ConfigurationError):
                async with port.claim("op", "k", "h") as claim:
                    assert await claim.complete(ANSWER) is Commit.ENLISTED
                    raise ConfigurationError("after the answer")
            assert await port.fail("op", "k", "h") is False
        assert await elsewhere.begin("op", "k", "h") == ANSWER

    async def test_a_claim_begun_in_a_transaction_is_seen_at_once(
        self, idempotency_leg: IdempotencyLeg
    ) -> None:
        port, elsewhere, ctx = idempotency_leg.port, idempotency_leg.elsewhere, idempotency_leg.ctx
        async with ctx.transaction("items"):
            assert await port.begin("op", "k", "h") is None
            with refused(IdempotencyInProgress):
                await apart(begun(elsewhere, "k"))
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
        waiter = apart(begun(elsewhere, "k"))
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
