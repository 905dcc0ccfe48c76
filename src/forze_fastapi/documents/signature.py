"""Operations as FastAPI sees them: what each takes, and from where, is in its signature.

The models are made from the spec, so no annotation in a source file can name them. The fields of
conditional requests are not in a signature: they are read from the request, where each may stand
in several lines (``openapi`` describes them).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from inspect import Parameter, Signature
from typing import Annotated, Any
from uuid import UUID

from fastapi import Body, Depends, Path, Query, Request, Response

from forze.application.execution import ExecutionContext
from forze_fastapi.documents.bodies import ABOUT_REV, create_body, update_body
from forze_fastapi.documents.exact import Revision
from forze_fastapi.documents.operations import Operations
from forze_fastapi.documents.options import Operation

Endpoint = Callable[..., Coroutine[Any, Any, Response]]


def endpoint_of(
    operations: Operations[Any], operation: Operation, context: Callable[..., Any]
) -> Endpoint:
    """The handler of an operation; ``context`` is the dependency that gives its context."""
    call: Endpoint = getattr(operations, operation)

    async def endpoint(**given: Any) -> Response:
        return await call(**given)

    endpoint.__name__ = endpoint.__qualname__ = operation
    endpoint.__doc__ = call.__doc__
    endpoint.__signature__ = Signature(  # type: ignore[attr-defined] # whoever inspects looks there
        [
            _taken("request", Request),
            _taken("ctx", Annotated[ExecutionContext, Depends(context)]),
            *_parameters(operations, operation),
        ]
    )
    return endpoint


def _parameters(operations: Operations[Any], operation: Operation) -> list[Parameter]:
    types: Any = operations.spec.write_types  # there is no route for what it has no type for
    which = _taken("id", Annotated[UUID, Path(description="The document's id.")])
    match operation:
        case "list":
            return [_taken("query", Annotated[operations.listing.model, Query()])]
        case "get":
            return [which]
        case "create":
            return [_taken("body", Annotated[create_body(types.create_cmd), Body()])]
        case "update":
            body = _taken("body", Annotated[update_body(types.update_cmd), Body()])
            return [which, body, _revision(documented=False)]  # it is, in the body
        case "delete":
            return [which, _revision(documented=True)]


def _revision(*, documented: bool) -> Parameter:
    query = Query(description=ABOUT_REV, include_in_schema=documented)
    return _taken("rev", Annotated[Revision, query], None)


def _taken(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
