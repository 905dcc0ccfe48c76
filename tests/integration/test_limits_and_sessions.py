"""`check_rate_limit` and the sessions of the template: exact, atomic, and what an outage does."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI, HTTPException
from tests.integration.application import MODULES, TEMPLATE, core, elsewhere, importable
from tests.integration.recipes import RECIPES

from forze.testing.cluster import ValkeyCluster
from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of

DAY = 86_400


class Application(NamedTuple):
    """What the tests use of `app.core`."""

    directory: Path
    client: Any
    limits: Any
    sessions: Any

    async def admitted(self, user_id: int | str, limit: int, window: int, calls: int = 1) -> int:
        """How many of so many calls at once get through; all others must be refused."""
        check = self.limits.check_rate_limit
        answers = await asyncio.gather(
            *(check(user_id, limit, window) for _ in range(calls)), return_exceptions=True
        )
        refused = [each for each in answers if each is not None]
        assert {getattr(each, "status_code", each) for each in refused} <= {429}
        return calls - len(refused)

    async def refusal(self, *arguments: Any, **options: Any) -> HTTPException:
        """The error that the call ends with."""
        with pytest.raises(HTTPException) as refused:
            await self.limits.check_rate_limit(*arguments, **options)
        return refused.value


Start = Callable[[str], Awaitable[Application]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Import the application on a server; closed at the end."""
    opened = []

    async def on(dsn: str) -> Application:
        opened.append(importable(tmp_path, dsn))
        opened[-1].__enter__()
        client = await core("redis").redis_manager.get_async_client()
        return Application(tmp_path, client, core("rate_limit"), core("sessions"))

    yield on
    if opened:
        await core("redis").redis_manager.close()
        opened[-1].__exit__(None, None, None)


@pytest.fixture
async def app(start: Start, valkey_dsn: str) -> Application:
    return await start(valkey_dsn)


@pytest.fixture
async def own_app(start: Start, own_valkey: ValkeyServer) -> Application:
    return await start(own_valkey.dsn)


OTHER = """
import asyncio, sys
from app.core.rate_limit import check_rate_limit
from app.core.redis import redis_manager
from app.core.sessions import create_session, rotate_session

async def rush():
    print("begins", flush=True)
    calls = (check_rate_limit("u", 10, 600) for _ in range(100))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(each is None or each.status_code == 429 for each in answers), answers
    return answers.count(None)

async def chain(begun):
    at, count = await create_session(7, {}), 0
    while at := await rotate_session(at):
        count += 1
        if count == 3:
            begun.release()
    return count

async def rotate():
    begun = asyncio.Semaphore(0)
    chains = [asyncio.create_task(chain(begun)) for _ in range(4)]
    for _ in chains:
        await begun.acquire()
    print("begins", flush=True)
    return sum(await asyncio.gather(*chains))

async def main():
    while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
        print(await {"rush": rush, "rotate": rotate}[command](), flush=True)
    await redis_manager.close()

asyncio.run(main())
"""


