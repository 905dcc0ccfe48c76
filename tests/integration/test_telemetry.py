"""What OpenTelemetry is told: every metric and span, read from in-memory exporters.

Documents are in process, the cache is a real Valkey or behind a proxy; each test has providers
of its own, so the numbers are exact.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from forze.application.contracts.cache import CacheSpec, L1Spec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
    TelemetrySpec,
)
from forze.application.integrations.document.coordinator import Coordinator
from forze.application.integrations.document.telemetry import TelemetryDepKey, open_telemetry
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument
from forze.errors import BackendUnavailable, ConfigurationError, NotFoundError
from forze.testing.proxy import RespProxy, command, script
from forze.testing.servers import ValkeyServer
from forze_memory import MemoryDepsModule
from forze_redis import RedisClient, RedisConfig, RedisDepsModule, redis_lifecycle_step
from forze_redis import cache as scripts

MINUTE = L1Spec(ttl=timedelta(seconds=60), capacity=8)
ABSENT = "018f0000-0000-7000-8000-000000000000"


class Item(Document):
    name: str


class ItemCreate(CreateDocumentCmd):
    name: str


class ItemUpdate(BaseDTO):
    name: str | None = None


class ItemRead(ReadDocument):
    name: str


Items = DocumentSpec[ItemRead, ItemCreate, ItemUpdate]


def items(**cache: Any) -> Items:
    """The document of these tests."""
    return DocumentSpec(
        name="items",
        read=ItemRead,
        write=DocumentWriteTypes(domain=Item, create_cmd=ItemCreate, update_cmd=ItemUpdate),
        cache=CacheSpec(name="items", **cache),
    )


class Watcher:
    """An application's OpenTelemetry, with what it exported at hand."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spec = TelemetrySpec(meter_provider=self.meters, tracer_provider=self.tracers)

    def points(self, name: str) -> list[Any]:
        """The points of one metric, as one collection gives them."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def values(self, name: str, by: str | None = None) -> Any:
        """The numbers of the items by an attribute; the one number where there is none."""
        found: dict[Any, float] = {}
        for point in self.points(name):
            assert isinstance(point, NumberDataPoint)
            assert point.attributes is not None
            left = {each: value for each, value in point.attributes.items() if each != by}
            assert left == {"forze.document": "items"}
            found[point.attributes.get(by or "")] = point.value
        return found if by is not None else found.get(None)

    def histogram(self, name: str) -> HistogramDataPoint | None:
        """The one distribution of a metric, None before anything was recorded."""
        points = self.points(name)
        assert len(points) <= 1
        return points[0] if points else None

    def spans(self, name: str) -> list[ReadableSpan]:
        """The spans of one name, in the order they ended."""
        return [each for each in self.exporter.get_finished_spans() if each.name == name]

    def outcomes(self, name: str) -> list[Any]:
        """What the spans of one name ended with."""
        return [(each.attributes or {}).get("forze.outcome") for each in self.spans(name)]


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    """Providers of this test's own."""
    watcher = Watcher()
    yield watcher
    watcher.meters.shutdown()
    watcher.tracers.shutdown()


@asynccontextmanager
async def app(
    dsn: str,
    spec: Items,
    telemetry: TelemetrySpec | bool,
    *,
    memory: MemoryDepsModule | None = None,
    client: RedisClient | None = None,
    push: bool = False,
    late: bool = False,
) -> AsyncIterator[ExecutionContext]:
    """Documents in process, cached over the wire."""
    config = {"namespace": "app:items", "invalidation_push": push}
    redis = RedisDepsModule(client=client or RedisClient(), caches={"items": config})
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(memory or MemoryDepsModule(caches=()), redis),
        lifecycle=LifecyclePlan.from_steps(
            redis_lifecycle_step(dsn=dsn, config=RedisConfig(heartbeat=0.1))
        ),
        specs=() if late else [spec],
        telemetry=telemetry,
    )
    async with runtime.scope() as ctx:
        yield ctx


async def until(holds: Callable[[], object]) -> None:
    """Wait until it holds, five seconds at most."""
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


