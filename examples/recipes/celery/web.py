"""The web process: FastAPI."""

from __future__ import annotations

from typing import Annotated

import worker
from app import REPORTS, price_of, runtime
from fastapi import Depends, FastAPI, Header

from forze.application.execution import ExecutionContext
from forze_fastapi import (
    bind_request,
    context_of,
    register_exception_handlers,
    runtime_lifespan,
)

Context = Annotated[ExecutionContext, Depends(context_of(runtime))]


def tenant(x_tenant: Annotated[str | None, Header()] = None) -> str | None:
    """A real application takes it from what it has verified."""
    return x_tenant


app = FastAPI(
    lifespan=runtime_lifespan(runtime),
    dependencies=[Depends(bind_request(tenant=tenant, required=False))],
)
register_exception_handlers(app)


@app.get("/prices/{product}")
async def price(product: str) -> int:
    """Cached, in the same place as for the worker."""
    return await price_of(product)


@app.post("/reports/{day}")
async def report(day: str, ctx: Context) -> str:
    """Refused while a task makes it."""
    async with ctx.dlock_scope(REPORTS).scope(day):
        return "made by the web process"


@app.post("/orders")
def order() -> str:
    """Publishes a task, for the tenant of the request; returns its id."""
    return str(worker.greet.delay().id)
