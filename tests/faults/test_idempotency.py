"""Duplicates, crashed and paused owners, lost replies: every operation takes effect once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import asyncpg
import pytest
from tests.faults.world import ask

from forze.application.contracts.idempotency import (
    Commit,
    IdempotencyPort,
    IdempotencySnapshot,
    IdempotencySpec,
)
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
)
from forze.errors import BackendUnavailable, FencedOut, IdempotencyInProgress
from forze.testing.proxy import RespProxy, command, script
from forze.testing.servers import RespServer, ValkeyServer
from forze_postgres import (
    PostgresClient,
    PostgresDepsModule,
    PostgresIdempotencyConfig,
    idempotency_table_sql,
    postgres_lifecycle_step,
)
from forze_redis import (
    RedisClient,
    RedisConfig,
    RedisDepsModule,
    RoutedRedisClient,
    redis_lifecycle_step,
    routed_redis_lifecycle_step,
)
from forze_redis import idempotency as scripts

WORKER = Path(__file__).with_name("idempotent_worker.py")
SPEC = IdempotencySpec(name="payments", lease=timedelta(seconds=3))
ANSWER = IdempotencySnapshot(201, "application/json", b"{}")
RECORD = "test:payments/op/k"
LOST = (scripts.CLAIM, scripts.COMPLETE, scripts.RELEASE, scripts.BEAT)


# -- processes -----------------------------------------------------------------


@contextmanager
def worker(
    server: RespServer, effects: Path, *keys: str, lease_ms: int = 1000, work_ms: int = 0
) -> Iterator[Popen[str]]:
    """A worker process that is gone afterwards."""
    process = Popen(
        [sys.executable, str(WORKER), server.dsn, str(lease_ms), str(effects), *keys],
        stdout=PIPE,
        text=True,
        env={**os.environ, "WORK_MS": str(work_ms)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: Popen[str]) -> list[str]:
    """The next line a worker prints."""
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_processes_that_race_take_effect_once(valkey: ValkeyServer, tmp_path: Path) -> None:
    valkey.ask("FLUSHALL")
    effects, keys = tmp_path / "effects", [f"k{number}" for number in range(40)]
    with (
        worker(valkey, effects, *keys, work_ms=2) as one,
        worker(valkey, effects, *reversed(keys), work_ms=2) as two,
        worker(valkey, effects, *keys[20:], *keys[:20], work_ms=2) as three,
    ):
        outputs = [each.communicate(timeout=30)[0] for each in (one, two, three)]
    charged = [each.split() for each in effects.read_text().splitlines()]
    assert sorted(key for key, _, _ in charged) == sorted(keys)
    by_key = {key: pid for key, pid, _ in charged}
    told = [each.split() for output in outputs for each in output.splitlines()]
    ended = [each for each in told if each[1] != "began"]
    assert len(ended) == 3 * len(keys)
    assert all(each[-1] == by_key[each[0]] for each in ended), "all were given the one answer"


def test_a_killed_owner_is_taken_over_when_its_lease_lapses(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    valkey.ask("FLUSHALL")
    effects = tmp_path / "effects"
    with worker(valkey, effects, "k", work_ms=60_000) as owner:
        assert line(owner) == ["k", "began", "1", "False"]
        with worker(valkey, effects, "k") as heir:
            owner.send_signal(signal.SIGKILL)
            assert line(heir) == ["k", "began", "2", "True"]
            assert line(heir)[:2] == ["k", "stored"]
    assert len(effects.read_text().splitlines()) == 1


def test_a_paused_owner_is_fenced_out(valkey: ValkeyServer, tmp_path: Path) -> None:
    """It wakes up, does its work, and is told; the effect can be refused by its generation."""
    valkey.ask("FLUSHALL")
    effects = tmp_path / "effects"
    with worker(valkey, effects, "k", lease_ms=600, work_ms=1500) as owner:
        assert line(owner) == ["k", "began", "1", "False"]
        owner.send_signal(signal.SIGSTOP)
        with worker(valkey, effects, "k", lease_ms=600) as heir:
            assert line(heir) == ["k", "began", "2", "True"]
            assert line(heir)[:2] == ["k", "stored"]
            heir_pid = str(heir.pid)
        owner.send_signal(signal.SIGCONT)
        assert line(owner)[:3] == ["k", "fenced", "out"]
    assert [each.split()[2] for each in effects.read_text().splitlines()] == ["2", "1"]
    assert ask(valkey, "HGET", "test:payments/charge/k", "body").decode() == heir_pid


def test_an_owner_that_works_is_not_taken_over(valkey: ValkeyServer, tmp_path: Path) -> None:
    valkey.ask("FLUSHALL")
    effects = tmp_path / "effects"
    with (
        worker(valkey, effects, "k", lease_ms=300, work_ms=900) as owner,
        worker(valkey, effects, "k", lease_ms=300, work_ms=900) as other,
    ):
        outputs = [each.communicate(timeout=20)[0] for each in (owner, other)]
    assert len(effects.read_text().splitlines()) == 1
    assert sum("replayed" in each for each in outputs) == 1


# -- replies -------------------------------------------------------------------


@asynccontextmanager
async def running(dsn: str, **config: Any) -> AsyncIterator[ExecutionContext]:
    """A process over the server at ``dsn``."""
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(client=RedisClient(), idempotency={"namespace": "test:payments"})
        ),
        lifecycle=LifecyclePlan.from_steps(
            redis_lifecycle_step(dsn=dsn, config=RedisConfig(**config))
        ),
    )
    async with runtime.scope() as ctx:
        yield ctx


@pytest.fixture
async def proxy(redis_server: RespServer, redis_dsn: str) -> AsyncIterator[RespProxy]:
    async with RespProxy(redis_server.port) as between:
        yield between


@pytest.fixture
async def port(proxy: RespProxy) -> AsyncIterator[IdempotencyPort]:
    async with running(proxy.dsn) as ctx:
        yield ctx.idempotency(SPEC)


def state(server: RespServer) -> Any:
    """The state of the one record."""
    return ask(server, "HGET", RECORD, "state")


async def becomes(server: RespServer, wanted: bytes) -> None:
    """Return when the record is in the state ``wanted``."""
    async with asyncio.timeout(2):
        while state(server) != wanted:
            await asyncio.sleep(0.01)


async def test_the_reply_of_every_call_may_be_lost(
    port: IdempotencyPort, proxy: RespProxy, redis_server: RespServer
) -> None:
    """The same attempt asks again and gets the same answer."""
    holds = {each.name: proxy.drop_reply(script(each)) for each in LOST}
    async with port.claim("op", "k", "h") as claim:
        assert claim.generation == 1
        assert await claim.complete(ANSWER) in (Commit.STORED, Commit.DEFERRED)
    await becomes(redis_server, b"completed")
    assert await port.begin("op", "k", "h") == ANSWER
    assert await port.begin("op", "freed", "h") is None
    await port.fail("op", "freed", "h")
    async with asyncio.timeout(2):
        while ask(redis_server, "HGET", "test:payments/op/freed", "state") != b"free":
            await asyncio.sleep(0.01)
    assert await port.begin("op", "beaten", "h") is None
    await holds["idempotency_beat"].seen()
    with pytest.raises(IdempotencyInProgress):
        await port.begin("op", "beaten", "h")
    assert await port.commit("op", "beaten", "h", ANSWER) is Commit.STORED
    assert {hold.count for hold in holds.values()} == {1}
    assert port.stats().fenced_out == 0


async def test_a_begin_that_never_hears_leaves_nothing(
    port: IdempotencyPort, proxy: RespProxy, redis_server: RespServer
) -> None:
    """Refused as not run; what it may have claimed is freed as soon as that can be said."""
    lost = proxy.drop_reply(script(scripts.CLAIM), times=2)
    with pytest.raises(BackendUnavailable, match="not run"):
        await port.begin("op", "k", "h")
    assert lost.count == 2
    await becomes(redis_server, b"free")


@pytest.mark.parametrize("held", ["request", "reply"])
@pytest.mark.parametrize("step", ["claim", "complete", "release"])
async def test_cancelled_on_the_wire(
    port: IdempotencyPort, proxy: RespProxy, redis_server: RespServer, held: str, step: str
) -> None:
    """Each command and each reply is held in turn and the caller cancelled there."""
    one = {"claim": scripts.CLAIM, "complete": scripts.COMPLETE, "release": scripts.RELEASE}[step]
    hold = getattr(proxy, f"hold_{held}")(script(one))

    async def request() -> None:
        await port.begin("op", "k", "h")
        if step == "release":
            await port.fail("op", "k", "h")
        else:
            await port.commit("op", "k", "h", ANSWER)

    task = asyncio.create_task(request())
    await hold.seen()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.release()
    await becomes(redis_server, b"completed" if step == "complete" else b"free")


async def test_a_heartbeat_under_way_revives_no_claim(
    proxy: RespProxy, redis_server: RespServer, redis_dsn: str
) -> None:
    """Its owner ends meanwhile without a word: the key is free after a lease."""
    brief = IdempotencySpec(name="brief", lease=timedelta(milliseconds=300))
    async with running(proxy.dsn) as ctx, running(redis_dsn) as other:
        held = proxy.hold_reply(script(scripts.BEAT))
        port = ctx.idempotency(brief)

        async def request() -> None:
            await port.begin("op", "k", "h")
            await held.seen()

        await asyncio.create_task(request())
        held.release()
        async with asyncio.timeout(5 * brief.lease.total_seconds()):
            while True:
                with suppress(IdempotencyInProgress):
                    assert await other.idempotency(brief).begin("op", "k", "h") is None
                    break
                await asyncio.sleep(0.02)


async def test_cancelled_while_subscribing(
    port: IdempotencyPort, proxy: RespProxy, redis_server: RespServer, redis_dsn: str
) -> None:
    """A duplicate that gives up while it begins to wait takes nothing with it."""
    async with running(redis_dsn) as ctx:
        owner = ctx.idempotency(SPEC)
        await owner.begin("op", "k", "h")
        patient = IdempotencySpec(name="patient", wait=timedelta(seconds=20))
        async with running(proxy.dsn) as other:
            hold = proxy.hold_request(command("SSUBSCRIBE"))
            task = asyncio.create_task(other.idempotency(patient).begin("op", "k", "h"))
            await hold.seen()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            hold.release()
            assert await owner.commit("op", "k", "h", ANSWER) is Commit.STORED
            assert await other.idempotency(patient).begin("op", "k", "h") == ANSWER


async def test_a_waiter_hears_of_what_it_missed(
    proxy: RespProxy, redis_server: RespServer, redis_dsn: str
) -> None:
    """The answer comes while its connection is gone: told by the reconnect, not by the lease."""
    patient = IdempotencySpec(name="patient", wait=timedelta(seconds=20))
    async with running(redis_dsn) as ctx, running(proxy.dsn) as other:
        owner = ctx.idempotency(SPEC)
        await owner.begin("op", "k", "h")
        subscribed = proxy.hold_reply(command("SSUBSCRIBE"))
        waiter = asyncio.create_task(other.idempotency(patient).begin("op", "k", "h"))
        await subscribed.seen()
        subscribed.release()
        await asyncio.sleep(0.05)
        proxy.refuse()
        proxy.cut()
        assert await owner.commit("op", "k", "h", ANSWER) is Commit.STORED
        await proxy.accept()
        async with asyncio.timeout(2):
            assert await waiter == ANSWER


async def test_a_lost_record_is_nobodys(port: IdempotencyPort, redis_server: RespServer) -> None:
    """Evicted or flushed under its owner: the answer is refused, never put back."""
    await port.begin("op", "k", "h")
    redis_server.ask("FLUSHALL")
    assert await port.commit("op", "k", "h", ANSWER) is Commit.FENCED_OUT
    assert state(redis_server) is None


async def test_an_outage_is_told_once(
    own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    """By name, once when it begins and once when it ends."""
    spec = IdempotencySpec(name="open", fail="open")
    caplog.set_level("INFO", "forze")
    async with running(own_valkey.dsn, socket_timeout=0.3) as ctx:
        port = ctx.idempotency(spec)
        own_valkey.kill()
        for key in "abc":
            assert await port.begin("op", key, "h") is None
            assert await port.commit("op", key, "h", ANSWER) is Commit.UNCLAIMED
        own_valkey.start()
        async with asyncio.timeout(5):
            while await port.begin("op", "k", "h") is None:
                if await port.commit("op", "k", "h", ANSWER) is Commit.STORED:
                    break
    told = [each.getMessage() for each in caplog.records if "'open'" in each.getMessage()]
    assert [("away" in each, "back" in each) for each in told] == [(True, False), (False, True)]


async def test_a_claim_stays_with_its_tenants_server(
    own_valkey: ValkeyServer, valkey: ValkeyServer, valkey_dsn: str
) -> None:
    """Kept up, answered and freed there, though none of it runs in the tenant's context; and
    two tenants with one key, on a server each, are two claims."""
    client = RoutedRedisClient(idle_after=timedelta(milliseconds=50))
    spec = IdempotencySpec(name="payments", lease=timedelta(milliseconds=300))
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(client=client, idempotency={"namespace": "test:payments"})
        ),
        lifecycle=LifecyclePlan.from_steps(
            routed_redis_lifecycle_step(dsn_of={"one": own_valkey.dsn, "two": valkey_dsn})
        ),
    )
    async with runtime.scope() as ctx:
        port = ctx.idempotency(spec)
        with ctx.bind_tenant("one"):
            await port.begin("op", "k", "h")
        with ctx.bind_tenant("two"):
            assert await port.begin("op", "k", "h") is None
            assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED
        for _ in range(10):
            await asyncio.sleep(0.05)
            with ctx.bind_tenant("one"), pytest.raises(IdempotencyInProgress):
                await port.begin("op", "k", "h")
        assert (state(own_valkey), state(valkey)) == (b"pending", b"completed")
        with ctx.bind_tenant("one"):
            assert await port.fail("op", "k", "h") is True
        assert (state(own_valkey), state(valkey)) == (b"free", b"completed")
        valkey.ask("FLUSHALL")
        for route in ("one", "two"):  # no tenant, and a server each all the same
            with client.route(route):
                assert await port.begin("op", "k", "h") is None
        with client.route("one"):
            assert await port.commit("op", "k", "h", ANSWER) is Commit.STORED
        assert (state(own_valkey), state(valkey)) == (b"completed", b"pending")


# -- PostgreSQL ----------------------------------------------------------------

TABLE = ("public", "idempotency")


@asynccontextmanager
async def on_postgres(dsn: str) -> AsyncIterator[tuple[ExecutionContext, PostgresClient]]:
    """A process whose records are in the database."""
    client = PostgresClient()
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            PostgresDepsModule(
                client=client, idempotency=PostgresIdempotencyConfig(table=TABLE), tx={"db"}
            )
        ),
        lifecycle=LifecyclePlan.from_steps(postgres_lifecycle_step(dsn=dsn)),
        specs=[SPEC],
    )
    async with runtime.scope() as ctx:
        yield ctx, client


@pytest.fixture
async def beside(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """The tables, and a connection beside the library's."""
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(idempotency_table_sql(TABLE))
    await connection.execute("CREATE TABLE effects (key text)")
    yield connection
    await connection.close()


