"""Liveness and readiness: what is away, what is slow, what can be done without."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException

from forze.application.contracts.health import HealthCheck, HealthDepKey
from forze.application.execution import Deps, DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.errors import BackendUnavailable, ConfigurationError
from forze.testing.proxy import RespProxy
from forze.testing.servers import ValkeyServer
from forze.testing.serving import client_of
from forze_fastapi import HealthProbe, attach_health, runtime_lifespan
from forze_memory import MemoryDepsModule
from forze_postgres import PostgresClient, PostgresDepsModule, postgres_lifecycle_step
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

INSIDE = "redis://app:hunter2@10.0.0.7"
ALWAYS = timedelta(0)


@dataclass(frozen=True)
class Said:
    """What a client says."""

    ok: bool
    error: str | None = None


class Resource:
    """One that answers as it is told to."""

    def __init__(self, answer: Said | Exception | None = None) -> None:
        self.answer = answer
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Said | None:
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def _check(
    name: str, ask: Callable[[], Awaitable[Said | None]], required: bool = True
) -> HealthCheck:
    return HealthCheck(name=name, ask=ask, required=required)


def _runtime(*checks: HealthCheck) -> ExecutionRuntime:
    routes = {f"check-{number}": check for number, check in enumerate(checks)}
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule(), lambda: Deps(routed={HealthDepKey: routes}))
    )


async def _report(runtime: ExecutionRuntime, **options: Any) -> tuple[str, dict[str, str]]:
    async with runtime.scope():
        report = await HealthProbe(runtime, **options).report()
    return report.status, {name: each.status for name, each in report.resources.items()}


async def test_what_is_required_decides() -> None:
    up, away, raising = Resource(), Resource(Said(False, INSIDE)), Resource(ValueError(INSIDE))
    both = _runtime(_check("db", up), _check("cache", away, required=False))
    assert await _report(both) == ("degraded", {"cache": "down", "db": "up"})
    assert (await _report(both, required={"cache"}))[0] == "down"
    assert (await _report(both, required={"db"}))[0] == "degraded"
    assert (await _report(_runtime(_check("db", raising))))[0] == "down"
    assert await _report(_runtime(_check("db", up), _check("cache", Resource(Said(True))))) == (
        "ok", {"cache": "up", "db": "up"}
    )  # fmt: skip
    assert await _report(_runtime()) == ("ok", {})


async def test_checks_of_ones_own_and_several_of_one_name() -> None:
    mail, one, two = Resource(), Resource(), Resource(Said(False))
    runtime = _runtime(_check("redis", one, required=False), _check("redis", two, required=False))
    optional = _check("mail", mail, required=False)
    assert await _report(runtime, checks=[optional]) == (
        "degraded", {"mail": "up", "redis": "down"}
    )  # fmt: skip
    status, _ = await _report(runtime, checks=[_check("redis", one)])
    assert status == "down"
    assert one.asked == 2  # one client, asked once each time


async def test_probes_of_a_moment_are_one_question() -> None:
    resource = Resource()
    runtime = _runtime(_check("db", resource))
    async with runtime.scope():
        probe = HealthProbe(runtime, fresh_for=timedelta(seconds=60))
        resource.gate.clear()
        asking = [asyncio.create_task(probe.report()) for _ in range(50)]
        while not resource.asked:
            await asyncio.sleep(0)
        asking[0].cancel()  # a caller that goes away takes nobody's answer along
        resource.gate.set()
        reports = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(reports[0], asyncio.CancelledError)
        assert {each.status for each in reports[1:] if not isinstance(each, BaseException)} == {
            "ok"
        }
        await probe.report()
        assert resource.asked == 1
        fresh = HealthProbe(runtime, fresh_for=ALWAYS)
        await fresh.report()
        await fresh.report()
        assert resource.asked == 3


async def test_what_hangs_is_slow_and_keeps_nobody_waiting() -> None:
    released, cancelled = asyncio.Event(), []

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                cancelled.append(True)

    up = Resource()
    runtime = _runtime(_check("stubborn", stubborn), _check("up", up))
    async with runtime.scope():
        probe = HealthProbe(runtime, budget=timedelta(milliseconds=50), fresh_for=ALWAYS)
        for _ in range(3):
            async with asyncio.timeout(10):
                report = await probe.report()
            assert report.status == "down"
            assert report.resources["stubborn"].status == "slow"
            assert report.resources["up"].status == "up"
        assert cancelled
        tasks = [each for each in asyncio.all_tasks() if each.get_name().endswith("stubborn")]
        assert len(tasks) == 1  # nobody asks again what has not answered
        released.set()
        await asyncio.wait(tasks)
        assert (await probe.report()).status == "ok"


async def test_a_check_that_goes_wrong_is_no_sign_of_life() -> None:
    class Ended(BaseException):
        """What no handler of exceptions sees."""

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def ended() -> None:
        raise Ended

    async def thinks_that_true_will_do() -> Any:
        return True

    runtime = _runtime(
        _check("cancelled", cancelled),
        _check("ended", ended),
        _check("mistaken", thinks_that_true_will_do),
    )
    assert await _report(runtime) == (
        "down", {"cancelled": "slow", "ended": "down", "mistaken": "down"}
    )  # fmt: skip


async def test_a_runtime_can_be_a_resource_of_another() -> None:
    cache = Resource()
    audit = _runtime(_check("cache", cache, required=False), _check("db", Resource()))
    other = HealthCheck(name="audit", ask=HealthProbe(audit, fresh_for=ALWAYS).report)
    shop = _runtime(other)
    assert await _report(shop) == ("down", {"audit": "down"})
    async with audit.scope():
        assert await _report(shop) == ("ok", {"audit": "up"})
        cache.answer = Said(False)  # it can be done without, so the whole of it is up
        assert await _report(shop) == ("ok", {"audit": "up"})


async def test_the_log_says_once_what_the_answer_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    resource = Resource(BackendUnavailable(INSIDE, backend="redis"))
    runtime = _runtime(_check("redis", resource))
    with caplog.at_level(logging.INFO, "forze.http"):
        async with runtime.scope():
            probe = HealthProbe(runtime, fresh_for=ALWAYS)
            for _ in range(3):
                assert "hunter2" not in str(await probe.report())
            resource.answer = None
            for _ in range(2):
                await probe.report()
    assert [each.getMessage() for each in caplog.records] == [
        f"health: redis is down: BackendUnavailable: {INSIDE}",
        "health: redis is back",
    ]


async def test_a_runtime_that_does_not_run_is_not_ready() -> None:
    runtime = _runtime(_check("db", Resource()))
    probe = HealthProbe(runtime)
    assert (await probe.report()).status == "stopped"
    for _ in range(2):
        async with runtime.scope():
            assert (await probe.report()).ready
        assert not (await probe.report()).ready


async def test_a_required_name_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"names 'reddis'; known are: redis"):
        await _report(_runtime(_check("redis", Resource())), required={"reddis"})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: HealthProbe("redis"),  # type: ignore[arg-type]
        lambda: HealthProbe(_runtime(), required="redis"),
        lambda: HealthProbe(_runtime(), budget=ALWAYS),
        lambda: HealthProbe(_runtime(), budget=0.5),  # type: ignore[arg-type]
        lambda: HealthProbe(_runtime(), fresh_for=timedelta(seconds=-1)),
        lambda: _check("a/b", Resource()),
        lambda: _check("", Resource()),
        lambda: HealthCheck(name="x", ask=None),  # type: ignore[arg-type]
    ],
)
def test_wrong_wiring(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        wrong()


async def test_over_http() -> None:
    async def nobody() -> None:
        raise HTTPException(401)

    db, cache = Resource(), Resource(Said(False, INSIDE))
    runtime = _runtime(_check("db", db), _check("cache", cache, required=False))
    app = FastAPI(lifespan=runtime_lifespan(runtime), dependencies=[Depends(nobody)])

    @app.get("/{everything:path}")
    async def everything(everything: str) -> str:
        return everything

    probe = attach_health(app, runtime, fresh_for=ALWAYS)
    async with client_of(app) as client:
        assert (await client.get("/other")).status_code == 401
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.headers["cache-control"]) == (200, "no-store")
        told = ready.json()
        assert told["resources"]["db"].pop("latency_ms") >= 0
        assert told == {
            "status": "degraded",
            "resources": {
                "cache": {"status": "down", "required": False},
                "db": {"status": "up", "required": True},
            },
        }
        assert (await client.get("/readyz/db")).status_code == 200
        assert (await client.get("/readyz/cache")).status_code == 503
        unknown = await client.get("/readyz/other")
        assert (unknown.status_code, unknown.json()["status"]) == (404, 404)
        assert (await client.head("/readyz")).status_code == 200

        db.answer = RuntimeError(INSIDE)
        down = await client.get("/readyz")
        assert (down.status_code, down.json()["status"]) == (503, "down")
        asked = db.asked + cache.asked
        live = await client.get("/livez")
        assert (live.status_code, live.json()) == (200, {"status": "ok"})
        assert db.asked + cache.asked == asked
        assert "hunter2" not in ready.text + down.text

        probe.drain()
        drained = await client.get("/readyz")
        assert (drained.status_code, drained.json()) == (
            503, {"status": "draining", "resources": {}}
        )  # fmt: skip
        assert (await client.get("/livez")).status_code == 200
    assert not any("readyz" in path for path in app.openapi()["paths"])


def _of_servers(redis: str, postgres: str | None, **resources: Any) -> ExecutionRuntime:
    client, database = RedisClient(), PostgresClient()
    modules: list[Any] = [RedisDepsModule(client=client, **resources)]
    steps = [redis_lifecycle_step(dsn=redis, client=client)]
    if postgres is not None:
        modules.append(PostgresDepsModule(client=database))
        steps.append(postgres_lifecycle_step(dsn=postgres, client=database))
    return ExecutionRuntime(
        deps=DepsPlan.from_modules(*modules), lifecycle=LifecyclePlan.from_steps(*steps)
    )


async def test_a_cache_can_be_done_without_and_a_counter_cannot(
    own_valkey: ValkeyServer, postgres_dsn: str
) -> None:
    caches = {"notes": {"namespace": "app:notes"}}
    refusing = {"notes": {"namespace": "app:notes", "on_outage": "refuse"}}
    counters = {"visits": {"namespace": "app:visits"}}
    runtimes = {
        "speed": _of_servers(own_valkey.dsn, postgres_dsn, caches=caches),
        "truth": _of_servers(own_valkey.dsn, None, caches=caches, counters=counters),
        "strict": _of_servers(own_valkey.dsn, None, caches=refusing),
    }
    lifespan = None
    for name, runtime in runtimes.items():
        lifespan = runtime_lifespan(runtime, then=lifespan, name=name)
    app = FastAPI(lifespan=lifespan)
    for name, runtime in runtimes.items():
        attach_health(app, runtime, ready=f"/{name}", fresh_for=ALWAYS)

    async with client_of(app) as client:
        for name in runtimes:
            assert (await client.get(f"/{name}")).json()["status"] == "ok"
        own_valkey.kill()
        degraded = await client.get("/speed")
        assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
        resources = degraded.json()["resources"]
        assert resources["postgres"]["status"] == "up"
        assert resources["redis"]["status"] in ("down", "slow")
        assert resources["redis"]["required"] is False
        assert str(own_valkey.port) not in degraded.text
        for name in ("truth", "strict"):
            assert (await client.get(f"/{name}")).status_code == 503
        own_valkey.restart()
        async with asyncio.timeout(20):
            for name in runtimes:
                while (await client.get(f"/{name}")).json()["status"] != "ok":
                    await asyncio.sleep(0.02)


async def test_a_server_that_hangs_costs_the_budget(valkey: ValkeyServer) -> None:
    async with RespProxy(valkey.port) as proxy:
        runtime = _of_servers(proxy.dsn, None, counters={"visits": {"namespace": "app:visits"}})
        app = FastAPI(lifespan=runtime_lifespan(runtime))
        attach_health(app, runtime, fresh_for=ALWAYS, budget=timedelta(milliseconds=100))
        async with client_of(app) as client:
            assert (await client.get("/readyz")).status_code == 200
            proxy.black_hole()
            answers = await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
            assert {each.status_code for each in answers} == {503}
            # Within the budget, not the second in which the client itself gives up.
            assert {each.json()["resources"]["redis"]["status"] for each in answers} == {"slow"}
            assert (await client.get("/livez")).status_code == 200


async def test_two_modules_on_one_client_are_one_resource() -> None:
    client = RedisClient()
    cache = RedisDepsModule(client=client, caches={"notes": {"namespace": "app:notes"}})
    counters = RedisDepsModule(client=client, counters={"visits": {"namespace": "app:visits"}})
    other = RedisDepsModule(client=RedisClient(), name="audit")
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(cache, counters, other))
    async with runtime.scope():
        report = await HealthProbe(runtime).report()
    assert {name: each.required for name, each in report.resources.items()} == {
        "redis": True, "redis:audit": False
    }  # fmt: skip
