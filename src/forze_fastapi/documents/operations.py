"""What the routes do: from a validated request, over the ports, to a response.

Writes are conditional. ``If-Match`` is judged against the document as it is (through the cache,
which is never stale) and then carried by its ``rev``, so that judging and writing are one step:
whoever comes between makes the write fail.

=================  ===========================  =========================
the change is      with ``If-Match``            with ``rev``
=================  ===========================  =========================
stale              412                          409, and the current rev
of no document     404                          404
=================  ===========================  =========================
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple
from uuid import UUID

from fastapi import Request, Response
from pydantic import BaseModel

from forze.application.contracts.document import DocumentSpec, R
from forze.application.execution import ExecutionContext
from forze.application.integrations.document.query import DocumentQuery
from forze.errors import ConflictError, RevisionMismatch, ValidationError
from forze_fastapi.documents.bodies import page_of
from forze_fastapi.documents.listing import Asked, Listing
from forze_fastapi.documents.representation import Representation, precondition_failed, tags_of
from forze_fastapi.errors import HTTPProblem


class Basis(NamedTuple):
    """The revision that a write is made on top of; ``by_tag``: one that If-Match stood for."""

    rev: int
    by_tag: bool


class Operations(Generic[R]):
    """The operations of one document kind."""

    def __init__(
        self,
        spec: DocumentSpec[R, Any, Any],
        representation: Representation[R],
        listing: Listing,
        *,
        frozen: bool,
        shared: bool,
    ) -> None:
        self.spec = spec
        self.listing = listing
        self._representation = representation
        self._frozen = frozen
        self._shared = shared
        self.page = page_of(spec.read, frozen=frozen)

    async def create(self, request: Request, ctx: ExecutionContext, body: Any) -> Response:
        """Create a document."""
        document = await ctx.document.command(self.spec).create(body)
        location = f"{request.url.path.rstrip('/')}/{document.id}"
        tag = self._tag(ctx.document.query(self.spec), document)
        return self._representation.answer_write(document, tag, 201, {"Location": location})

    async def get(self, request: Request, ctx: ExecutionContext, id: UUID) -> Response:
        """Read a document."""
        query = ctx.document.query(self.spec)
        document = await query.get(id)
        return self._representation.answer_read(request, document, self._tag(query, document))

    async def list(self, request: Request, ctx: ExecutionContext, query: BaseModel) -> Response:
        """List documents."""
        asked = self.listing.asked(query, request.query_params)
        try:
            page = await self._page(ctx.document.query(self.spec), asked)
        except ValidationError as error:
            if error.field != "after":
                raise
            raise HTTPProblem(
                404,
                "no-such-page",
                "The cursor leads to no page of this list; pass next_cursor of the page before, "
                "with the same sort and filters, or begin without one.",
                title="There is no such page",
                field="cursor",
            ) from None
        return self._representation.answer_page(page, _link(request, page))

    async def update(
        self,
        request: Request,
        ctx: ExecutionContext,
        id: UUID,
        body: BaseModel,
        rev: int | None,
    ) -> Response:
        """Change the fields that are sent, and leave the others as they are.

        Say what the change is made on top of: `rev` of the document, or, without `rev`, its ETag
        in `If-Match`. A `rev` that is stale is a 409, a tag that is stale a 412.
        """
        basis = await self._basis(request, ctx, id, _one_revision(body, rev))
        if basis is None:
            await ctx.document.query(self.spec).get(id)
            raise HTTPProblem(
                428,
                "precondition-required",
                "Say what the change is made on top of: the ETag of the document in If-Match, or "
                "its rev.",
                title="The request says no revision",
            )
        try:
            document = await ctx.document.command(self.spec).update(id, basis.rev, body)
        except RevisionMismatch as error:
            if basis.by_tag:
                raise precondition_failed() from error
            raise
        tag = self._tag(ctx.document.query(self.spec), document)
        return self._representation.answer_write(document, tag, 200)

    async def delete(
        self, request: Request, ctx: ExecutionContext, id: UUID, rev: int | None
    ) -> Response:
        """Remove a document for good.

        Only that revision of it where `rev` says one, or its ETag in `If-Match`: another is a 409,
        by its tag a 412.
        """
        command = ctx.document.command(self.spec)
        basis = await self._basis(request, ctx, id, rev)
        if basis is None:
            await command.kill(id)
        elif not await command.kill_matching({"id": id, "rev": basis.rev}):
            now = await ctx.document.query(self.spec).get(id)
            if basis.by_tag:
                raise precondition_failed()
            raise RevisionMismatch(
                resource=self.spec.name, id=id, expected=basis.rev, current=now.rev
            )
        return Response(status_code=204)

    async def _basis(
        self, request: Request, ctx: ExecutionContext, id: UUID, rev: int | None
    ) -> Basis | None:
        """What a write is made on top of, None where the request does not say."""
        match = tags_of(request, "if-match")
        if match is None:
            return None if rev is None else Basis(rev, by_tag=False)
        query = ctx.document.query(self.spec)
        current = await query.get(id)
        if not match.strongly(self._tag(query, current)):
            raise precondition_failed()
        if rev is not None:
            return Basis(rev, by_tag=False)
        return Basis(current.rev, by_tag=not match.anything)

    def _tag(self, query: DocumentQuery[R], document: R) -> str | None:
        return self._representation.tag(document, query.relations)

    async def _page(self, query: DocumentQuery[R], asked: Asked) -> BaseModel:
        """The page as it is sent. Its documents come from the store, and are not checked again."""
        filters, sort, limit, after = asked
        if not self._frozen:
            page = await query.find_many(filters, sort=sort, limit=limit, after=after)
            return self.page.model_construct(**page._asdict())
        found = await query.find_snapshot(
            filters, sort=sort, limit=limit, after=after, share=self._shared
        )
        members = found._asdict()
        del members["rebuilt"]
        return self.page.model_construct(**members)


def _link(request: Request, page: Any) -> dict[str, str]:
    """The way to the next page (RFC 8288), where there is one."""
    if page.next_cursor is None:
        return {}
    url = request.url.include_query_params(cursor=page.next_cursor)
    return {"Link": f'<{url.path}?{url.query}>; rel="next"'}


def _one_revision(body: BaseModel, rev: int | None) -> int | None:
    """The revision in the query or the body, which no longer has it."""
    inside: int | None = getattr(body, "rev", None)
    body.model_fields_set.discard("rev")
    if rev is not None and inside is not None and rev != inside:
        raise ConflictError(
            f"rev is {rev} in the query and {inside} in the body; one of them at least is stale"
        )
    return inside if rev is None else rev