async def _charge(client: PostgresClient, key: str) -> None:
    await client.rows("INSERT INTO effects VALUES ($1)", key, doing="charging", write=True)


async def _effects(connection: asyncpg.Connection[Any]) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM effects"))


async def test_effect_and_answer_stand_or_fall_together(
    postgres_dsn: str, beside: asyncpg.Connection[Any]
) -> None:
    """A crash at any point between: killed before its commit, both are gone."""
    async with on_postgres(postgres_dsn) as (ctx, client):
        port = ctx.idempotency(SPEC)
        with pytest.raises(BackendUnavailable):
            async with ctx.transaction("db"):
                await port.begin("op", "k", "h")
                await _charge(client, "k")
                assert await port.commit("op", "k", "h", ANSWER) is Commit.ENLISTED
                await beside.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE state = 'idle in transaction'"
                )
        assert await _effects(beside) == 0
        assert await beside.fetchval("SELECT state FROM idempotency") == "pending"
        await beside.execute("UPDATE idempotency SET lease_until = now() - interval '1 s'")
        async with port.claim("op", "k", "h") as claim, ctx.transaction("db"):
            assert claim.generation == 2
            await _charge(client, "k")
            await claim.complete(ANSWER)
        assert await _effects(beside) == 1
        assert await port.begin("op", "k", "h") == ANSWER


