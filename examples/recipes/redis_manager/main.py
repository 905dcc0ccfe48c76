"""Serves the application beside a Celery worker, makes requests, and prints what came of them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from forze.testing.servers import Server, ValkeyServer
from forze.testing.serving import client_of

HERE = os.path.dirname(os.path.abspath(__file__))


class Worker(Server):
    """A Celery worker with two processes; a server like Valkey: it never outlives this program."""

    name = "Worker"

    @property
    def dsn(self) -> str:
        """Where it takes its tasks from."""
        return os.environ["CELERY_BROKER_URL"]

    def _command(self) -> list[str]:
        celery = ("celery", "--app", "app.core.celery", "--workdir", HERE, "worker")
        options = ("--concurrency", "2", "--without-gossip", "--without-mingle", "--loglevel=info")
        return ["env", f"TMPDIR={self.directory}", sys.executable, "-m", *celery, *options]

    def _ready(self) -> bool:
        return " ready." in (self.directory / "server.log").read_text()


async def run(valkey: ValkeyServer, worker: Worker) -> None:
    """The story."""
    starting = asyncio.create_task(asyncio.to_thread(worker.start))
    try:
        async with served() as client:
            await profiles(client)
            await late_fill(client)
            await limits(client)
            await sessions(client)
            await visits(client)
            await starting
            await tasks(client)
            await outage(client, valkey)
    finally:
        if worker.running:  # it leads a group of its own, and has nothing to finish
            os.killpg(worker.pid, signal.SIGKILL)


async def profiles(client: httpx.AsyncClient) -> None:
    """Cached, invalidated, invalidated by a pattern."""
    from app.core.redis import redis_manager
    from app.database import users

    first = await told(client, "GET", "/users/7")
    again = await told(client, "GET", "/users/7")
    assert first.json() == again.json()
    print(f"-- the database was asked {users.queries} time(s)")
    await told(client, "PUT", "/users/7", params={"name": "Anna"})
    await told(client, "GET", "/users/7")
    await told(client, "GET", "/users/70")
    for what in ("cart", "orders"):
        await redis_manager.set_async(f"user:7:{what}", "[]")
    await told(client, "DELETE", "/users/7/caches")
    print(f"-- of user 70 there is still: {await redis_manager.get_async('user:70:profile')}")


async def late_fill(client: httpx.AsyncClient) -> None:
    """What removing a key cannot do: the reader before the write fills after it."""
    from app.core.redis import redis_manager
    from app.database import users

    users.answers.clear()
    asked = users.queries
    slow = asyncio.create_task(client.get("/users/7"))
    async with asyncio.timeout(20):
        while users.queries == asked:  # noqa: ASYNC110 # it notifies nobody
            await asyncio.sleep(0.005)
    await told(client, "PUT", "/users/7", params={"name": "Annabel"})
    users.answers.set()
    await slow
    stale = (await told(client, "GET", "/users/7")).json()["name"]
    print(f"-- a slow reader put {stale!r} back after the change: for five minutes, or until")
    await redis_manager.delete_async("user:7:profile")
    await told(client, "GET", "/users/7")


async def limits(client: httpx.AsyncClient) -> None:
    """Two hundred at once, ten a minute."""
    answers = await asyncio.gather(
        *(client.get("/search", params={"user_id": 7}) for _ in range(200))
    )
    codes = Counter(each.status_code for each in answers)
    print(
        f"-- 200 at once with a limit of 10: {codes[200]} went through, {codes[429]} were refused"
    )
    refused = next(each for each in answers if each.status_code == 429)
    print(f"   {refused.json()['detail']}; Retry-After: {refused.headers['retry-after']}")
    assert codes == {200: 10, 429: 190}


async def sessions(client: httpx.AsyncClient) -> None:
    """Rotated, ended, all ended."""
    first = await signed_in(client, 7)
    await told(client, "GET", "/me", first)
    rotated = session_of(await told(client, "POST", "/password", first))
    print("-- the id from before the change of password:")
    assert (await told(client, "GET", "/me", first)).status_code == 401
    print("-- the one from then on:")
    await told(client, "GET", "/me", rotated)
    others = [await signed_in(client, 7) for _ in range(2)]
    await told(client, "POST", "/sign-out", others[0])
    await told(client, "POST", "/sign-out-everywhere", rotated)
    assert (await told(client, "GET", "/me", others[1])).status_code == 401


async def visits(client: httpx.AsyncClient) -> None:
    """Redis's own commands."""
    for page in ("home", "about", "home"):
        answer = await client.post(f"/visits/{page}")
    print(f"-- counted with redis-py's client: {answer.json()}")
    assert answer.json() == {"about": 1, "home": 2}


async def tasks(client: httpx.AsyncClient) -> None:
    """A worker's process computes, the next takes it from the cache, and so does the web."""
    from app.core.celery import celery_app

    results = []
    for _ in range(2):
        answer = await told(client, "POST", "/reports/may")
        result = celery_app.AsyncResult(answer.json()["task"])
        results.append(await asyncio.to_thread(result.get, timeout=20))
    await told(client, "GET", "/reports/may")
    assert results[0] == results[1]
    print(f"-- two tasks, one result: {results[0]}")


async def outage(client: httpx.AsyncClient, valkey: ValkeyServer) -> None:
    """Without Redis."""
    await told(client, "GET", "/health/redis")
    await asyncio.to_thread(valkey.kill)
    print("-- Valkey is killed")
    assert (await told(client, "GET", "/health/redis")).status_code == 503
    await told(client, "GET", "/users/7")
    await told(client, "GET", "/search?user_id=7")
    await told(client, "POST", "/sign-in", json={"user_id": 7})
    await asyncio.to_thread(valkey.start)
    print("-- Valkey is back")
    await asyncio.sleep(1)  # it is looked for every second
    assert (await told(client, "GET", "/health/redis")).status_code == 200


async def signed_in(client: httpx.AsyncClient, user_id: int) -> str:
    """The id of a new session."""
    return session_of(await told(client, "POST", "/sign-in", json={"user_id": user_id}))


def session_of(answer: httpx.Response) -> str:
    """The id that an answer hands out. The cookie is for HTTPS only, so it is sent by hand here."""
    return answer.cookies["session"]


async def told(
    client: httpx.AsyncClient, method: str, url: str, session: str = "", **given: Any
) -> httpx.Response:
    """Make a request and print it with its answer."""
    client.cookies.clear()
    headers = {"Cookie": f"session={session}"} if session else {}
    answer = await client.request(method, url, headers=headers, **given)
    sent = {**given.get("params", {}), **given.get("json", {})}
    shown = " ".join(f"{name}={value}" for name, value in sent.items())
    print(f"{method} {url} {shown}".rstrip())
    print(f"    {answer.status_code} {answer.text}".rstrip(), flush=True)
    return answer


@asynccontextmanager
async def served() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which is served on a free port for as long."""
    from app.main import app

    async with client_of(app, log_level="error") as client:
        print(f"-- serving on {client.base_url}".rstrip("/"), flush=True)
        yield client


def main() -> None:
    """On servers that exist only for the run."""
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="    log: %(message)s")
    with ValkeyServer() as valkey:
        os.environ |= {"REDIS_CONNECTION_URL": valkey.dsn, "CELERY_BROKER_URL": valkey.dsn}
        worker = Worker()
        try:
            asyncio.run(run(valkey, worker))
        finally:
            worker.stop()
    print("all torn down")


if __name__ == "__main__":
    main()
