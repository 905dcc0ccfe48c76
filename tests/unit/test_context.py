"""The context: ports by spec, the same each time, and one name for one spec."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.document import DocumentSpec
from forze.application.contracts.tenancy import current_tenant
from forze.application.execution import DepsPlan, ExecutionContext, ExecutionRuntime
from forze.domain.models import CreateDocumentCmd, Document, ReadDocument
from forze.errors import ConfigurationError
from forze_memory import MemoryDepsModule

CACHE = CacheSpec(name="things")
WRITE = {"domain": Document, "create_cmd": CreateDocumentCmd}
THINGS: DocumentSpec[Any, Any, Any] = DocumentSpec(
    name="things", read=ReadDocument, write=WRITE, cache=CACHE
)


@asynccontextmanager
async def context(**fields: Any) -> AsyncIterator[ExecutionContext]:
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(MemoryDepsModule(**fields)))
    async with runtime.scope() as ctx:
        yield ctx


async def test_one_spec_is_one_port() -> None:
    async with context() as ctx:
        assert ctx.cache(CACHE) is ctx.cache(CACHE)
        assert ctx.cache(CacheSpec(name="things")) is ctx.cache(CACHE)
        assert ctx.cache(CacheSpec(name="others")) is not ctx.cache(CACHE)
        assert ctx.document.query(THINGS) is ctx.document.query(THINGS)
        assert ctx.document.command(THINGS) is ctx.document.command(THINGS)


async def test_the_older_spelling_is_the_same_ports() -> None:
    async with context() as ctx:
        assert ctx.doc_query(THINGS) is ctx.document.query(THINGS)
        assert ctx.doc_command(THINGS) is ctx.document.command(THINGS)


async def test_resolving_equal_specs_again_and_again_keeps_nothing() -> None:
    async with context() as ctx:
        for _ in range(100):
            ctx.cache(CacheSpec(name="things"))
        assert len(ctx._ports) == 1


async def test_two_specs_of_one_name_are_refused() -> None:
    longer = CacheSpec(name="things", ttl=timedelta(hours=1))
    async with context() as ctx:
        ctx.cache(CACHE)
        with pytest.raises(ConfigurationError, match=r"two different CacheSpecs .* 'things'"):
            ctx.cache(longer)
        ctx.document.query(THINGS)
        other: DocumentSpec[Any, Any, Any] = DocumentSpec(name="things", read=ReadDocument)
        for port in (ctx.document.query, ctx.document.command):
            with pytest.raises(
                ConfigurationError, match=r"two different DocumentSpecs .* 'things'"
            ):
                port(other)
        assert ctx.cache(CACHE) is not None


async def test_a_documents_cache_and_a_direct_one_are_one_spec() -> None:
    async with context() as ctx:
        ctx.cache(CacheSpec(name="things", ttl=timedelta(hours=1)))
        with pytest.raises(ConfigurationError, match="CacheSpecs"):
            ctx.document.query(THINGS)


async def test_unknown_names_are_refused_with_those_that_exist() -> None:
    async with context(documents=["a"], caches=["b"], tx=["c"]) as ctx:
        with pytest.raises(ConfigurationError, match="'things'; registered are: b"):
            ctx.cache(CACHE)
        with pytest.raises(ConfigurationError, match="'things'; registered are: a"):
            ctx.document.query(THINGS)
        with pytest.raises(ConfigurationError, match="'things'; registered are: c") as info:
            ctx.transaction("things")
        assert (info.value.name, info.value.known) == ("things", ("c",))


async def test_a_document_without_cache_has_none_to_ask_for() -> None:
    async with context() as ctx:
        with pytest.raises(ConfigurationError, match=r"no cache; add cache=CacheSpec"):
            ctx.cache(None)


async def test_store_and_cache_must_agree_on_tenants() -> None:
    for documents, caches in (
        ({"things": {"tenant_aware": True}}, None),
        (None, {"things": {"tenant_aware": True}}),
    ):
        async with context(documents=documents, caches=caches) as ctx:
            with pytest.raises(ConfigurationError, match="tenant-aware and the other is not"):
                ctx.document.query(THINGS)


async def test_wrong_configs_name_what_is_wrong() -> None:
    for fields, word in (
        ({"documents": {"a": {"tenant": True}}}, "tenant"),
        ({"caches": {"a": {"namspace": "x"}}}, "namspace"),
        ({"caches": {"a": {"namespace": ""}}}, "namespace"),
        ({"caches": {"a": {"max_value_bytes": 0}}}, "max_value_bytes"),
        ({"documents": {"a": {"relation": ""}}}, "relation"),
        ({"documents": {"a": "b"}}, "a"),
        ({"documents": "products"}, "several names"),
        ({"tx": "products"}, "several names"),
    ):
        with pytest.raises(ConfigurationError, match=word):
            MemoryDepsModule(**fields)


async def test_background_work_holds_no_request() -> None:
    async with context() as ctx:
        with ctx.bind_tenant("a"):

            async def who() -> str | None:
                return current_tenant()

            assert await who() == "a"
            assert await ctx.spawn(who(), name="who") is None


async def test_a_cancelled_caller_leaves_background_work_alone() -> None:
    async with context() as ctx:
        go_on = asyncio.Event()

        async def work() -> str:
            await go_on.wait()
            return "done"

        task = ctx.spawn(work(), name="work")
        waiter = asyncio.ensure_future(asyncio.shield(task))
        await asyncio.sleep(0)
        waiter.cancel()
        go_on.set()
        assert await task == "done"