def coordinator(ctx: ExecutionContext, spec: Items) -> Coordinator[ItemRead]:
    """Who reads the items."""
    found = ctx.document.query(spec)._coordinator
    assert found is not None
    return found


# -- metrics -------------------------------------------------------------------


async def test_reads_by_tier_and_their_ratios(valkey_dsn: str, watcher: Watcher) -> None:
    spec = items(l1=MINUTE)
    memory = MemoryDepsModule(caches=())
    async with app(valkey_dsn, spec, watcher.spec, memory=memory) as ctx:
        query, docs = ctx.document.query(spec), ctx.document.command(spec)
        assert watcher.values("forze.cache.hit_ratio", "tier") == {}, "of nothing there is no part"
        item = await docs.create(ItemCreate(name="a"))
        for _ in range(4):
            await query.get(item.id)
        tier = coordinator(ctx, spec).tier
        assert tier is not None
        tier.flush()
        await query.get(item.id)
        reads = watcher.values("forze.cache.reads", "tier")
        assert reads == {"l1": 3, "cache": 1, "source": 1, "shared": 0}
        ratios = watcher.values("forze.cache.hit_ratio", "tier")
        assert ratios == {"l1": 3 / 5, "cache": 1 / 2}
        assert watcher.values("forze.cache.fills", "outcome") == {
            "stored": 1, "refused": 0, "failed": 0, "uncacheable": 0
        }  # fmt: skip
        load = watcher.histogram("forze.cache.load.duration")
        assert load is not None
        assert load.count == 1
        stats = query.stats()
        assert stats is not None
        assert load.sum == pytest.approx(stats.load_seconds)
        assert dict(load.attributes or {}) == {"forze.document": "items"}


async def test_reads_that_share_a_flight(valkey_dsn: str, watcher: Watcher) -> None:
    spec = items()
    async with app(valkey_dsn, spec, watcher.spec) as ctx:
        item = await ctx.document.command(spec).create(ItemCreate(name="a"))
        query = ctx.document.query(spec)
        await asyncio.gather(*(query.get(item.id) for _ in range(5)))
        reads = watcher.values("forze.cache.reads", "tier")
        assert reads["source"] == 1
        assert reads["cache"] + reads["shared"] == 4
        assert "l1" not in reads
        assert watcher.values("forze.cache.staleness.bound", "none") == {}
        assert len(watcher.spans("forze.cache.load")) == 1


async def test_invalidations_by_cause(valkey_dsn: str, watcher: Watcher) -> None:
    spec = items(l1=MINUTE)
    memory = MemoryDepsModule(caches=())
    other = Watcher()
    async with (
        app(valkey_dsn, spec, watcher.spec, memory=memory, push=True) as a,
        app(valkey_dsn, spec, other.spec, memory=memory, push=True) as b,
    ):
        item = await a.document.command(spec).create(ItemCreate(name="a"))
        before = watcher.values("forze.cache.invalidations", "cause")
        assert before["write"] == before["undecodable"] == 0
        assert before["flush"] >= 1, "the connection came after the tier"
        item = await a.document.command(spec).update(item.id, item.rev, ItemUpdate(name="b"))
        await b.document.query(spec).get(item.id)

        def causes(of: Watcher) -> Any:
            return of.values("forze.cache.invalidations", "cause")

        assert causes(watcher)["write"] == 1
        assert causes(other)["write"] == 0
        await until(lambda: causes(other)["push"] >= 1)
        await until(lambda: causes(watcher)["push"] >= 1)  # the lease and the fill of b
        await b.document.command(spec).update(item.id, item.rev, ItemUpdate(name="c"))
        assert causes(other)["write"] == 1
        tier = coordinator(a, spec).tier
        assert tier is not None
        flushes = causes(watcher)["flush"]
        tier.flush()
        assert causes(watcher)["flush"] == flushes + 1


async def test_a_body_that_fits_no_longer(
    valkey_dsn: str, valkey: ValkeyServer, watcher: Watcher
) -> None:
    spec = items()
    async with app(valkey_dsn, spec, watcher.spec) as ctx:
        item = await ctx.document.command(spec).create(ItemCreate(name="a"))
        query = ctx.document.query(spec)
        await query.get(item.id)
        keys = [
            each for each in valkey.ask("KEYS", "*body*").decode().split("\r\n") if "/body/" in each
        ]
        valkey.ask("SET", keys[0], '{"name": 7}')
        await query.get(item.id)
        assert watcher.values("forze.cache.invalidations", "cause") == {
            "write": 0, "undecodable": 1
        }  # fmt: skip