class Other(NamedTuple):
    """The same application in another process."""

    process: subprocess.Popen[str]

    async def begins(self, command: str) -> Other:
        """Have it do something; when it has begun."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert await self._told() == "begins\n"
        return self

    async def ends(self) -> int:
        """What has come of it."""
        return int(await self._told())

    async def _told(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            return await asyncio.to_thread(self.process.stdout.readline)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[Other]:
    directory = tmp_path_factory.mktemp("other")
    with importable(directory, valkey.dsn):
        process = elsewhere(directory, OTHER)
    try:
        yield Other(process)
        process.communicate("", timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


async def commands(valkey: ValkeyServer, calls: Callable[[], Awaitable[Any]]) -> dict[str, int]:
    """How many commands of each name the server got during ``calls``."""
    valkey.ask("CONFIG", "RESETSTAT")
    await calls()
    stats = valkey.ask("INFO", "commandstats").decode()
    counted = dict(re.findall(r"cmdstat_([\w|]+):calls=(\d+)", stats))
    ours = {"config|resetstat", "info"}
    return {name: int(count) for name, count in counted.items() if name not in ours}


# -- rate limits


def retry_after(refused: HTTPException) -> int:
    assert refused.headers is not None
    return int(refused.headers["Retry-After"])


async def set_back(app: Application, key: str, seconds: float) -> None:
    """As if the calls had been made so many seconds earlier than they were."""
    stamps = [
        int(each) - round(seconds * 1_000_000) for each in await app.client.lrange(key, 0, -1)
    ]
    async with app.client.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        pipe.rpush(key, *stamps)
        pipe.pexpire(key, 100_000_000)
        await pipe.execute()


@pytest.mark.parametrize("name", MODULES)
def test_recipe_and_template_are_the_same(name: str) -> None:
    recipe = RECIPES / "redis_manager" / "app" / name
    assert recipe.read_text() == (TEMPLATE / MODULES[name]).read_text()


async def test_of_200_at_once_exactly_10_get_through(app: Application) -> None:
    assert await app.admitted(1, 10, 60, calls=200) == 10


async def test_of_200_in_two_processes_exactly_10_get_through(
    app: Application, other: Other
) -> None:
    rushing = await other.begins("rush")
    ours = await app.admitted("u", 10, 600, calls=100)
    assert ours + await rushing.ends() == 10


async def test_no_window_holds_more_wherever_it_begins(app: Application) -> None:
    key = "rate_limit:u:2:60"
    await app.limits.check_rate_limit("u", 2, 60)
    await set_back(app, key, 59)
    await app.limits.check_rate_limit("u", 2, 60)
    assert await app.admitted("u", 2, 60) == 0
    await set_back(app, key, 1)  # the first is a window ago, the second is not
    assert await app.admitted("u", 2, 60, calls=5) == 1
    assert retry_after(await app.refusal("u", 2, 60)) in range(30, 60)


async def test_against_every_call_of_the_last_window(app: Application) -> None:
    """Hours that pass at once: a call gets through where the last ten hours hold fewer than 4."""
    hour, key, now = 3600, "rate_limit:u:4:36000", 0
    granted: list[int] = []
    for step in (0, 0, 3, 0, 2, 4, 0, 1, 0, 0, 5, 5, 0, 2, 0, 9, 1, 0, 0, 11, 0, 0, 0, 0, 10, 0):
        if step:
            await set_back(app, key, step * hour)
            now += step
        expected = sum(at > now - 10 for at in granted) < 4
        assert await app.admitted("u", 4, 10 * hour) == expected
        granted += [now] * expected


async def test_a_refusal_writes_nothing(app: Application, valkey: ValkeyServer) -> None:
    await app.admitted("u", 3, 60, calls=3)
    before = await app.client.dump("rate_limit:u:3:60")
    expires = await app.client.pexpiretime("rate_limit:u:3:60")
    assert await app.admitted("u", 3, 60) == 0
    seen = await commands(valkey, lambda: app.admitted("u", 3, 60))
    assert set(seen) == {"evalsha", "time", "lindex", "llen"}
    assert await app.client.dump("rate_limit:u:3:60") == before
    assert await app.client.pexpiretime("rate_limit:u:3:60") == expires
    assert await app.client.keys("*") == ["rate_limit:u:3:60"]


async def test_a_call_is_one_round_trip_and_expires(app: Application, valkey: ValkeyServer) -> None:
    await app.admitted("u", 3, 60)
    seen = await commands(valkey, lambda: app.limits.check_rate_limit("u", 3, 60))
    assert seen["evalsha"] == 1
    inside = {"time", "lindex", "llen", "rpush", "pexpire"}
    assert set(seen) == {"evalsha", *inside}
    assert 30_000 < await app.client.pttl("rate_limit:u:3:60") <= 60_000
    assert await app.client.llen("rate_limit:u:3:60") == 2


async def test_a_clock_that_was_put_back_holds_nobody_up(app: Application) -> None:
    key = "rate_limit:u:3:60"
    await app.admitted("u", 3, 60, calls=3)
    await set_back(app, key, -3600)  # the calls are an hour ahead of the clock
    assert retry_after(await app.refusal("u", 3, 60)) in range(30, 61)
    assert 0 < await app.client.pttl(key) <= 60_000
    assert await app.admitted("u", 3, 60) == 0
    await set_back(app, key, 60)
    assert await app.admitted("u", 3, 60, calls=9) == 3


async def test_it_says_when_to_come_again(app: Application) -> None:
    await app.admitted("u", 1, 60)
    refused = await app.refusal("u", 1, 60)
    assert (refused.status_code, refused.detail) == (429, "Rate limit exceeded")
    assert retry_after(refused) in range(30, 61)
    await set_back(app, "rate_limit:u:1:60", 30.5)
    assert retry_after(await app.refusal("u", 1, 60)) in range(1, 31)


@pytest.mark.parametrize(("limit", "window"), [(0, 60), (-1, 60), (10, 0), (10, -5)])
async def test_no_limit_and_no_window_are_refused(
    app: Application, valkey: ValkeyServer, limit: int, window: int
) -> None:
    async def ask() -> None:
        with pytest.raises(ValueError, match="above 0"):
            await app.limits.check_rate_limit("u", limit, window)

    assert await commands(valkey, ask) == {}


async def test_users_and_limits_are_counted_apart(app: Application) -> None:
    long = "x" * 100_000
    users: list[int | str] = [7, "70", "7:2", "7:1:60", long, f"{long}y", "ü {7}", ""]
    for user_id in users:
        assert await app.admitted(user_id, 1, 60, calls=3) == 1, user_id
    assert await app.admitted(7, 2, 60, calls=5) == 2
    assert await app.admitted(7, 1, 61, calls=5) == 1
    assert await app.admitted("7", 1, 60) == 0
    assert max(map(len, await app.client.keys("*"))) < 100


async def test_callers_who_give_up_let_nobody_else_through(app: Application) -> None:
    tasks = [asyncio.create_task(app.admitted("u", 10, 60)) for _ in range(100)]
    for number, task in enumerate(tasks):
        if number % 2:
            await asyncio.sleep(0)
            task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(each, asyncio.CancelledError) for each in answers)
    later = await app.admitted("u", 10, 60, calls=20)
    assert sum(each for each in answers if isinstance(each, int)) + later <= 10
    assert await app.client.llen("rate_limit:u:10:60") == 10


async def test_over_http(app: Application) -> None:
    served = FastAPI()

    @served.get("/search/{user_id}")
    async def search(user_id: int) -> str:
        await app.limits.check_rate_limit(user_id, limit=3)
        return "found"

    async with client_of(served) as client:
        answers = await asyncio.gather(*(client.get("/search/1") for _ in range(20)))
    codes = [each.status_code for each in answers]
    assert (codes.count(200), codes.count(429)) == (3, 17)
    refused = answers[codes.index(429)]
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.json() == {"detail": "Rate limit exceeded"}


async def test_in_an_outage_calls_go_through_and_it_is_said_once(
    own_app: Application, own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = own_app
    assert await app.admitted("u", 1, 600, calls=2) == 1
    app.client.connection_pool.guard._pause = 0.1
    own_valkey.kill()
    with caplog.at_level(logging.WARNING, logger="app.core.rate_limit"):
        for _ in range(5):
            assert await app.admitted("u", 1, 600) == 1
        closed = await app.refusal("u", 1, 600, fail="closed")
        assert (closed.status_code, closed.headers) == (503, {"Retry-After": "1"})
        assert [each.levelname for each in caplog.records] == ["WARNING"]
        own_valkey.start()
        async with asyncio.timeout(20):
            while len(caplog.records) < 2:
                await app.admitted("u", 1, 600)
                await asyncio.sleep(0.05)
    assert caplog.messages[1] == "rate limits: Redis is back, calls are counted"
    assert await app.admitted("u", 1, 600) == 0


async def test_a_silent_server_is_away_after_a_second(
    own_app: Application, own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = own_app
    assert app.limits._SILENCE_SECONDS == app.sessions.SILENCE_SECONDS == 1
    monkeypatch.setattr(app.limits, "_SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(app.sessions, "SILENCE_SECONDS", 0.1)
    session_id = await app.sessions.create_session(7, {})
    assert await app.admitted("u", 1, 600, calls=2) == 1
    own_valkey.pause()
    async with asyncio.timeout(4):  # REDIS_SOCKET_TIMEOUT is 10
        with pytest.raises(HTTPException) as unavailable:
            await app.sessions.get_session(session_id)
        assert unavailable.value.status_code == 503
        assert await app.admitted("u", 1, 600, calls=20) == 20
    own_valkey.resume()


async def test_a_process_without_a_free_connection_lets_nobody_through_uncounted(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redis.exceptions import MaxConnectionsError

    async def none_free() -> None:
        raise MaxConnectionsError("all in use")

    monkeypatch.setattr(app.limits.redis_manager, "get_async_client", none_free)
    assert (await app.refusal("u")).status_code == 503


# -- sessions


def key_of(session_id: str) -> str:
    return f"session:{session_id[:22]}"


async def age(app: Application, session_id: str, seconds: float) -> None:
    """As if everything about this user's sessions had happened so many seconds earlier."""
    key = key_of(session_id)
    for field, session in (await app.client.hgetall(key)).items():
        until_unused, at_the_latest, data = session.split(" ", 2)
        ends = (int(each) - round(seconds * 1000) for each in (until_unused, at_the_latest))
        await app.client.hset(key, field, " ".join([*map(str, ends), data]))
    left = await app.client.pttl(key) - round(seconds * 1000)
    if left > 0:
        await app.client.pexpire(key, left)


