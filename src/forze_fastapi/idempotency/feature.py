"""Idempotent routes: a decorator of their handlers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response

from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.execution import ExecutionContext
from forze.errors import (
    BackendUnavailable,
    ConfigurationError,
    IdempotencyInProgress,
    IdempotencyMismatch,
)
from forze_fastapi.context import ContextDep, context_dependency, declare
from forze_fastapi.errors import problem_responses
from forze_fastapi.idempotency.exchange import Exchange, Terms, key_from
from forze_fastapi.idempotency.header import DESCRIBED, LONGEST_BYTES, NAME

H = TypeVar("H", bound=Callable[..., Any])

_MEBIBYTE = 1024 * 1024
_PARAMETER = "forze_exchange"
_DESCRIPTION = (
    "Makes it safe to send this request again: with the same key it is processed once, and its "
    f"answer is given again. A string in double quotes, or bare; at most {LONGEST_BYTES} bytes."
)


class IdempotencyFeature:
    """Runs a handler once per ``Idempotency-Key``; a duplicate gets the same answer again.

    ::

        once = IdempotencyFeature(spec=PAYMENTS, ctx_dep=runtime.get_context)

        @router.post("/payments", status_code=201)
        @once
        async def create_payment(payment: CreatePayment) -> Payment: ...

    ``ctx_dep`` is the dependency that gives the context, such as ``runtime.get_context``.
    ``required``: a request without a key is refused with 400; else it runs unprotected.
    ``operation`` names what the handler does; by default it is the method and path of its route,
    so that a key belongs to one route. An answer above ``max_body_bytes`` is not kept, and a
    body above ``max_request_bytes`` is refused with 413 (None: any size). What is kept, for how
    long, and what happens while the store is away is the spec's.

    The handler may be async or not, and return whatever FastAPI takes, except that it may not be
    a generator. An answer that streams is passed on as it comes and not kept. In the handler,
    ``request.state.idempotency`` is the request's claim, if it has a key.
    """

    def __init__(
        self,
        *,
        spec: IdempotencySpec,
        ctx_dep: ContextDep,
        required: bool = False,
        operation: str | None = None,
        max_body_bytes: int | None = _MEBIBYTE,
        max_request_bytes: int | None = 10 * _MEBIBYTE,
    ) -> None:
        given: object = spec
        if not isinstance(given, IdempotencySpec):
            raise ConfigurationError(
                f"IdempotencyFeature: spec is an IdempotencySpec, not {spec!r}", name="spec"
            )
        if operation is not None and not 1 <= len(operation.encode()) <= LONGEST_BYTES:
            raise ConfigurationError(
                f"IdempotencyFeature: operation has 1 to {LONGEST_BYTES} bytes", name="operation"
            )
        for name, limit in (
            ("max_body_bytes", max_body_bytes),
            ("max_request_bytes", max_request_bytes),
        ):
            if limit is not None and limit < 0:
                raise ConfigurationError(
                    f"IdempotencyFeature: {name} is a number of bytes or None, not {limit!r}",
                    name=name,
                )
        self.required = required
        self._dependency = _exchanges(
            Terms(
                spec=spec,
                operation=operation,
                max_body_bytes=max_body_bytes,
                max_request_bytes=max_request_bytes,
            ),
            context_dependency(ctx_dep),
            required,
        )
        # Documented by register_exception_handlers, without responses= on each route.
        self._dependency.forze_responses = self.responses  # type: ignore[attr-defined]

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """For ``responses=`` of the route: what a request with a key may be answered besides."""
        return problem_responses(
            400, 413, IdempotencyInProgress, IdempotencyMismatch, BackendUnavailable
        )

    def __call__(self, handler: H) -> H:
        """``handler``, run once per key."""
        target = inspect.unwrap(handler)
        if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
            raise ConfigurationError(
                f"IdempotencyFeature: {target.__qualname__} is a generator, whose answer cannot be "
                "kept; return a StreamingResponse where it has to stream",
                name=target.__qualname__,
            )

        @functools.wraps(handler)
        async def once(**values: Any) -> Any:
            exchange: Exchange = values.pop(_PARAMETER)
            return await exchange.run(handler, values)

        declare(once, handler, **{_PARAMETER: self._dependency})
        return once  # type: ignore[return-value] # called by FastAPI, which asks its signature


def _exchanges(
    terms: Terms, context: Callable[..., Any], required: bool
) -> Callable[..., AsyncIterator[Exchange]]:
    """The dependency that opens an exchange, and closes it when the request has ended."""

    async def exchange(
        request: Request, response: Response, ctx: ExecutionContext, **_: object
    ) -> AsyncIterator[Exchange]:
        opened = Exchange(terms, ctx, request, response)
        try:
            yield opened
        except BaseException as error:
            await opened.leave(error)
            raise
        await opened.leave()

    described = Header(alias=NAME, description=_DESCRIPTION, json_schema_extra=DESCRIBED)
    header: Any = Annotated[str, described]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("request", keyword, annotation=Request),
        inspect.Parameter("response", keyword, annotation=Response),
        inspect.Parameter("ctx", keyword, annotation=Annotated[Any, Depends(context)]),
        inspect.Parameter(
            "idempotency_key",
            keyword,
            annotation=header,
            default=inspect.Parameter.empty if required else None,
        ),
    ]
    if required:
        # FastAPI would refuse a request without it with 422: this one is asked before.
        parameters.append(
            inspect.Parameter("present", keyword, annotation=Annotated[Any, Depends(_present)])
        )
    exchange.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # as above
    return exchange


async def _present(request: Request) -> None:
    key_from(request)