async def test_the_effect_of_a_stale_owner_is_rolled_back(
    postgres_dsn: str, beside: asyncpg.Connection[Any]
) -> None:
    async with on_postgres(postgres_dsn) as (slow, client), on_postgres(postgres_dsn) as (fast, _):
        async with slow.idempotency(SPEC).claim("op", "k", "h") as claim:
            await beside.execute("UPDATE idempotency SET lease_until = now() - interval '1 s'")
            heir = fast.idempotency(SPEC)
            assert await heir.begin("op", "k", "h") is None
            with pytest.raises(FencedOut):
                async with slow.transaction("db"):
                    await _charge(client, "k")
                    await claim.complete(ANSWER)
            assert claim.lost
        assert await _effects(beside) == 0
        assert await heir.commit("op", "k", "h", ANSWER) is Commit.STORED


async def test_nobody_waits_for_an_open_transaction(
    postgres_dsn: str, beside: asyncpg.Connection[Any]
) -> None:
    """Its lease may lapse meanwhile: the locked record is neither waited for nor taken."""
    async with on_postgres(postgres_dsn) as (ctx, _), on_postgres(postgres_dsn) as (other, _):
        port = ctx.idempotency(SPEC)
        await port.begin("op", "k", "h")
        await beside.execute("UPDATE idempotency SET lease_until = now() - interval '1 s'")
        async with ctx.transaction("db"):
            await port.commit("op", "k", "h", ANSWER)
            async with asyncio.timeout(1):
                with pytest.raises(IdempotencyInProgress):
                    await other.idempotency(SPEC).begin("op", "k", "h")
        assert await other.idempotency(SPEC).begin("op", "k", "h") == ANSWER


