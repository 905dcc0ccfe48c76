"""One document for the console: looked up, explained, invalidated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from forze.application.contracts.cache import CacheSpec
from forze.application.contracts.tenancy import bind_again, current_tenant
from forze.application.execution import ExecutionContext
from forze.application.integrations.document import explaining
from forze.application.integrations.document.coordinator import Coordinator
from forze.application.integrations.document.ports import Bound
from forze.application.integrations.document.watching import AnsweredBy, Reason, watch
from forze.errors import ConfigurationError, TenantRequired
from forze_fastapi.console.shapes import (
    DocumentKey,
    Explanation,
    InCache,
    InProcess,
    Invalidated,
    SeenRead,
    SourceRow,
    Verdict,
)
from forze_fastapi.errors import HTTPProblem


async def explain(
    ctx: ExecutionContext, key: DocumentKey, *, compare: bool, watching: bool
) -> Explanation:
    """Where a document is; one round trip to the cache, and with ``compare`` one query."""
    kind, spec, coordinator = _cached(ctx, key.document)
    with _for_tenant(kind, key):
        if watching:
            watch(coordinator, key.id)
        row = await explaining.source_row(kind.store, key.id) if compare else None
        found = await explaining.explain(spec, coordinator, key.id)
    reads = found.reads
    return Explanation(
        key=key,
        address=found.address,
        next=_verdict(found.next_read, found.next_reason),
        l1=InProcess(state=found.l1, rev=found.l1_rev, left_seconds=found.l1_left_seconds),
        entry=None if found.entry is None else InCache(**found.entry._asdict()),
        stored_seconds=found.stored_seconds,
        journal=found.journal,
        loading=found.loading,
        compared=compare,
        source=None if row is None else SourceRow(rev=row.rev, last_update_at=row.last_update_at),
        reads=None
        if reads is None
        else [
            SeenRead(
                **dict(_verdict(each.answered_by, each.reason)),
                since=each.since,
                at=each.at,
                times=each.times,
                seconds=each.seconds,
                outcome=each.outcome,
            )
            for each in reads
        ],
    )


async def invalidate(ctx: ExecutionContext, key: DocumentKey) -> Invalidated:
    """Drop what is cached of a document, for every process."""
    kind, _, coordinator = _cached(ctx, key.document)
    with _for_tenant(kind, key):
        return Invalidated(told=await explaining.invalidate(coordinator, key.id))


def _cached(ctx: ExecutionContext, name: str) -> tuple[Bound, CacheSpec, Coordinator[object]]:
    for kind in ctx.document.kinds():
        if kind.spec.name == name and kind.coordinator is not None and kind.spec.cache is not None:
            return kind, kind.spec.cache, kind.coordinator
    raise HTTPProblem(
        404, "unknown-document", "No cached document kind of this name has been used here."
    )


@contextmanager
def _for_tenant(kind: Bound, key: DocumentKey) -> Iterator[None]:
    if kind.store.relations.tenant_aware and key.tenant is None and current_tenant() is None:
        raise HTTPProblem(
            422, "tenant-required", "Documents of this kind belong to tenants: name one."
        )
    try:
        with bind_again(key.tenant):
            yield
    except TenantRequired as error:
        raise HTTPProblem(422, "tenant-required", "Name a tenant.") from error
    except ConfigurationError as error:
        raise HTTPProblem(
            422,
            "cannot-be-asked",
            "The cache cannot be asked: no server is known for this tenant, or it does not permit "
            "it.",
        ) from error


def _verdict(by: AnsweredBy, reason: Reason) -> Verdict:
    return Verdict(answered_by=by, reason=reason.value, says=explaining.SAYS[reason])
