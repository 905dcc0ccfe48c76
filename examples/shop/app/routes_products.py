"""The catalogue."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Depends

from app.dependencies import Context, runtime
from app.specs import OFFERS, PRODUCTS, Offer
from forze.errors import NotFoundError
from forze_fastapi import RateLimit, attach_document_endpoints, problem_responses

router = APIRouter(prefix="/products", tags=["products"])


@router.get("/{id}/offer", responses=problem_responses(NotFoundError))
async def offer(id: UUID, ctx: Context) -> Offer:
    """Price and stock as they are now: cached in Valkey only, so never older than a write."""
    return await ctx.document.query(OFFERS).get(id)


attach_document_endpoints(
    router,
    document=PRODUCTS,
    ctx_dep=runtime.get_context,
    exclude=["delete"],
    dependencies={"list": [Depends(RateLimit("search", ctx_dep=runtime.get_context))]},
    pages="snapshot",
    share_snapshots=True,
)
