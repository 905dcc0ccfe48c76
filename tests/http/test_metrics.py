"""The OpenTelemetry instruments as a page for Prometheus."""

import subprocess
import sys

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import DepsPlan, ExecutionRuntime, TelemetrySpec
from forze.domain.models import CreateDocumentCmd, Document, ReadDocument
from forze.errors import ConfigurationError
from forze.testing.serving import client_of
from forze_fastapi import attach_metrics, runtime_lifespan
from forze_memory import MemoryDepsModule


class Note(Document):
    text: str


class NoteCreate(CreateDocumentCmd):
    text: str


class NoteRead(ReadDocument):
    text: str


NOTES = DocumentSpec(
    name="notes",
    read=NoteRead,
    write=DocumentWriteTypes(domain=Note, create_cmd=NoteCreate),
    cache=CacheSpec(name="notes"),
)


async def _read(runtime: ExecutionRuntime) -> None:
    """One load, then two reads of the cache."""
    ctx = runtime.get_context()
    note = await ctx.document.command(NOTES).create(NoteCreate(text="remember"))
    for _ in range(3):
        await ctx.document.query(NOTES).get(note.id)


def _value(answer: httpx.Response, name: str, **labels: str) -> float:
    """The one sample of this name and these labels."""
    assert answer.status_code == 200, answer.text
    (line,) = (
        line
        for line in answer.text.splitlines()
        if line.startswith(name + "{")
        and all(f'{key}="{value}"' in line for key, value in labels.items())
    )
    return float(line.rpartition(" ")[2])


async def test_metrics_for_prometheus() -> None:
    async def nobody() -> None:
        raise HTTPException(401)

    registry = CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(registry=registry)])
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule()),
        telemetry=TelemetrySpec(meter_provider=provider),
    )
    app = FastAPI(lifespan=runtime_lifespan(runtime), dependencies=[Depends(nobody)])
    attach_metrics(app, registry=registry)
    async with client_of(app) as client:
        await _read(runtime)
        plain = await client.get("/metrics")
        assert plain.headers["content-type"].startswith("text/plain")
        assert plain.headers["cache-control"] == "no-store"
        notes = {"forze_document": "notes"}
        assert _value(plain, "forze_cache_reads_total", tier="cache", **notes) == 2
        assert _value(plain, "forze_cache_load_duration_seconds_count", **notes) == 1
        assert "# TYPE forze_cache_reads_total counter" in plain.text

        await _read(runtime)
        scraper = {"accept": "application/openmetrics-text; version=1.0.0"}
        newer = await client.get("/metrics", headers=scraper)
        assert newer.headers["content-type"].startswith("application/openmetrics-text")
        assert newer.text.endswith("# EOF\n")
        assert _value(newer, "forze_cache_reads_total", tier="cache", **notes) == 4
    assert "/metrics" not in app.openapi()["paths"]
    provider.shutdown()


PROGRAM = """
import asyncio
from fastapi import FastAPI
from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.execution import DepsPlan, ExecutionRuntime
from forze.domain.models import CreateDocumentCmd, Document, ReadDocument
from forze_fastapi import attach_metrics
from forze_memory import MemoryDepsModule

NOTES = DocumentSpec(
    name="notes",
    read=ReadDocument,
    write=DocumentWriteTypes(domain=Document, create_cmd=CreateDocumentCmd),
    cache=CacheSpec(name="notes"),
)
runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule()))
app = FastAPI()
attach_metrics(app)
attach_metrics(FastAPI())  # a second application of the process

async def main():
    sent = []

    async def send(message):
        sent.append(message)

    async with runtime.scope() as ctx:
        note = await ctx.document.command(NOTES).create(CreateDocumentCmd())
        await ctx.document.query(NOTES).get(note.id)
        await app({"type": "http", "method": "GET", "path": "/metrics", "headers": []}, None, send)
    page = sent[1]["body"].decode()
    assert 'forze_cache_reads_total{forze_document="notes"' in page, page
    assert "python_info{" in page  # what else the process exports

asyncio.run(main())
"""


def test_where_nobody_set_a_provider() -> None:
    """In a process of its own: its provider is set once and for all."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_where_the_exporter_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.prometheus", None)
    with pytest.raises(ConfigurationError, match=r"install forze\[prometheus\]"):
        attach_metrics(FastAPI())
