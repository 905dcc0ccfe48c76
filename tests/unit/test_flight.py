"""Who may take what from a flight."""

from __future__ import annotations

import asyncio

import pytest

from forze.application.integrations.document.flight import AGAIN, Flight
from forze.errors import BackendUnavailable, NotFoundError


def same(value: str) -> str:
    return value


async def test_who_boarded_before_the_question_takes_the_answer() -> None:
    flight: Flight[str] = Flight()
    early = flight.board()
    flight.cover()
    late = flight.board()
    flight.land("value", same)
    assert await early == "value"
    assert await late is AGAIN


async def test_an_accepted_fill_is_for_those_aboard_when_it_was_sent() -> None:
    flight: Flight[str] = Flight()
    flight.cover()
    late = flight.board()
    sent = flight.aboard
    later = flight.board()
    flight.cover(sent)
    flight.land("value", same)
    assert await late == "value"
    assert await later is AGAIN


async def test_each_follower_gets_a_value_of_its_own() -> None:
    flight: Flight[list[int]] = Flight()
    seats = [flight.board() for _ in range(3)]
    flight.cover()
    flight.land([1], list)
    first, second, third = [await seat for seat in seats]
    assert first == second == third == [1]
    assert len({id(first), id(second), id(third)}) == 3


async def test_a_failure_is_shared_each_with_a_traceback_of_its_own() -> None:
    flight: Flight[str] = Flight()
    covered = flight.board()
    flight.cover()
    late = flight.board()
    error = BackendUnavailable("down", backend="source")
    flight.crash(error)
    caught = []
    for seat in (covered, late):
        with pytest.raises(BackendUnavailable) as info:
            await seat
        caught.append(info.value)
    assert caught[0] is not caught[1]
    assert all(each.__cause__ is error and each.backend == "source" for each in caught)


async def test_not_there_is_an_answer_that_can_be_out_of_date() -> None:
    flight: Flight[str] = Flight()
    covered = flight.board()
    flight.cover()
    late = flight.board()
    flight.crash(NotFoundError("no", resource="things", ids=["1"]))
    with pytest.raises(NotFoundError):
        await covered
    assert await late is AGAIN


async def test_a_cancelled_flight_sends_everyone_off_again() -> None:
    flight: Flight[str] = Flight()
    seat = flight.board()
    flight.crash(asyncio.CancelledError())
    assert await seat is AGAIN


async def test_cancelling_one_caller_touches_nobody_else() -> None:
    flight: Flight[str] = Flight()

    async def wait() -> object:
        return await flight.board()

    first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(0)
    flight.cover()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    flight.land("value", same)
    assert await second == "value"
