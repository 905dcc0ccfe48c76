"""Each request begins with nothing bound.

A server may start a request in the context of an earlier one on the same connection: asyncio
hands the context of whoever resumes reading, or answers the last of several pipelined requests,
to what is read next. So what a request binds could be in force in the next one, though every
block it was bound by has been left. Here it cannot: whatever of the library's a request finds
bound is put back to its default before anybody sees it. Whoever makes a request within its own
task, as in-process clients do, has it again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

_OURS: Final = "forze_"


class FreshRequests:
    """ASGI middleware: tenant, principal, deadline and transaction are unbound at the start.

    ``runtime_lifespan`` puts it around the application; add it yourself where that is not used.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        with _nothing_bound():
            await self.app(scope, receive, send)


@contextmanager
def _nothing_bound() -> Iterator[None]:
    """Each context variable of the library is at its default in this task, for the block."""
    nothing = Context()
    found = [each for each in copy_context() if each.name.startswith(_OURS)]
    tokens = [each.set(nothing.run(each.get)) for each in found]
    try:
        yield
    finally:
        for variable, token in zip(found, tokens, strict=True):
            variable.reset(token)


def isolate(app: Any) -> None:
    """Put :class:`FreshRequests` around a running application, once."""
    stack = getattr(app, "middleware_stack", None)
    if stack is not None and not isinstance(stack, FreshRequests):
        app.middleware_stack = FreshRequests(stack)
