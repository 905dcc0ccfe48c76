"""What handlers ask for: the context, and who is asking."""

from __future__ import annotations

from secrets import compare_digest
from typing import Annotated

from fastapi import Depends, Header, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from app.settings import settings
from app.wiring import build_runtime
from forze.application.execution import ExecutionContext
from forze_fastapi import bind_request, context_of

runtime = build_runtime()

Context = Annotated[ExecutionContext, Depends(context_of(runtime))]


async def customer(x_customer: Annotated[str, Header()] = "guest") -> str:
    """Who is asking. A real shop takes it from a session it has verified."""
    return x_customer


Customer = Annotated[str, Depends(customer)]

bind_customer = bind_request(principal=customer)


async def staff_only(sent: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> None:
    """For the console: any name, and the token of the settings."""
    if not compare_digest(sent.password.encode(), (settings.console_token or "").encode()):
        raise HTTPException(401, headers={"WWW-Authenticate": "Basic"})