async def test_what_the_tier_holds(valkey_dsn: str, watcher: Watcher) -> None:
    spec = items(l1=MINUTE)
    async with app(valkey_dsn, spec, watcher.spec) as ctx:
        docs, query = ctx.document.command(spec), ctx.document.query(spec)
        for name in "abcdefghij":
            await query.get((await docs.create(ItemCreate(name=name))).id)
        assert watcher.values("forze.cache.l1.size") == 8
        assert watcher.values("forze.cache.l1.capacity") == 8
        assert watcher.values("forze.cache.l1.evictions") == 2


async def test_the_staleness_bound_in_force(valkey_dsn: str, watcher: Watcher) -> None:
    """The ttl without pushes; with them their own bound, the smaller of the two; none at all
    while nothing is served."""
    short = L1Spec(ttl=timedelta(milliseconds=120))

    def bound() -> Any:
        return watcher.values("forze.cache.staleness.bound")

    async with app(valkey_dsn, items(l1=MINUTE), watcher.spec):
        assert bound() == 60
    async with app(valkey_dsn, items(l1=MINUTE), watcher.spec, push=True) as ctx:
        tier = coordinator(ctx, items(l1=MINUTE)).tier
        assert tier is not None
        assert bound() == pytest.approx(0.3), "three heartbeats"
        tier.trust(time.monotonic() - 1, 0.3)
        assert bound() == 0
    async with app(valkey_dsn, items(l1=short), watcher.spec, push=True):
        assert bound() == pytest.approx(0.12)
    assert bound() is None


async def test_a_cache_that_is_away(own_valkey: ValkeyServer, watcher: Watcher) -> None:
    spec = items()
    async with app(own_valkey.dsn, spec, watcher.spec) as ctx:
        docs, query = ctx.document.command(spec), ctx.document.query(spec)
        item = await docs.create(ItemCreate(name="a"))
        assert watcher.values("forze.cache.journal.size") == 0
        own_valkey.stop()
        await docs.update(item.id, item.rev, ItemUpdate(name="b"))
        assert (await query.get(item.id)).name == "b"
        assert watcher.values("forze.cache.journal.size") == 1
        assert watcher.values("forze.cache.failures", "operation")["intend"] == 1
        assert watcher.values("forze.cache.reads", "tier")["source"] == 1
        assert watcher.outcomes("forze.cache.invalidate") == ["owed"]


async def test_early_refreshes(valkey_dsn: str, watcher: Watcher) -> None:
    spec = items(early_refresh_beta=1e9)
    memory = MemoryDepsModule(caches=())
    async with app(valkey_dsn, spec, watcher.spec, memory=memory) as ctx:
        item = await ctx.document.command(spec).create(ItemCreate(name="a"))
        query = ctx.document.query(spec)
        await query.get(item.id)
        tracer = watcher.tracers.get_tracer("test")
        with tracer.start_as_current_span("request") as request:
            await query.get(item.id)
        assert watcher.values("forze.cache.refreshes", "outcome") == {"done": 1, "failed": 0}
        (span,) = watcher.spans("forze.cache.refresh")
        assert watcher.outcomes("forze.cache.refresh") == ["filled"]
        assert span.parent is None
        assert [each.context for each in span.links] == [request.get_span_context()]
        assert dict(span.attributes or {})["forze.document"] == "items"


async def test_the_latency_of_pushes(valkey_dsn: str, watcher: Watcher) -> None:
    """Measured when metrics are collected, without a trace in the counters of documents."""
    spec = items(l1=MINUTE)
    client = RedisClient()
    async with app(valkey_dsn, spec, watcher.spec, client=client, push=True) as ctx:
        await until(lambda: client.tracking.state == "on")
        began = time.monotonic()
        await until(lambda: watcher.histogram("forze.cache.push.latency"))
        point = watcher.histogram("forze.cache.push.latency")
        assert point is not None
        assert 0 < point.min <= point.max < time.monotonic() - began
        stats = ctx.document.query(spec).stats()
        assert stats is not None
        assert stats.pushes == 0
    assert [each for each in asyncio.all_tasks() if "forze" in each.get_name()] == []


