"""How documents are sent: their JSON, their tags, and what caches on the way may do with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic

from fastapi import Request, Response
from pydantic import BaseModel

from forze.application.contracts.document import DocumentSpec, R, Relations
from forze_fastapi.documents.etag import Tagger, Tags, Verdict, judge_read, parse_tags
from forze_fastapi.errors import HTTPProblem

JSON: Final = "application/json"

_CONDITIONS: Final = (b"if-match", b"if-none-match")


class Representation(Generic[R]):
    """The representation of one document kind.

    ``etag`` None offers tags where the document is read from the table it is written to. Of a
    view nobody knows that ``rev`` rises with all it shows.
    """

    def __init__(
        self,
        spec: DocumentSpec[R, Any, Any],
        *,
        etag: bool | None,
        cache_control: str | None,
        vary: Sequence[str],
    ) -> None:
        self._serializer = spec.read.__pydantic_serializer__
        self._tagger = Tagger(spec.read, spec.name)
        self._etag = etag
        self._headers: dict[str, str] = {}
        if cache_control:
            self._headers["Cache-Control"] = cache_control
        if vary:
            self._headers["Vary"] = ", ".join(vary)

    def tag(self, document: R, relations: Relations) -> str | None:
        """The document's tag, None where none is offered."""
        offered = self._etag
        if offered is None:
            offered = relations.reads == relations.writes and not relations.joined
        return self._tagger.tag(document) if offered else None

    def answer_read(self, request: Request, document: R, tag: str | None) -> Response:
        """The document, or 304, as the conditions of the request have it."""
        verdict = Verdict.SEND
        if any(name in _CONDITIONS for name, _ in request.scope["headers"]):
            match = tags_of(request, "if-match")
            verdict = judge_read(tag, match, tags_of(request, "if-none-match", lenient=True))
        headers = self._headers if tag is None else {**self._headers, "ETag": tag}
        if verdict is Verdict.SEND:
            return Response(self._json(document), media_type=JSON, headers=headers)
        if verdict is Verdict.NOT_MODIFIED:
            return Response(status_code=304, headers=headers)
        raise precondition_failed()

    def answer_write(
        self, document: R, tag: str | None, status: int, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The document as a write has left it."""
        sent = {**(headers or {}), **({} if tag is None else {"ETag": tag})}
        return Response(self._json(document), status, headers=sent, media_type=JSON)

    def answer_page(self, page: BaseModel, headers: Mapping[str, str]) -> Response:
        """A page of documents."""
        body = type(page).__pydantic_serializer__.to_json(page, by_alias=True)
        return Response(body, media_type=JSON, headers={**self._headers, **headers})

    def _json(self, document: R) -> bytes:
        return self._serializer.to_json(document, by_alias=True)


def tags_of(request: Request, name: str, *, lenient: bool = False) -> Tags | None:
    """The tags in a field of the request, None where it has no such field.

    A malformed one is a 400 problem, or taken as not there (``lenient``), where that only
    means that more is sent than need be.
    """
    lines = request.headers.getlist(name)
    if not lines:
        return None
    tags = parse_tags(lines)
    if tags is None and not lenient:
        raise HTTPProblem(
            400,
            "malformed-header",
            'If-Match takes * or a list of entity tags, each in double quotes: "abc", "def".',
            title="A header is malformed",
            header="If-Match",
        )
    return tags


def precondition_failed() -> HTTPProblem:
    """The document is not in a state that If-Match allows."""
    return HTTPProblem(
        412,
        "precondition-failed",
        "The document is no longer what If-Match says; nothing was changed. Read it again, and "
        "repeat the request with the ETag it has now.",
        title="The document was changed meanwhile",
    )