async def test_two_heirs_of_one_record(postgres_dsn: str, beside: asyncpg.Connection[Any]) -> None:
    """Of any number that find it lapsed at the same time one takes over."""
    async with on_postgres(postgres_dsn) as (ctx, _), on_postgres(postgres_dsn) as (other, _):
        await ctx.idempotency(SPEC).begin("op", "k", "h")
        for generation in range(2, 8):
            await beside.execute("UPDATE idempotency SET lease_until = now() - interval '1 s'")
            ports = [each.idempotency(SPEC) for each in (ctx, other)] * 6
            answers = await asyncio.gather(
                *(each.begin("op", "k", "h") for each in ports), return_exceptions=True
            )
            assert [each for each in answers if not isinstance(each, IdempotencyInProgress)] == [
                None
            ]
            assert await beside.fetchval("SELECT generation FROM idempotency") == generation


async def test_expired_records_are_removed(
    postgres_dsn: str, beside: asyncpg.Connection[Any]
) -> None:
    async with on_postgres(postgres_dsn) as (ctx, _):
        port = ctx.idempotency(SPEC)
        for key in "ab":
            await port.begin("op", key, "h")
            await port.commit("op", key, "h", ANSWER)
        await beside.execute("UPDATE idempotency SET expires_at = now() - interval '1 s'")
        async with port.claim("op", "a", "other") as claim:
            assert not claim.takeover, "what has expired is nobody's"
        await beside.execute(
            "UPDATE idempotency SET expires_at = now() - interval '1 s' WHERE record = 'op/b'"
        )
    async with on_postgres(postgres_dsn) as (ctx, _):
        await ctx.idempotency(SPEC).begin("op", "c", "h")
        async with asyncio.timeout(2):
            while await beside.fetchval("SELECT count(*) FROM idempotency") != 2:
                await asyncio.sleep(0.01)