async def test_nobody_collects_and_nothing_is_probed(valkey_dsn: str, watcher: Watcher) -> None:
    """Nor is the prefix of the probes followed, for which the server would pay a little."""
    spec = items(l1=MINUTE)
    client = RedisClient()
    async with app(valkey_dsn, spec, watcher.spec, client=client, push=True, late=True) as ctx:
        ctx.document.query(spec)
        await until(lambda: client.tracking.state == "on")
        await asyncio.sleep(0.05)
        (stream,) = client.tracking._streams.values()
        assert len(stream.asked) == 1
        watcher.values("forze.cache.l1.size")
        await until(lambda: len(stream.asked) == 2)


async def test_a_user_who_may_not_write_the_probe(
    own_valkey: ValkeyServer, watcher: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; the cache and its pushes are not concerned."""
    own_valkey.ask("ACL", "SETUSER", "narrow", "on", ">secret", "+@all", "~app:items/cache/*")
    dsn = own_valkey.dsn.replace("://", "://narrow:secret@")
    client, spec = RedisClient(), items(l1=MINUTE)

    def said() -> int:
        watcher.values("forze.cache.l1.size")
        return sum("latency of pushes" in each.getMessage() for each in caplog.records)

    async with app(dsn, spec, watcher.spec, client=client, push=True):
        await until(said)
        for _ in range(5):
            said()
            await asyncio.sleep(0.01)
        assert said() == 1
        assert client.tracking.state == "on"
    assert watcher.histogram("forze.cache.push.latency") is None


async def test_a_probe_whose_server_is_away(own_valkey: ValkeyServer, watcher: Watcher) -> None:
    """Neither an error nor a sample; and it goes on where the server is back."""
    spec = items(l1=MINUTE)
    client = RedisClient()
    async with app(own_valkey.dsn, spec, watcher.spec, client=client, push=True):
        await until(lambda: watcher.histogram("forze.cache.push.latency"))
        own_valkey.stop()
        await until(lambda: client.tracking.state == "down")
        measured = watcher.histogram("forze.cache.push.latency")
        assert measured is not None
        again = watcher.histogram("forze.cache.push.latency")
        assert again is not None
        assert again.count == measured.count


async def test_two_probes_hear_each_only_its_own(
    valkey: ValkeyServer, valkey_dsn: str, watcher: Watcher
) -> None:
    """Two clients of one process follow one prefix: a probe counts the key it wrote itself."""
    other, spec = Watcher(), items(l1=MINUTE)

    def pushes(of: Watcher) -> int:
        point = of.histogram("forze.cache.push.latency")
        return 0 if point is None else point.count

    async with (
        RespProxy(valkey.port) as proxy,
        app(valkey_dsn, spec, watcher.spec, push=True),
        app(proxy.dsn, spec, other.spec, push=True),
    ):
        await until(lambda: pushes(other))
        held = proxy.hold_request(command("SET"))
        before = pushes(other)
        await held.seen()
        heard = pushes(watcher)
        await until(lambda: pushes(watcher) >= heard + 3)
        assert pushes(other) == before
        held.release()
        await until(lambda: pushes(other) > before)


# -- scopes --------------------------------------------------------------------


async def test_sums_over_scopes_never_shrink(valkey_dsn: str, watcher: Watcher) -> None:
    """Two runtimes are summed; what one counted stays when it is left, what it holds does not."""
    spec, memory = items(l1=MINUTE), MemoryDepsModule(caches=())
    async with app(valkey_dsn, spec, watcher.spec, memory=memory) as a:
        item = await a.document.command(spec).create(ItemCreate(name="a"))
        await a.document.query(spec).get(item.id)
        async with app(valkey_dsn, spec, watcher.spec, memory=memory) as b:
            await b.document.query(spec).get(item.id)
            assert watcher.values("forze.cache.reads", "tier")["source"] == 1
            assert watcher.values("forze.cache.reads", "tier")["cache"] == 1
            assert watcher.values("forze.cache.l1.size") == 2
        assert watcher.values("forze.cache.reads", "tier")["cache"] == 1
        assert watcher.values("forze.cache.l1.size") == 1
    assert watcher.values("forze.cache.l1.size") is None
    reads = watcher.values("forze.cache.reads", "tier")
    assert reads == {"l1": 0, "cache": 1, "source": 1, "shared": 0}


async def test_collecting_in_another_thread(valkey_dsn: str, watcher: Watcher) -> None:
    """As exporters do it, while reads and scopes come and go."""
    failed: list[BaseException] = []
    ended = threading.Event()

    def collect() -> None:
        try:
            while not ended.wait(0.001):  # a loop without a pause would keep the interpreter
                watcher.values("forze.cache.reads", "tier")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for _ in range(3):
            async with app(valkey_dsn, items(l1=MINUTE), watcher.spec, push=True) as ctx:
                spec = items(l1=MINUTE)
                item = await ctx.document.command(spec).create(ItemCreate(name="a"))
                for _ in range(50):
                    await ctx.document.query(spec).get(item.id)
    finally:
        ended.set()
        thread.join()
    assert failed == []
    assert sum(watcher.values("forze.cache.reads", "tier").values()) == 150


# -- spans ---------------------------------------------------------------------


async def test_a_load_links_to_its_caller(valkey_dsn: str, watcher: Watcher) -> None:
    spec = items()
    async with app(valkey_dsn, spec, watcher.spec) as ctx:
        item = await ctx.document.command(spec).create(ItemCreate(name="a"))
        tracer = watcher.tracers.get_tracer("test")
        with tracer.start_as_current_span("request") as request:
            await ctx.document.query(spec).get(item.id)
        (span,) = watcher.spans("forze.cache.load")
        assert span.parent is None, "a flight belongs to no request"
        assert [each.context for each in span.links] == [request.get_span_context()]
        assert dict(span.attributes or {}) == {
            "forze.document": "items", "forze.outcome": "filled"
        }  # fmt: skip
        await ctx.document.query(spec).get(item.id)
        assert len(watcher.spans("forze.cache.load")) == 1, "a hit makes none"


async def test_an_invalidation_belongs_to_its_writer(valkey_dsn: str, watcher: Watcher) -> None:
    spec = items()
    async with app(valkey_dsn, spec, watcher.spec) as ctx:
        item = await ctx.document.command(spec).create(ItemCreate(name="a"))
        assert watcher.spans("forze.cache.invalidate") == []
        tracer = watcher.tracers.get_tracer("test")
        with tracer.start_as_current_span("request") as request:
            await ctx.document.command(spec).update(item.id, item.rev, ItemUpdate(name="b"))
        (span,) = watcher.spans("forze.cache.invalidate")
        assert span.parent is not None
        assert span.parent.span_id == request.get_span_context().span_id
        assert dict(span.attributes or {}) == {
            "forze.document": "items", "forze.outcome": "told", "forze.cache.keys": 1
        }  # fmt: skip


async def test_a_load_of_nothing_and_a_load_that_fails(
    valkey_dsn: str, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = items()
    async with app(valkey_dsn, spec, watcher.spec) as ctx:
        query = ctx.document.query(spec)
        with pytest.raises(NotFoundError):
            await query.get(ABSENT)

        async def fetch(*_: object, **__: object) -> dict[Any, ItemRead]:
            raise BackendUnavailable("the source is away", backend="source")

        monkeypatch.setattr(coordinator(ctx, spec).filler._store, "fetch", fetch)
        with pytest.raises(BackendUnavailable):
            await query.get(ABSENT)
    absent, failed = watcher.spans("forze.cache.load")
    assert watcher.outcomes("forze.cache.load") == ["absent", "failed"]
    assert absent.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "BackendUnavailable"


async def test_loads_around_a_write(
    valkey: ValkeyServer, valkey_dsn: str, watcher: Watcher
) -> None:
    """Past the cache while the write is in flight; from it where another process filled first;
    refused where a write came between lease and fill."""
    spec, memory = items(), MemoryDepsModule(caches=())
    other = Watcher()
    async with (
        RespProxy(valkey.port) as proxy,
        app(proxy.dsn, spec, watcher.spec, memory=memory) as a,
        app(valkey_dsn, spec, other.spec, memory=memory) as b,
    ):
        item = await b.document.command(spec).create(ItemCreate(name="a"))
        query = a.document.query(spec)
        held = proxy.hold_request(script(scripts.DONE))
        writing = asyncio.create_task(
            a.document.command(spec).update(item.id, item.rev, ItemUpdate(name="b"))
        )
        await held.seen()
        assert (await b.document.query(spec).get(item.id)).name == "b"
        assert other.outcomes("forze.cache.load") == ["bypassed"]
        held.release()
        item = await writing
        held = proxy.hold_request(script(scripts.FILL))
        reading = asyncio.create_task(query.get(item.id))
        await held.seen()
        waiting = asyncio.create_task(b.document.query(spec).get(item.id))
        await asyncio.sleep(0.02)
        held.release()
        await reading
        await waiting
        assert watcher.outcomes("forze.cache.load") == ["filled"]
        assert other.outcomes("forze.cache.load") == ["bypassed", "hit"]
        item = await b.document.command(spec).update(item.id, item.rev, ItemUpdate(name="c"))
        held = proxy.hold_request(script(scripts.FILL))
        reading = asyncio.create_task(query.get(item.id))
        await held.seen()
        await b.document.command(spec).update(item.id, item.rev, ItemUpdate(name="d"))
        held.release()
        assert (await reading).name == "c"
        assert watcher.outcomes("forze.cache.load") == ["filled", "refused"]
        assert watcher.values("forze.cache.fills", "outcome")["refused"] == 1


class Faulty(SpanProcessor):
    """An application's processor with a mistake in it."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.at == "start":
            raise ValueError("at the start")

    def on_end(self, span: ReadableSpan) -> None:
        if self.at == "end":
            raise ValueError("at the end")

    def __init__(self, at: str) -> None:
        self.at = at


@pytest.mark.parametrize("at", ["start", "end"])
async def test_tracing_that_fails_harms_nothing(
    valkey_dsn: str, watcher: Watcher, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    watcher.tracers.add_span_processor(Faulty(at))
    spec = items()
    async with app(valkey_dsn, spec, watcher.spec) as ctx:
        docs, query = ctx.document.command(spec), ctx.document.query(spec)
        item = await docs.create(ItemCreate(name="a"))
        assert (await query.get(item.id)).name == "a"
        await docs.update(item.id, item.rev, ItemUpdate(name="b"))
        assert (await query.get(item.id)).name == "b"
        assert watcher.values("forze.cache.journal.size") == 0
    assert len([each for each in caplog.records if each.name == "forze"]) == 3


# -- on and off ----------------------------------------------------------------


async def test_switched_off(
    valkey_dsn: str, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the runtime or by the environment, which has the last word."""
    spec = items(l1=MINUTE)
    async with app(valkey_dsn, spec, False) as ctx:
        assert not ctx.exists(TelemetryDepKey)
        assert coordinator(ctx, spec)._spans is None
        assert coordinator(ctx, spec).filler.on_load is None
    monkeypatch.setenv("FORZE_TELEMETRY", "Off")
    async with app(valkey_dsn, spec, watcher.spec, push=True) as ctx:
        item = await ctx.document.command(spec).create(ItemCreate(name="a"))
        await ctx.document.query(spec).get(item.id)
    assert watcher.reader.get_metrics_data() is None
    assert watcher.exporter.get_finished_spans() == ()
    monkeypatch.setenv("FORZE_TELEMETRY", "")
    async with app(valkey_dsn, spec, True) as ctx:
        assert ctx.exists(TelemetryDepKey), "on, where it is installed"


WITHOUT = """
import asyncio, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)

if {blocked}:
    sys.meta_path.insert(0, Blocker())

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, TelemetrySpec
from forze.domain.models import ReadDocument
from forze.errors import ConfigurationError
from forze_memory import MemoryDepsModule

if {blocked}:
    import forze_redis  # redis-py imports it by itself where it is installed

class Note(ReadDocument):
    text: str

SPEC = DocumentSpec(name="notes", read=Note, cache=CacheSpec(name="notes"))

async def main(telemetry):
    deps = DepsPlan.from_modules(MemoryDepsModule())
    async with ExecutionRuntime(deps=deps, specs=[SPEC], telemetry=telemetry).scope():
        pass

asyncio.run(main({wanted}))
print(*sorted(name for name in sys.modules if name.startswith("opentelemetry")))
if {blocked}:
    try:
        asyncio.run(main(TelemetrySpec()))
    except ConfigurationError as error:
        print(error)
"""


def _ran(*, blocked: bool, wanted: bool) -> list[str]:
    code = WITHOUT.format(blocked=blocked, wanted=wanted)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_where_it_is_not_installed() -> None:
    loaded, refused = _ran(blocked=True, wanted=True)
    assert loaded == ""
    assert "forze[otel]" in refused


def test_nothing_is_imported_where_it_is_switched_off() -> None:
    assert _ran(blocked=False, wanted=False) == [""]
    assert "opentelemetry.metrics" in _ran(blocked=False, wanted=True)[0]


def test_a_provider_set_later_is_told() -> None:
    """The process's own providers, the usual case: set before the runtime or after it began."""
    code = """
import asyncio, json, uuid
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.execution import DepsPlan, ExecutionRuntime, TelemetrySpec
from forze.domain.models import ReadDocument
from forze_memory import MemoryDepsModule

class Note(ReadDocument):
    text: str

SPEC = DocumentSpec(name="notes", read=Note, cache=CacheSpec(name="notes"))
SOME = uuid.uuid4()

async def main():
    deps = DepsPlan.from_modules(MemoryDepsModule())
    reader = InMemoryMetricReader()
    async with ExecutionRuntime(deps=deps, specs=[SPEC]).scope():
        provider = MeterProvider([reader])
        metrics.set_meter_provider(provider)
        assert "forze.cache.reads" in reader.get_metrics_data().to_json()
    async with ExecutionRuntime(deps=deps, specs=[SPEC]).scope():
        assert reader.get_metrics_data().to_json().count('"forze.cache.reads"') == 1
    spec = TelemetrySpec(meter_provider=provider)
    async with ExecutionRuntime(deps=deps, specs=[SPEC], telemetry=spec).scope() as ctx:
        await ctx.document.query(SPEC).get_many([SOME], missing="skip")
        data = reader.get_metrics_data().to_json()
        assert data.count('"forze.cache.reads"') == 1
        assert "forze.cache.load.duration" in data
        (reads,) = [
            point["value"]
            for metric in json.loads(data)["resource_metrics"][0]["scope_metrics"][0]["metrics"]
            for point in metric["data"]["data_points"]
            if metric["name"] == "forze.cache.reads" and point["attributes"]["tier"] == "source"
        ]
        assert reads == 1

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_explicit_wish_that_cannot_be_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "forze.application.integrations.document.telemetry._installed", lambda: False
    )
    assert open_telemetry(True) is None
    with pytest.raises(ConfigurationError, match="opentelemetry-api"):
        open_telemetry(TelemetrySpec())


# -- the documentation ---------------------------------------------------------


async def test_the_documentation_names_every_metric(valkey_dsn: str, watcher: Watcher) -> None:
    """With its unit, and no metric that does not exist."""
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    rows = re.findall(
        r"^\| `(forze\.cache\.[\w.]+)`(?:, `(\.\w+)`)? \| [\w -]+, `([^`]+)`", page, re.M
    )
    documented = {name: unit for name, _, unit in rows}
    for name, more, unit in rows:
        if more:
            documented[name.rpartition(".")[0] + more] = unit
    spec, exported = items(l1=MINUTE), {}
    async with app(valkey_dsn, spec, watcher.spec, push=True) as ctx:
        item = await ctx.document.command(spec).create(ItemCreate(name="a"))
        await ctx.document.query(spec).get(item.id)
        await until(lambda: watcher.histogram("forze.cache.push.latency"))
        data = watcher.reader.get_metrics_data()
        assert data is not None
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            exported[metric.name] = metric.unit
            assert metric.description
    assert documented == exported