async def test_a_session_is_what_it_was_made_of(app: Application) -> None:
    session_id = await app.sessions.create_session(7, {"theme": "dark", "cart": [1, None, "ü"]})
    expected = {"user_id": 7, "theme": "dark", "cart": [1, None, "ü"]}
    assert await app.sessions.get_session(session_id) == expected
    assert DAY - 50 <= await app.client.ttl(key_of(session_id)) <= DAY
    assert len({await app.sessions.create_session(7, {}) for _ in range(50)}) == 50


async def test_data_does_not_make_somebody_else_of_a_user(app: Application) -> None:
    session_id = await app.sessions.create_session(7, {"user_id": 1, "name": "Eve"})
    assert await app.sessions.get_session(session_id) == {"user_id": 7, "name": "Eve"}
    assert await app.sessions.revoke_all(1) == 0


async def test_what_redis_holds_opens_no_session(app: Application, valkey: ValkeyServer) -> None:
    sessions = app.sessions
    session_id = await sessions.rotate_session(await sessions.create_session(7, {"theme": "dark"}))
    (key,) = await app.client.keys("*")
    held = json.dumps([key, await app.client.hgetall(key)])
    assert sha256(session_id.encode()).hexdigest() in held
    assert session_id not in held
    assert session_id[22:] not in held
    (field,) = await app.client.hkeys(key)
    for guess in (field, key, key.removeprefix("session:"), session_id[:22] + field[:43]):
        assert await sessions.get_session(guess) is None


