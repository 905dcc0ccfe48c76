"""Tenant, principal and deadline of a request, bound before its handler runs.

::

    app = FastAPI(dependencies=[Depends(bind_request(tenant=tenant_of_token, principal=user_id))])

The binding is a dependency that yields: in force for what is declared after it, the handler
(in a thread too), the response while it is streamed, and background tasks. FastAPI below 0.118
leaves it before the response is sent; streams and background tasks there have to bind anew.

Who the caller is, and for which tenant it may speak, is what *you* verified. A name that the
caller merely wrote down counts only together with a check of yours (:class:`TenantHeader`).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from math import isfinite
from typing import Annotated, Any, Final, TypeAlias
from uuid import UUID

from fastapi import Depends, Header
from fastapi.requests import HTTPConnection

from forze.application.contracts.tenancy import (
    bind_deadline,
    bind_exactly,
    current_principal,
    current_tenant,
)
from forze.errors import ConfigurationError
from forze_fastapi.errors import HTTPProblem, problem_responses

Allowed: TypeAlias = Callable[[str, str], bool | Awaitable[bool]]
"""Whether this principal may speak for this tenant."""

MAX_CHARACTERS: Final = 255
"""Of a tenant's or a principal's name."""

_KEYWORD: Final = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantHeader:
    """The tenant is what the caller writes into a header, if ``allowed`` says that it may.

    ``allowed(principal, tenant)`` is asked for each request, sync (it must not block) or async;
    what it raises fails the request. What it lets through is the tenant, letter by letter: a
    check that takes several spellings gives each of them data of its own. A header that is sent
    twice is refused.
    """

    allowed: Allowed
    name: str = "X-Tenant-ID"

    def __post_init__(self) -> None:
        if not callable(self.allowed):
            raise ConfigurationError(
                "TenantHeader: allowed is a function of principal and tenant, "
                f"not {self.allowed!r}",
                name="allowed",
            )


def bind_request(
    *,
    tenant: Callable[..., Any] | TenantHeader | None = None,
    principal: Callable[..., Any] | None = None,
    required: bool = True,
    within: timedelta | None = None,
    within_header: str | None = None,
) -> Callable[..., AsyncIterator[None]]:
    """A dependency that binds for whom the request is made, exactly as its sources say.

    ``tenant`` and ``principal`` are dependencies of your own (with whatever they depend on) that
    give a ``UUID``, text or None, from a source you verified: a token's claim, a certificate,
    the host's name. ``required``: a request without a tenant is answered with 400
    ``tenant-required``; otherwise none is bound, and tenant-aware resources refuse.
    ``within`` bounds every wait of the request; ``within_header`` names a header in which the
    caller asks for less, in seconds.

    A name that is too long, blank, or has control characters is answered with 400; a tenant
    that the principal may not speak for, with 403 ``tenant-forbidden``.
    """
    _check(tenant, principal, within)
    asked = tenant if isinstance(tenant, TenantHeader) else None

    async def binding(connection: HTTPConnection, **found: Any) -> AsyncIterator[None]:
        who = _accepted(found.get("principal"), "principal")
        whose = _accepted(found.get("tenant"), "tenant")
        if asked is not None:
            _refuse_several(connection, asked.name)
            if whose is not None:
                await _refuse_forged(asked.allowed, who, whose)
        if tenant is not None and required and whose is None:
            raise _tenant_required(asked)
        limit = _limit(within, found.get("limit"))
        with (
            bind_exactly(
                current_tenant() if tenant is None else whose,
                current_principal() if principal is None else who,
            ),
            nullcontext() if limit is None else bind_deadline(limit),
        ):
            yield

    parameters = [inspect.Parameter("connection", _KEYWORD, annotation=HTTPConnection)]
    if principal is not None:
        parameters.append(_dependency("principal", principal))
    if isinstance(tenant, TenantHeader):
        parameters.append(_header("tenant", tenant.name, "The tenant it is asked for."))
    elif tenant is not None:
        parameters.append(_dependency("tenant", tenant))
    if within_header is not None:
        parameters.append(_header("limit", within_header, "Seconds that the answer may take."))
    binding.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    binding.forze_responses = _announced(parameters, asked)  # type: ignore[attr-defined]
    return binding


def _announced(
    parameters: list[inspect.Parameter], asked: TenantHeader | None
) -> dict[int | str, dict[str, Any]]:
    """What a binding may answer by itself."""
    nothing_is_read = len(parameters) == 1
    return problem_responses(*() if nothing_is_read else (400,), *() if asked is None else (403,))


def _check(tenant: object, principal: object, within: object) -> None:
    if isinstance(tenant, TenantHeader) and principal is None:
        raise ConfigurationError(
            "bind_request: anybody can write a header; TenantHeader needs principal=, the "
            "dependency that says who is calling",
            name="principal",
        )
    for name, given in (("tenant", tenant), ("principal", principal)):
        if not (given is None or callable(given) or isinstance(given, TenantHeader)):
            raise ConfigurationError(
                f"bind_request: {name} is a dependency that gives it, not {given!r}", name=name
            )
    if within is not None and not (isinstance(within, timedelta) and within > timedelta(0)):
        raise ConfigurationError(
            f"bind_request: within is a timedelta above zero, not {within!r}", name="within"
        )


def _dependency(name: str, given: Callable[..., Any]) -> inspect.Parameter:
    return inspect.Parameter(name, _KEYWORD, annotation=Annotated[Any, Depends(given)])


def _header(name: str, alias: str, says: str) -> inspect.Parameter:
    read = Annotated[str | None, Header(alias=alias, description=says)]
    return inspect.Parameter(name, _KEYWORD, annotation=read, default=None)


def _accepted(given: object, what: str) -> str | None:
    """A name that can be bound; None for none. Nothing of it is repeated to the caller."""
    if given is None or given == "":
        return None
    if not isinstance(given, str | UUID):
        raise ConfigurationError(
            f"the {what} dependency of bind_request gave a {type(given).__name__}; it has to give "
            "a UUID, text, or None"
        )
    text = str(given)
    if len(text) > MAX_CHARACTERS or not text.strip() or not text.isprintable():
        raise HTTPProblem(
            400,
            f"{what}-malformed",
            f"The {what} is not a name: up to {MAX_CHARACTERS} characters, all of them printable.",
        )
    return text


def _refuse_several(connection: HTTPConnection, name: str) -> None:
    if len(connection.headers.getlist(name)) > 1:
        raise HTTPProblem(400, "tenant-malformed", f"The header {name} was sent more than once.")


async def _refuse_forged(allowed: Allowed, who: str | None, whose: str) -> None:
    verdict = False if who is None else allowed(who, whose)
    if inspect.isawaitable(verdict):
        verdict = await verdict
    if not verdict:
        raise HTTPProblem(
            403, "tenant-forbidden", "The caller may not speak for the tenant that it names."
        )


def _tenant_required(asked: TenantHeader | None) -> HTTPProblem:
    how = "" if asked is None else f" Name it in the header {asked.name}."
    return HTTPProblem(
        400,
        "tenant-required",
        f"This can only be answered for a tenant, and the request names none.{how}",
        title="The request names no tenant",
    )


def _limit(within: timedelta | None, asked: str | None) -> timedelta | None:
    """The shorter of what we allow and what the caller asks for."""
    if asked is None:
        return within
    try:
        seconds = float(asked)
    except ValueError:
        seconds = -1.0
    if not isfinite(seconds) or not 0 < seconds <= 86_400:
        raise HTTPProblem(
            400, "deadline-malformed", "The time limit is a number of seconds above zero."
        )
    limit = timedelta(seconds=seconds)
    return limit if within is None else min(limit, within)
