"""The backends the batteries run on. A leg that cannot run says why; no other is ever skipped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

pytest.register_assert_rewrite("forze.testing.batteries")

from forze.application.execution import DepsPlan, ExecutionRuntime  # noqa: E402
from forze.testing.batteries import CacheLeg, DocumentLeg  # noqa: E402
from forze.testing.clock import ManualClock  # noqa: E402
from forze_memory import MemoryDepsModule  # noqa: E402

MAX_VALUE_BYTES = 1024 * 1024

MEMORY_DOCUMENTS = {
    "items": {},
    "summaries": {"relation": "items"},
    "owned_items": {"tenant_aware": True},
}
MEMORY_CACHES = {
    "things": {"namespace": "test:things"},
    "others": {"namespace": "test:others"},
    "owned_things": {"tenant_aware": True},
    "items": {},
    "summaries": {},
    "owned_items": {"tenant_aware": True},
}


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Closes what a leg opened."""
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def memory_cache_leg(stack: AsyncExitStack) -> CacheLeg:
    clock = ManualClock()
    module = MemoryDepsModule(documents=MEMORY_DOCUMENTS, caches=MEMORY_CACHES, clock=clock)

    async def pass_time(by: timedelta) -> None:
        clock.advance(by)

    return CacheLeg(
        ctx=await _running(stack, module),
        other=await _running(stack, module),
        max_value_bytes=MAX_VALUE_BYTES,
        pass_time=pass_time,
    )


@pytest.fixture
async def memory_document_leg(stack: AsyncExitStack) -> DocumentLeg:
    module = MemoryDepsModule(documents=MEMORY_DOCUMENTS, caches=MEMORY_CACHES)
    return DocumentLeg(ctx=await _running(stack, module), other=await _running(stack, module))


async def _running(stack: AsyncExitStack, *modules):
    runtime = ExecutionRuntime(deps=DepsPlan.from_modules(*modules))
    return await stack.enter_async_context(runtime.scope())


@pytest.fixture(params=["memory"])
def cache_leg(request: pytest.FixtureRequest) -> CacheLeg:
    return request.getfixturevalue(f"{request.param}_cache_leg")


@pytest.fixture(params=["memory"])
def document_leg(request: pytest.FixtureRequest) -> DocumentLeg:
    return request.getfixturevalue(f"{request.param}_document_leg")
