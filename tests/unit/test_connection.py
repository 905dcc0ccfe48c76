"""One connection by itself, over a transport that is made up: who sends while others send."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable

import pytest

from forze.errors import BackendUnavailable
from forze_redis.wire.connection import Call, Connection, Reply
from forze_redis.wire.scripts import pack


class Owner:
    """Nobody watches, and nothing waits."""

    where = "nowhere"

    def __init__(self) -> None:
        self.waiting: deque[Call] = deque()
        self.losses = 0

    def watch(self) -> None: ...

    def elsewhere(self, packed: bytes, timeout: float) -> asyncio.Future[Reply]:
        raise NotImplementedError

    def pushed(self, message: list[Reply]) -> None: ...

    def lost(self, connection: Connection) -> None:
        self.losses += 1

    def redirected(self, call: Call, said: str) -> bool:
        return False


class Socket(asyncio.Transport):
    """Keeps what is written; ``meanwhile`` is called once, in the midst of a write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.meanwhile: Callable[[], None] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        self.written.append(bytes(data))

    def abort(self) -> None: ...


class Abandoned:
    """Nobody refers to it but itself; it gives something back when the collector finds it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.itself = self

    def __del__(self) -> None:
        self.connection.post(pack("GIVE-BACK"))


@pytest.fixture
async def owner() -> Owner:
    return Owner()


def opened(owner: Owner) -> tuple[Connection, Socket]:
    connection, made_up = Connection(owner, asyncio.get_running_loop(), 100), Socket()
    connection.connection_made(made_up)
    connection.begin()
    return connection, made_up


def answer(connection: Connection, made_up: Socket) -> None:
    """Each call is answered by its own name."""
    said = b"".join(made_up.written).replace(b"*1\r\n", b"")  # the name as a bulk string
    made_up.written.clear()
    connection.data_received(said)


@pytest.mark.parametrize("at_once", [False, True])
async def test_the_collector_sends_in_the_midst_of_a_call(owner: Owner, at_once: bool) -> None:
    """Whenever it runs, each call has its own reply."""
    thresholds = gc.get_threshold()
    gc.freeze()  # each of the collections below looks at what this test makes
    for allocations in range(1, 40):
        connection, made_up = opened(owner)
        if at_once:
            connection.send_cached(pack("FIRST"), 1.0)
            await asyncio.sleep(0)
            answer(connection, made_up)
        gc.collect()
        Abandoned(connection)
        gc.set_threshold(allocations, 1, 1)
        calls = [connection.send_cached(pack(f"CALL-{each}"), 1.0) for each in range(3)]
        gc.set_threshold(*thresholds)
        gc.collect()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        answer(connection, made_up)
        assert [call.result() for call in calls] == [b"CALL-0", b"CALL-1", b"CALL-2"]
        assert connection.in_flight == 0
    gc.unfreeze()


async def test_what_is_sent_in_the_midst_of_a_write_is_written_after_it(owner: Owner) -> None:
    connection, made_up = opened(owner)
    made_up.meanwhile = lambda: connection.post(pack("LATER"))
    call = connection.send_cached(pack("CALL"), 1.0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert made_up.written == [pack("CALL"), pack("LATER")]
    answer(connection, made_up)
    assert call.result() == b"CALL"
    assert connection.in_flight == 0


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_transport_that_raises_is_given_up(owner: Owner, at_once: bool) -> None:
    """No reply may come to the wrong call, and the error is the call's, not its sender's."""

    def full() -> None:
        raise MemoryError

    connection, made_up = opened(owner)
    if at_once:
        connection.send_cached(pack("FIRST"), 1.0)
        await asyncio.sleep(0)
        answer(connection, made_up)
    made_up.meanwhile = full
    call = connection.send_cached(pack("CALL"), 1.0)
    assert call.done() is at_once
    await asyncio.sleep(0)
    error = call.exception()
    assert isinstance(error, BackendUnavailable)
    assert error.outcome == "unknown"
    assert owner.losses == 1
    assert not connection.open
