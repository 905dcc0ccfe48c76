"""Problem details: the model, and an exception that carries one (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

MEDIA_TYPE: Final = "application/problem+json"
_URN: Final = "urn:forze:problem:"


def type_of(kind: str) -> str:
    """The ``type`` of problems of this kind; stable, and not to be fetched."""
    return _URN + kind


def phrase(status: int) -> str:
    """What HTTP calls this status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class InvalidInput(BaseModel):
    """One thing that is wrong with a request; what was sent is not repeated."""

    detail: str = Field(description="What is wrong.")
    location: str = Field(description="body, query, path, header or cookie.")
    pointer: str | None = Field(
        default=None, description="In the body: a JSON pointer to it, as a URI fragment."
    )
    name: str | None = Field(default=None, description="Elsewhere: the name of the parameter.")


class Problem(BaseModel):
    """A problem as RFC 9457 has it; further members belong to its type."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "type": type_of("revision-mismatch"),
                "title": "The document was changed meanwhile",
                "status": 409,
                "detail": "products 0192...: rev 3 is stale, the current one is 4; read the "
                "document again and repeat the change on top of it",
                "current": 4,
            }
        },
    )

    type: str = Field(
        default="about:blank", description="What kind of problem it is: a URI that stays the same."
    )
    title: str = Field(description="The kind in words.")
    status: int = Field(ge=100, le=599, description="The status of the response.")
    detail: str | None = Field(default=None, description="This occurrence in words.")
    instance: str | None = Field(
        default=None, description="This occurrence as a URI; the server's log has it too."
    )
    errors: list[InvalidInput] | None = Field(
        default=None, description="What is wrong with the request, one by one."
    )


class HTTPProblem(HTTPException):
    """Raise it in a handler or a dependency to answer with a problem of a kind of its own.

    ``kind`` makes the ``type`` (``urn:forze:problem:{kind}``), or is one where it has a colon.
    ``members`` become members of the problem beside the standard ones.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str | None = None,
        *,
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(status, detail or phrase(status), dict(headers or {}) or None)
        self.problem = Problem(
            type=kind if ":" in kind else type_of(kind),
            title=title or phrase(status),
            status=status,
            detail=detail,
            **members,
        )
