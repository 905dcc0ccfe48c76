"""The four example files of the recipe, each a program of its own, over real HTTP."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from tests.integration.recipes import RECIPES

from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of

EXAMPLES = RECIPES / "fastapi_rc"
NAMES = [
    "01_basic_usage",
    "02_cache_service",
    "03_production_patterns",
    "04_full_api_example",
]


@pytest.fixture(autouse=True)
def address(valkey_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", valkey_dsn)


def loaded(name: str) -> ModuleType:
    """A fresh copy, as a process of its own would have it."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def example(name: str) -> AsyncIterator[tuple[ModuleType, httpx.AsyncClient]]:
    module = loaded(name)
    async with client_of(module.app) as client:
        yield module, client


def test_they_are_the_four_of_the_document() -> None:
    assert sorted(each.stem for each in EXAMPLES.glob("0*.py")) == NAMES
    for name in NAMES:
        assert (
            'if __name__ == "__main__":\n    uvicorn.run('
            in Path(EXAMPLES / f"{name}.py").read_text()
        )


async def test_basic_usage(valkey: ValkeyServer) -> None:
    async with example("01_basic_usage") as (_, client):
        answers = [(await client.get("/users/1")).json()["cached"] for _ in range(2)]
        assert answers == [False, True]
        await client.put("/users/1", params={"name": "Anne"})
        renamed = (await client.get("/users/1")).json()
        assert renamed == {"user": {"id": "1", "name": "Anne"}, "cached": False}
        assert (await client.get("/users/9")).status_code == 404
        assert (await client.post("/users/warm")).json() == {"stored": 2}
        assert (await client.delete("/users/cache")).json() == {"removed": 2}


async def test_cache_service(valkey: ValkeyServer) -> None:
    async with example("02_cache_service") as (module, client):
        for _ in range(2):
            assert (await client.get("/products/1")).json()["price"] == 40
        assert module.loads == ["product 1"]
        assert (await client.put("/products/1", params={"price": 35})).status_code == 200
        assert (await client.get("/products/1")).json()["price"] == 35
        assert (await client.get("/prices")).json() == {"lamp": 35, "desk": 300}
        assert (await client.get("/products/1/cache")).json()["cached"] is True
        labels = [
            (await client.get("/products/1/label", params={"language": each})).json()
            for each in ("en", "fr")
        ]
        assert labels == ["lamp (en)", "lamp (fr)"]
        assert (await client.delete("/products/cache")).json() == {"removed": 1}
        assert (await client.get("/products/9")).status_code == 404


async def test_production_patterns(
    own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", own_valkey.dsn)
    async with example("03_production_patterns") as (module, client):
        assert module.asked == ["1", "2"]  # warmed
        assert (await client.get("/quotes/1")).json()["asked"] == 1
        assert (await client.post("/sessions/7")).json() == {"stored": True}
        assert (await client.get("/health/redis")).status_code == 200
        own_valkey.kill()
        assert (await client.get("/quotes/1")).json()["asked"] == 3
        assert (await client.post("/visits/7")).status_code == 503
        assert (await client.get("/health/redis")).status_code == 503


async def test_production_patterns_begin_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    async with example("03_production_patterns") as (_, client):
        assert (await client.get("/quotes/1")).status_code == 200


async def test_full_api(valkey: ValkeyServer) -> None:
    async with example("04_full_api_example") as (_, client):
        ann = {"name": "Ann", "email": "ann@example.com"}
        assert (await client.post("/users", json=ann)).json() == {"id": 1, **ann}
        for total in (40, 300):
            await client.post("/users/1/orders", params={"total": total})
        for _ in range(3):
            assert len((await client.get("/users/1/orders")).json()) == 2
            dear = (await client.get("/users/1/orders", params={"at_least": 100})).json()
            assert [each["total"] for each in dear] == [300]
            summary = (await client.get("/users/1/orders/summary")).json()
            assert summary == {"orders": 2, "spent": 340}
            assert (await client.get("/users/1")).json()["name"] == "Ann"
            assert (await client.get("/users/9")).status_code == 404
        assert (await client.get("/queries")).json() == 5
        placed = (await client.post("/users/1/orders", params={"total": 5})).json()
        assert placed["lists_invalidated"] == 2
        assert (await client.get("/users/1/orders/summary")).json()["orders"] == 3
        await client.put("/users/1", json={**ann, "name": "Anne"})
        assert (await client.get("/users/1")).json()["name"] == "Anne"
        assert (await client.get("/health/redis")).json() == {"status": "healthy"}
