"""Which problem each error is: a table over the tree, and what a caller may be told of each.

Where the caller caused it, the error's own message is the detail. Where the inside did, the
detail is one of ours: messages of backends and of the wiring name hosts, tables and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from typing import Any, Final

from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException

from forze import errors
from forze.errors import BackendError, ForzeError
from forze_fastapi.errors.problem import HTTPProblem, InvalidInput, Problem, phrase, type_of

_SHOWN_ERRORS: Final = 100
"""Of what is wrong with one request; a list of a million bad items is answered shortly."""

_WHEN_AWAY: Final = timedelta(seconds=1)
"""When to try again where a server is away and nobody knows for how long."""


_OUTCOMES: Final = {
    "none": "The step that failed changed nothing.",
    "committed": "The change stands, what had to follow it failed; do not repeat it.",
    "unknown": "Whether a change took effect is not known; look before repeating it.",
}
_BY_OUTCOME: Final = ""
"""The detail is that of the error's outcome."""

_WORDED_BY_US: Final = frozenset({"builtins", "json", "pydantic", "pydantic_core"})
"""What an error may be made of whose message is ours nevertheless. A driver's own words (of
constraints, tables, values of the row) become part of the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How errors of one class are told to callers."""

    status: int
    kind: str
    title: str
    detail: str
    shows_message: bool = False
    """Whether the error's own message is the detail, where it is of our making."""
    members: tuple[str, ...] = ()
    """Attributes of the error that become members of the problem."""


KINDS: Final[Mapping[type[ForzeError], Kind]] = {
    errors.ForzeError: Kind(
        status=500,
        kind="internal",
        title="The server failed",
        detail="The request could not be completed.",
    ),
    errors.ConfigurationError: Kind(
        status=500,
        kind="configuration",
        title="The server is not set up for this",
        detail="The request could not be completed; the server's log says why.",
    ),
    errors.ValidationError: Kind(
        status=422,
        kind="validation",
        title="The request cannot be accepted",
        detail="Something in the request cannot be accepted; nothing was changed.",
        shows_message=True,
        members=("field",),
    ),
    errors.NotFoundError: Kind(
        status=404,
        kind="not-found",
        title="There is no such resource",
        detail="Nothing is known by this id.",
        shows_message=True,
        members=("resource",),
    ),
    errors.SnapshotGone: Kind(
        status=410,
        kind="snapshot-gone",
        title="The search has expired",
        detail="The results that this cursor belongs to have expired; search again without it.",
        members=("resource",),
    ),
    errors.ConflictError: Kind(
        status=409,
        kind="conflict",
        title="The current state forbids it",
        detail="What is stored already forbids this change; nothing was changed.",
        shows_message=True,
        members=("resource",),
    ),
    errors.RevisionMismatch: Kind(
        status=409,
        kind="revision-mismatch",
        title="The document was changed meanwhile",
        detail="The revision is stale; read the document again and repeat the change on top of it.",
        shows_message=True,
        members=("resource", "id", "expected", "current"),
    ),
    errors.TransactionDoomed: Kind(
        status=409,
        kind="rolled-back",
        title="The change was rolled back",
        detail="A part of the change failed, so all of it was rolled back; nothing was changed.",
    ),
    errors.FencedOut: Kind(
        status=409,
        kind="fenced-out",
        title="Somebody else went on with it meanwhile",
        detail="A later holder of the lock has written here; nothing was changed. Start over.",
    ),
    errors.LockNotAcquired: Kind(
        status=409,
        kind="locked",
        title="Somebody else is at it",
        detail="Somebody else is working on this; try again later.",
    ),
    errors.LockLost: Kind(
        status=503,
        kind="lock-lost",
        title="The work was interrupted",
        detail="The lock on this could not be held to the end; what was done before may stand. "
        "Look before repeating it.",
    ),
    errors.IdempotencyInProgress: Kind(
        status=409,
        kind="idempotency-in-progress",
        title="The same request is being processed",
        detail="A request with this idempotency key is being processed; ask again for its result.",
    ),
    errors.IdempotencyMismatch: Kind(
        status=422,
        kind="idempotency-mismatch",
        title="The idempotency key belongs to another request",
        detail="The idempotency key was used before with another payload; a new request needs "
        "a new key.",
    ),
    errors.TenantRequired: Kind(
        status=400,
        kind="tenant-required",
        title="The request names no tenant",
        detail="This can only be answered for a tenant, and the request names none.",
    ),
    errors.Throttled: Kind(
        status=429,
        kind="throttled",
        title="Too many requests",
        detail="Too much at once; try again later.",
    ),
    errors.CircuitOpen: Kind(
        status=503,
        kind="circuit-open",
        title="A service behind this one fails",
        detail="A service that this needs has failed too often and is left alone for a while; it "
        "was not called.",
    ),
    errors.BulkheadFull: Kind(
        status=503,
        kind="busy",
        title="Too much of this is under way",
        detail="Too much of this is under way at once; this request was not begun.",
    ),
    errors.CallTimeout: Kind(
        status=504,
        kind="call-timeout",
        title="A service behind this one took too long",
        detail=_OUTCOMES["unknown"],
    ),
    errors.BackendError: Kind(
        status=503,
        kind="backend-failed",
        title="A server behind this one failed",
        detail=_BY_OUTCOME,
    ),
    errors.BackendTimeout: Kind(
        status=504,
        kind="backend-timeout",
        title="A server behind this one did not answer",
        detail=_BY_OUTCOME,
    ),
    errors.BackendUnavailable: Kind(
        status=503,
        kind="backend-unavailable",
        title="A server behind this one is away",
        detail=_BY_OUTCOME,
    ),
    errors.BackendCorrupt: Kind(
        status=500,
        kind="backend-corrupt",
        title="A server behind this one answered nonsense",
        detail=_BY_OUTCOME,
    ),
}
"""By class; a class that is not here is what its nearest parent is."""


