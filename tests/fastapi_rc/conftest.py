"""Clients for the tests of the service: of redis-py on Valkey, decoding replies and not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

import fastapi_rc.budget


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are not a manager's have 20 s for a call: a busy machine is no outage."""
    monkeypatch.setattr(fastapi_rc.budget, "BUDGET_SECONDS", 20.0)


@pytest.fixture
async def redis(valkey_dsn: str) -> AsyncIterator[Redis]:
    """A client on an empty Valkey that decodes, as the manager's does by default."""
    async with Redis.from_url(valkey_dsn, decode_responses=True) as client:
        yield client


@pytest.fixture(params=[True, False], ids=["decoding", "bytes"])
async def either(request: pytest.FixtureRequest, valkey_dsn: str) -> AsyncIterator[Redis]:
    """A client that decodes, then one that does not."""
    async with Redis.from_url(valkey_dsn, decode_responses=request.param) as client:
        yield client
