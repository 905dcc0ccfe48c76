"""What each route may answer, all of it, for its OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from forze.errors import (
    BackendTimeout,
    BackendUnavailable,
    ConflictError,
    ForzeError,
    IdempotencyInProgress,
    IdempotencyMismatch,
    NotFoundError,
    RevisionMismatch,
    SnapshotGone,
    TenantRequired,
    ValidationError,
)
from forze_fastapi.documents.options import EndpointOptions, Operation
from forze_fastapi.errors import problem_responses

Answers = dict[int | str, dict[str, Any]]
Told = type[ForzeError] | int

_ANY: Final[tuple[Told, ...]] = (
    TenantRequired, ValidationError, BackendUnavailable, BackendTimeout, ForzeError,
)  # fmt: skip
_IDEMPOTENT: Final[tuple[Told, ...]] = (IdempotencyInProgress, IdempotencyMismatch)

_PROBLEMS: Final[Mapping[Operation, tuple[Told, ...]]] = {
    "create": (ConflictError, 413),
    "get": (NotFoundError, 412),
    "list": (404,),
    "update": (NotFoundError, RevisionMismatch, ConflictError, 412, 413, 428),
    "delete": (NotFoundError, RevisionMismatch, ConflictError, 412),
}

_SUCCESS: Final[Mapping[Operation, tuple[int, str, tuple[str, ...]]]] = {
    "create": (201, "The document as it was created.", ("Location", "ETag")),
    "get": (200, "The document.", ("ETag", "Cache-Control")),
    "list": (200, "A page of documents.", ("Link", "Cache-Control")),
    "update": (200, "The document as it is now.", ("ETag",)),
    "delete": (204, "It exists no longer.", ()),
}

_HEADERS: Final = {
    "Cache-Control": "What caches on the way may do with the answer.",
    "ETag": "Stands for the document as it is; for `If-Match` and `If-None-Match`.",
    "Link": 'The way to the next page, `rel="next"`; missing on the last.',
    "Location": "Where the document is.",
}


_IF_NONE_MATCH: Final = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "Only if the document's ETag is none of these; `*` is any.",
    "schema": {"type": "string"},  # what is malformed counts as not sent
}


def conditions_of(operation: Operation) -> dict[str, Any]:
    """For ``openapi_extra=`` of the route: the field that makes a read conditional.

    ``If-Match`` is in words only (the docstrings of the operations): a contract of types has
    ``rev`` for it, and a parameter would promise that any tag will do.
    """
    return {"parameters": [_IF_NONE_MATCH]} if operation == "get" else {}


def status_of(operation: Operation) -> int:
    """The status of success."""
    return _SUCCESS[operation][0]


def answers_of(operation: Operation, options: EndpointOptions, *, idempotent: bool) -> Answers:
    """For ``responses=`` of the route."""
    problems = (*_ANY, *_PROBLEMS[operation], *(_IDEMPOTENT if idempotent else ()))
    if operation == "list" and options.pages == "snapshot":
        problems = (*problems, SnapshotGone)
    status, described, headers = _SUCCESS[operation]
    shown = {
        name: {"description": _HEADERS[name], "schema": {"type": "string"}}
        for name in headers
        if options.etag is not False or name != "ETag"
    }
    answers: Answers = {status: {"description": described, "headers": shown}}
    if operation == "get":
        answers[304] = {"description": "It is what `If-None-Match` names.", "headers": shown}
    return {**answers, **problem_responses(*problems)}
