"""Two processes on one server: what has to happen once happens once, what is limited is the
limit of both together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from tests.http.serving import Replica, replica

from forze.testing.servers import ValkeyServer


@pytest.fixture(scope="module")
def pair(valkey: ValkeyServer) -> Iterator[list[Replica]]:
    starting = [replica("tests.http.fleet:application", DSN=valkey.dsn) for _ in range(2)]
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        yield list(threads.map(stack.enter_context, starting))


async def test_identical_posts_at_once_run_once(
    valkey: ValkeyServer, valkey_dsn: str, pair: list[Replica]
) -> None:
    async with httpx.AsyncClient(timeout=30) as one:
        for number in (1, 2, 3):
            headers = {"Idempotency-Key": f'"k-{number}"'}
            answers = await asyncio.gather(
                *(one.post(f"{each.address}/payments", headers=headers) for each in pair * 4)
            )
            assert {each.status_code for each in answers} == {201}
            assert {each.content for each in answers} == {b'{"run":%d}' % number}
            assert sum("idempotency-replayed" in each.headers for each in answers) == 7
    assert valkey.ask("GET", "test:runs") == b"$1\r\n3\r\n"


async def test_of_two_hundred_calls_at_once_ten_get_through(
    valkey_dsn: str, pair: list[Replica]
) -> None:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(timeout=30, limits=limits) as one:
        answers = await asyncio.gather(*(one.get(f"{each.address}/limited") for each in pair * 100))
    told = [each.status_code for each in answers]
    assert (told.count(200), told.count(429)) == (10, 190)
    through = [each.headers["ratelimit"] for each in answers if each.status_code == 200]
    left_over = {each.partition(";t=")[0] for each in through}
    assert left_over == {f'"api";r={remaining}' for remaining in range(10)}
