"""The application: what a replica serves."""

from __future__ import annotations

from fastapi import Depends, FastAPI

from app import routes_orders, routes_products, routes_reports
from app.dependencies import bind_customer, runtime, staff_only
from app.settings import settings
from forze_fastapi import (
    attach_health,
    attach_metrics,
    console,
    register_exception_handlers,
    runtime_lifespan,
)

app = FastAPI(
    title="Shop", lifespan=runtime_lifespan(runtime), dependencies=[Depends(bind_customer)]
)
register_exception_handlers(app)
app.include_router(routes_products.router)
app.include_router(routes_orders.router)
app.include_router(routes_reports.router)

attach_health(app, runtime, required=["postgres"])
attach_metrics(app)
if settings.console_token:
    app.include_router(console(runtime, dependencies=[Depends(staff_only)]), prefix="/console")
