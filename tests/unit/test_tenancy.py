"""What travels with a task, and with no other."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from uuid import uuid4

import pytest

from forze.application.contracts.tenancy import (
    bind_deadline,
    bind_principal,
    bind_tenant,
    current_deadline,
    current_principal,
    current_tenant,
    require_tenant,
)
from forze.errors import TenantRequired, ValidationError

Bind = Callable[[str], AbstractContextManager[None]]


def test_nothing_is_bound_at_first() -> None:
    assert (current_tenant(), current_principal(), current_deadline()) == (None, None, None)


def test_a_tenant_is_bound_for_a_block() -> None:
    tenant = uuid4()
    with bind_tenant(tenant):
        assert current_tenant() == str(tenant)
        assert require_tenant("cache 'a'") == str(tenant)
        with bind_tenant("inner"):
            assert current_tenant() == "inner"
        assert current_tenant() == str(tenant)
    assert current_tenant() is None


def test_a_block_left_by_an_exception_unbinds() -> None:
    with pytest.raises(KeyError), bind_tenant("a"), bind_principal("p"):
        raise KeyError
    assert (current_tenant(), current_principal()) == (None, None)


def test_tenant_and_principal_are_two_things() -> None:
    with bind_tenant("t"), bind_principal("p"):
        assert (current_tenant(), current_principal()) == ("t", "p")


@pytest.mark.parametrize("bind", [bind_tenant, bind_principal])
def test_the_empty_text_names_nobody(bind: Bind) -> None:
    with pytest.raises(ValidationError, match="not empty"), bind(""):
        raise AssertionError("entered")


def test_no_tenant_is_an_error_that_says_how_to_bind_one() -> None:
    with pytest.raises(TenantRequired, match=r"cache 'a'.*ctx\.bind_tenant") as info:
        require_tenant("cache 'a'")
    assert info.value.resource == "cache 'a'"


async def test_tasks_do_not_share_what_they_bind() -> None:
    ready = asyncio.Barrier(3)

    async def one(tenant: str) -> str | None:
        with bind_tenant(tenant):
            await ready.wait()
            await asyncio.sleep(0)
            return current_tenant()

    assert await asyncio.gather(*(one(name) for name in "abc")) == ["a", "b", "c"]
    assert current_tenant() is None


async def test_a_child_task_inherits_and_does_not_give_back() -> None:
    async def child() -> str | None:
        inherited = current_tenant()
        with bind_tenant("child"):
            await asyncio.sleep(0)
        return inherited

    with bind_tenant("parent"):
        assert await asyncio.create_task(child()) == "parent"
        assert current_tenant() == "parent"
        apart = asyncio.get_running_loop().create_task(child(), context=contextvars.Context())
        assert await apart is None


def test_deadlines_only_shorten() -> None:
    now = time.monotonic()
    with bind_deadline(timedelta(seconds=10)):
        outer = current_deadline()
        assert outer == pytest.approx(now + 10, abs=1)
        with bind_deadline(timedelta(seconds=60)):
            assert current_deadline() == outer
        with bind_deadline(timedelta(seconds=1)):
            assert current_deadline() == pytest.approx(now + 1, abs=0.5)
        assert current_deadline() == outer
    assert current_deadline() is None