def kind_of(cls: type[ForzeError]) -> Kind:
    """How errors of ``cls`` are told."""
    return next(KINDS[each] for each in cls.__mro__ if each in KINDS)


def problem_of(error: BaseException) -> Problem:
    """What a caller is told of ``error``; anything that is not known is a plain 500."""
    match error:
        case ForzeError():
            return _of_ours(error)
        case RequestValidationError() | WebSocketRequestValidationError():
            return _of_validation(error.errors())
        case HTTPProblem():
            return error.problem
        case HTTPException():
            return _of_http(error)
        case BaseExceptionGroup() if (one := gravest(error)) is not error:
            return problem_of(one)
    internal = KINDS[ForzeError]
    return Problem(
        type=type_of(internal.kind), title=internal.title, status=500, detail=internal.detail
    )


def gravest(error: BaseException) -> BaseException:
    """Of a group whose every error has a problem of its own, the one with the highest status.

    A ``TaskGroup`` raises groups also where one thing failed, or one server failed several
    tasks at once. Anything else is returned as it is.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = list(_leaves(error))
    if len(leaves) == 1:
        return leaves[0]
    if all(isinstance(each, ForzeError | HTTPException) for each in leaves):
        return max(leaves, key=lambda each: problem_of(each).status)
    return error


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def retry_after(error: BaseException) -> int | None:
    """Seconds for a ``Retry-After`` header; None where there is none to give.

    A write that stands, or whose outcome is open, is nothing to be repeated by a machine.
    """
    wait = getattr(error, "retry_after", None)
    if wait is None and isinstance(error, ForzeError) and _was_not_begun(error):
        wait = _WHEN_AWAY
    if not isinstance(wait, timedelta):
        return None
    return max(1, ceil(wait.total_seconds()))


def _was_not_begun(error: ForzeError) -> bool:
    refused = isinstance(error, errors.BulkheadFull) or (
        isinstance(error, BackendError) and error.outcome == "none"
    )
    return refused and kind_of(type(error)).status == 503


def headers_of(error: BaseException) -> dict[str, str]:
    """The headers that go with the problem of ``error``."""
    given = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    wait = retry_after(error)
    return given if wait is None else {**given, "Retry-After": str(wait)}


def _of_ours(error: ForzeError) -> Problem:
    kind = kind_of(type(error))
    detail, members = kind.detail, _members(error, kind.members)
    if isinstance(error, BackendError):
        detail, members = _OUTCOMES[error.outcome], {"outcome": error.outcome}
    elif _quotes_others(error):
        members = {}
    elif kind.shows_message:
        detail = error.message
    wait = retry_after(error)
    if wait is not None:
        members["retry_after"] = wait
    return Problem(
        type=type_of(kind.kind), title=kind.title, status=kind.status, detail=detail, **members
    )


def _members(error: ForzeError, names: Iterable[str]) -> dict[str, Any]:
    values = {name: getattr(error, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _quotes_others(error: BaseException) -> bool:
    """Whether it was made of an exception that is neither ours nor of our making."""
    cause, seen = error.__cause__, {id(error)}
    while cause is not None and id(cause) not in seen:  # ``raise error from error`` has no end
        module = type(cause).__module__.partition(".")[0]
        if not isinstance(cause, ForzeError) and module not in _WORDED_BY_US:
            return True
        seen.add(id(cause))
        cause = cause.__cause__
    return False


def _of_http(error: HTTPException) -> Problem:
    """What anybody raised as an ``HTTPException``: its words, where they are words."""
    said: object = error.detail
    if isinstance(said, str):
        title = phrase(error.status_code)
        return Problem(
            title=title, status=error.status_code, detail=None if said in ("", title) else said
        )
    data = {} if said is None else {"data": said}
    return Problem(title=phrase(error.status_code), status=error.status_code, **data)


def _of_validation(found: Sequence[Any]) -> Problem:
    kind = KINDS[errors.ValidationError]
    count = len(found)
    return Problem(
        type=type_of(kind.kind),
        title=kind.title,
        status=kind.status,
        detail="1 thing is wrong with the request." if count == 1 else (
            f"{count} things are wrong with the request."
        ),
        errors=[_invalid(each) for each in found[:_SHOWN_ERRORS]],
    )  # fmt: skip


_QUOTING: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "union_tag_invalid": lambda ctx: f"The tag has to be one of {ctx.get('expected_tags')}",
    "uuid_parsing": lambda _: "Input should be a valid UUID",
    "url_parsing": lambda _: "Input should be a valid URL",
    "byte_size_unit": lambda _: "Input should be a number of bytes with a unit",
}
"""Kinds of pydantic errors whose message quotes what was sent."""


def _invalid(error: Any) -> InvalidInput:
    """Of what pydantic and FastAPI found, or of what anybody raised in their name."""
    if not isinstance(error, Mapping):
        return InvalidInput(detail=str(error), location="body", pointer="#")
    location, *path = error.get("loc") or ("body",)
    quoting = _QUOTING.get(error.get("type", ""))
    detail = str(error.get("msg", "Invalid")) if quoting is None else (
        quoting(error.get("ctx") or {})
    )  # fmt: skip
    if location == "body":
        if detail == "JSON decode error":  # FastAPI's own of a whole body: its path is an offset
            path = []
        return InvalidInput(detail=detail, location="body", pointer=_pointer(path))
    return InvalidInput(detail=detail, location=str(location), name=".".join(map(str, path)))


def _pointer(path: Iterable[object]) -> str:
    """A JSON pointer (RFC 6901) as a URI fragment."""
    steps = (str(each).replace("~", "~0").replace("/", "~1") for each in path)
    return "#" + "".join(f"/{step}" for step in steps)
