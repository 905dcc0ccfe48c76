"""Two processes on one server: what has to happen once happens once, what is limited is the
limit of both together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from tests.http.fleet import application
from tests.http.serving import Replica, replica

from forze.testing.servers import ValkeyServer
from forze.testing.serving import serving


@pytest.fixture(scope="module")
def other(valkey: ValkeyServer) -> Iterator[Replica]:
    with replica("tests.http.fleet:application", DSN=valkey.dsn) as process:
        yield process


@asynccontextmanager
async def both(dsn: str, other: Replica) -> AsyncIterator[list[str]]:
    """The addresses of this process and of the other."""
    async with serving(application(dsn)) as address:
        yield [address, other.address]


async def asked(address: str, path: str) -> tuple[int, str]:
    """The status, and where the caller stands; without a client's weight."""
    host, _, port = address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    head = (await reader.read()).decode()
    writer.close()
    fields = dict(line.split(": ", 1) for line in head.partition("\r\n\r\n")[0].splitlines()[1:])
    return int(head.split()[1]), fields["ratelimit"]


async def test_identical_posts_at_once_run_once(
    valkey: ValkeyServer, valkey_dsn: str, other: Replica
) -> None:
    async with both(valkey_dsn, other) as pair, httpx.AsyncClient(timeout=30) as one:
        for number in (1, 2, 3):
            headers = {"Idempotency-Key": f'"k-{number}"'}
            answers = await asyncio.gather(
                *(one.post(f"{each}/payments", headers=headers) for each in pair * 4)
            )
            assert {each.status_code for each in answers} == {201}
            assert {each.content for each in answers} == {b'{"run":%d}' % number}
            assert sum("idempotency-replayed" in each.headers for each in answers) == 7
    assert valkey.ask("GET", "test:runs") == b"$1\r\n3\r\n"


async def test_what_one_process_has_made_is_a_hit_in_the_other(
    valkey_dsn: str, other: Replica
) -> None:
    async with both(valkey_dsn, other) as pair, httpx.AsyncClient(timeout=30) as one:
        answers = [await one.get(f"{each}/report") for each in pair]
    assert [each.content for each in answers] == [b'{"run":1}'] * 2
    assert "hit" in answers[1].headers["cache-status"]


async def test_of_two_hundred_calls_at_once_ten_get_through(
    valkey_dsn: str, other: Replica
) -> None:
    async with both(valkey_dsn, other) as pair, asyncio.timeout(30):
        answers = await asyncio.gather(*(asked(each, "/limited") for each in pair * 100))
    told = [status for status, _ in answers]
    assert (told.count(200), told.count(429)) == (10, 190)
    left_over = {state.partition(";t=")[0] for status, state in answers if status == 200}
    assert left_over == {f'"api";r={remaining}' for remaining in range(10)}