@pytest.mark.parametrize(
    "session_id",
    ["", "x", "x" * 64, "x" * 66, "x" * 1_000_000, "x" * 64 + "\n", "x" * 64 + "*", "ü" * 65,
     "٣" * 65, "x" * 64 + "\0", None, 7, b"x" * 65, "x" * 43],
    ids=lambda value: repr(value)[:12],
)  # fmt: skip
async def test_what_cannot_be_an_id_is_not_asked_for(
    app: Application, valkey: ValkeyServer, session_id: Any
) -> None:
    async def ask() -> None:
        assert await app.sessions.get_session(session_id) is None
        assert await app.sessions.rotate_session(session_id) is None
        await app.sessions.delete_session(session_id)

    assert await commands(valkey, ask) == {}


async def test_what_looks_like_an_id_is_asked_for_in_one_round_trip(
    app: Application, valkey: ValkeyServer
) -> None:
    forged = secrets.token_urlsafe(48) + "x"
    assert await app.sessions.get_session(forged) is None
    seen = await commands(valkey, lambda: app.sessions.get_session(forged))
    assert seen == {"evalsha": 1, "time": 1, "hget": 1}
    assert await app.sessions.rotate_session(forged) is None
    assert await app.client.keys("*") == []


async def test_use_prolongs_a_session_up_to_a_week(app: Application) -> None:
    session_id = await app.sessions.create_session(7, {})
    for _ in range(9):
        await age(app, session_id, 18 * 3600)
        assert await app.sessions.get_session(session_id) == {"user_id": 7}
    assert 0 < await app.client.ttl(key_of(session_id)) <= DAY / 4
    await age(app, session_id, DAY / 4)
    assert await app.sessions.get_session(session_id) is None


