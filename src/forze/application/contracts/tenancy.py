"""What travels with a task: tenant, principal, deadline.

Context variables, so that one context object serves every request of a process and a
background task inherits nothing it was not given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from typing import Any
from uuid import UUID

from forze.errors import TenantRequired, ValidationError

TENANT: ContextVar[str | None] = ContextVar("forze_tenant", default=None)
"""The tenant of a task; itself only for what cannot afford a call (:func:`current_tenant`)."""

PRINCIPAL: ContextVar[str | None] = ContextVar("forze_principal", default=None)
"""The principal of a task; likewise."""

_deadline: ContextVar[float | None] = ContextVar("forze_deadline", default=None)

TRAVELLING: tuple[ContextVar[Any], ...] = (TENANT, PRINCIPAL, _deadline)
"""What a call takes along that is carried to another event loop; transactions stay behind."""


def current_tenant() -> str | None:
    """The tenant bound to this task, as text, or None."""
    return TENANT.get()


def require_tenant(resource: str) -> str:
    """The bound tenant; raises :class:`TenantRequired` naming ``resource`` when there is none."""
    tenant = TENANT.get()
    if tenant is None:
        raise TenantRequired(resource)
    return tenant


def current_principal() -> str | None:
    """The principal (user, service) bound to this task, or None."""
    return PRINCIPAL.get()


def current_deadline() -> float | None:
    """The deadline bound to this task, on :func:`time.monotonic`, or None."""
    return _deadline.get()


@contextmanager
def _bound(variable: ContextVar[str | None], what: str, value: UUID | str) -> Iterator[None]:
    given: object = value
    if not isinstance(given, str | UUID) or given == "":
        raise ValidationError(
            f"a {what} is a UUID or text that is not empty, not {given!r}", field=what
        )
    text = str(value)
    token = variable.set(text)
    try:
        yield
    finally:
        variable.reset(token)


def bind_tenant(tenant: UUID | str) -> AbstractContextManager[None]:
    """Bind ``tenant`` to the current task for the length of a ``with`` block."""
    return _bound(TENANT, "tenant", tenant)


def bind_again(tenant: str | None) -> AbstractContextManager[None]:
    """Bind what :func:`current_tenant` answered in another task; None binds nothing."""
    return nullcontext() if tenant is None else bind_tenant(tenant)


def bind_principal(principal: UUID | str) -> AbstractContextManager[None]:
    """Bind ``principal`` to the current task for the length of a ``with`` block."""
    return _bound(PRINCIPAL, "principal", principal)


@contextmanager
def bind_exactly(tenant: str | None, principal: str | None) -> Iterator[None]:
    """Bind these for the length of a ``with`` block; None is nobody, whoever was bound before."""
    tokens = TENANT.set(tenant), PRINCIPAL.set(principal)
    try:
        yield
    finally:
        TENANT.reset(tokens[0])
        PRINCIPAL.reset(tokens[1])


@contextmanager
def bind_deadline(within: timedelta) -> Iterator[None]:
    """Bound every wait of this task for the length of a ``with`` block; nesting only shortens."""
    if not isinstance(within, timedelta):
        raise ValidationError(
            f"a deadline is a timedelta, not {within!r}; write timedelta(seconds=...)",
            field="within",
        )
    until = time.monotonic() + within.total_seconds()
    outer = _deadline.get()
    token = _deadline.set(until if outer is None else min(outer, until))
    try:
        yield
    finally:
        _deadline.reset(token)