async def test_a_day_without_use_ends_it(app: Application) -> None:
    session_id = await app.sessions.create_session(7, {})
    other = await app.sessions.create_session(7, {})
    await age(app, session_id, DAY - 60)
    assert await app.sessions.get_session(other) == {"user_id": 7}
    await age(app, session_id, 61)
    assert await app.sessions.get_session(other) == {"user_id": 7}
    assert await app.sessions.get_session(session_id) is None
    assert await app.sessions.rotate_session(session_id) is None
    assert await app.sessions.revoke_all(7) == 1


async def test_reading_writes_once_a_minute_at_most(app: Application, valkey: ValkeyServer) -> None:
    session_id = await app.sessions.create_session(7, {})
    await app.sessions.get_session(session_id)
    seen = await commands(valkey, lambda: app.sessions.get_session(session_id))
    assert seen == {"evalsha": 1, "time": 1, "hget": 1, "pttl": 1}
    await age(app, session_id, 61)
    seen = await commands(valkey, lambda: app.sessions.get_session(session_id))
    assert seen["hset"] == seen["evalsha"] == 1
    assert DAY - 50 <= await app.client.ttl(key_of(session_id)) <= DAY


async def test_rotation_moves_the_session_and_not_its_end(app: Application) -> None:
    first = await app.sessions.create_session(7, {"theme": "dark"})
    await age(app, first, DAY / 2)
    second = await app.sessions.rotate_session(first)
    assert await app.sessions.get_session(first) is None
    assert await app.sessions.rotate_session(first) is None
    assert await app.sessions.get_session(second) == {"user_id": 7, "theme": "dark"}
    (session,) = (await app.client.hgetall(key_of(second))).values()
    seconds, _ = await app.client.time()
    until_unused, at_the_latest = (int(each) / 1000 - seconds for each in session.split()[:2])
    assert until_unused == pytest.approx(DAY, abs=50)
    assert at_the_latest == pytest.approx(6.5 * DAY, abs=50)


async def test_of_many_rotations_at_once_one_gets_the_session(app: Application) -> None:
    session_id = await app.sessions.create_session(7, {})
    answers = await asyncio.gather(*(app.sessions.rotate_session(session_id) for _ in range(50)))
    (new_id,) = filter(None, answers)
    assert await app.sessions.get_session(new_id) == {"user_id": 7}
    assert await app.client.hlen(key_of(session_id)) == 1


async def test_signing_out_ends_this_session_alone(app: Application) -> None:
    first, second = [await app.sessions.create_session(7, {}) for _ in range(2)]
    await app.sessions.delete_session(first)
    await app.sessions.delete_session(first)
    assert await app.sessions.get_session(first) is None
    assert await app.sessions.get_session(second) == {"user_id": 7}


async def test_revoking_ends_all_of_one_user(app: Application) -> None:
    create, get = app.sessions.create_session, app.sessions.get_session
    theirs = [await create("ann", {}) for _ in range(3)]
    other = await create("ann ", {})
    await app.sessions.delete_session(theirs[0])
    assert await app.sessions.revoke_all("ann") == 2
    assert await app.sessions.revoke_all("ann") == 0
    assert [await get(each) for each in theirs] == [None, None, None]
    assert await get(other) == {"user_id": "ann "}
    assert await get(await create("ann", {})) == {"user_id": "ann"}
    await create(7, {})
    assert await app.sessions.revoke_all("7") == 1


async def test_nothing_that_is_being_rotated_survives(app: Application, other: Other) -> None:
    """A process that does nothing but rotate: revoked once, none of its sessions is left."""
    rotating = await other.begins("rotate")
    assert await app.sessions.revoke_all(7) == 4
    assert await rotating.ends() >= 12
    assert await app.client.keys("*") == []


async def test_what_is_made_during_a_revocation_is_ended_or_came_after_it(app: Application) -> None:
    made: list[str] = []

    async def make() -> None:
        for _ in range(40):
            made.append(await app.sessions.create_session(7, {}))  # noqa: PERF401 # seen at once

    makers = [asyncio.create_task(make()) for _ in range(4)]
    ended, before = 0, 0
    while not all(each.done() for each in makers):
        known = made[before:]
        ended += await app.sessions.revoke_all(7)
        assert [await app.sessions.get_session(each) for each in known] == [None] * len(known)
        before += len(known)
    ended += await app.sessions.revoke_all(7)
    assert ended == len(made) == 160


async def test_ended_sessions_do_not_pile_up(app: Application) -> None:
    session_id = await app.sessions.create_session(0, {})
    for _ in range(50):
        await app.sessions.create_session(0, {})
    await age(app, session_id, DAY + 1)
    for _ in range(40):
        await app.sessions.create_session(0, {})
    assert await app.client.hlen(key_of(session_id)) < 60
    assert await app.sessions.revoke_all(0) == 40


async def test_in_an_outage_nobody_is_signed_out_and_nobody_let_in(
    own_app: Application, own_valkey: ValkeyServer
) -> None:
    sessions = own_app.sessions
    session_id = await sessions.create_session(7, {})
    own_valkey.kill()
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: sessions.get_session(session_id),
        lambda: sessions.create_session(7, {}),
        lambda: sessions.rotate_session(session_id),
        lambda: sessions.delete_session(session_id),
        lambda: sessions.revoke_all(7),
    ]
    for call in calls:
        with pytest.raises(HTTPException) as unavailable:
            await call()
        assert unavailable.value.status_code == 503
        assert unavailable.value.headers == {"Retry-After": "1"}
        assert str(own_valkey.port) not in unavailable.value.detail


async def test_on_a_cluster(start: Start, valkey_cluster: ValkeyCluster) -> None:
    app = await start(valkey_cluster.dsn.replace("redis://", "redis+cluster://"))
    users = [secrets.token_hex(4) for _ in range(10)]  # over all nodes
    for user_id in users:
        assert await app.admitted(user_id, 3, 60, calls=9) == 3
        first = await app.sessions.create_session(user_id, {})
        second = await app.sessions.rotate_session(first)
        assert await app.sessions.get_session(first) is None
        assert await app.sessions.get_session(second) == {"user_id": user_id}
        assert await app.sessions.revoke_all(user_id) == 1


def test_the_environment_is_left_as_it_was(tmp_path: Path, valkey_dsn: str) -> None:
    before = dict(os.environ)
    with importable(tmp_path, valkey_dsn):
        assert core("redis").redis_manager is not None
    assert dict(os.environ) == before
