"""The exception handlers of an application: every error leaves it as a problem."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.websockets import WebSocketState

from forze.errors import ForzeError
from forze_fastapi.errors.mapping import gravest, headers_of, problem_of
from forze_fastapi.errors.openapi import describe_problems
from forze_fastapi.errors.problem import MEDIA_TYPE, Problem

logger: Final = logging.getLogger("forze.http")

_WITHOUT_BODY: Final = frozenset({204, 205, 304})


class ProblemResponse(JSONResponse):
    """A problem on its way to the caller."""

    media_type = MEDIA_TYPE


def problem_response(error: BaseException, request: HTTPConnection | None = None) -> Response:
    """The response that tells a caller of ``error``, headers included.

    A group of errors is told as its gravest, where each of them has a problem of its own. A
    fault of the program is logged with its traceback, under an id that is in the response too;
    a backend that failed is one line in the log.
    """
    error = gravest(error)
    problem, instance = problem_of(error), None
    if isinstance(error, HTTPException):
        return _rendered(error, problem)
    if problem.status == 500:
        instance = _new_instance()
        logger.error("%s: problem %s", _what(request), instance, exc_info=error)
    elif problem.status > 500:
        logger.warning("%s: %s", _what(request), error)
    return _rendered(error, problem, instance)


def register_exception_handlers(app: FastAPI, *, unexpected: bool = True) -> None:
    """Answer every error of ``app`` with problem details, and say so in its OpenAPI document.

    These are the library's errors, invalid requests, ``HTTPException``s, and groups of them as
    a ``TaskGroup`` raises them. ``unexpected``: any other exception too, as a 500 that has an
    id and none of its text; it is still raised to the server, which logs it. Handlers of your
    own for other classes stay, also for an error that arrives alone in a group.
    """
    handlers: dict[Any, Any] = app.exception_handlers
    invalid = RequestValidationError, WebSocketRequestValidationError
    for cls in (ForzeError, HTTPException, *invalid):
        handlers[cls] = _answer
    handlers[ExceptionGroup] = _answer_group
    if unexpected:
        handlers[Exception] = _answer_unexpected
    describe_problems(app)


async def _answer(connection: Request | WebSocket, error: Exception) -> Response | None:
    response = problem_response(error, connection)
    if isinstance(connection, Request):
        return response
    if (
        connection.application_state is WebSocketState.CONNECTING
        and "websocket.http.response" in connection.scope.get("extensions", {})
    ):
        await connection.send_denial_response(response)
        return None
    # 1008: it was the caller. 1011: it was not (RFC 6455).
    await connection.close(1008 if response.status_code < 500 else 1011)
    return None


async def _answer_group(connection: Request | WebSocket, error: Exception) -> Response | None:
    """As the error that it stands for is answered, by whoever answers that."""
    one = gravest(error)
    handlers: dict[Any, Any] = connection.app.exception_handlers
    known = (each for each in type(one).__mro__ if each is not Exception and each in handlers)
    cls = next(known, None)
    if one is error or cls is None:
        raise error  # what nobody expected has to reach the server
    answer: Response | Awaitable[Response | None] | None = handlers[cls](connection, one)
    return await answer if isinstance(answer, Awaitable) else answer


async def _answer_unexpected(connection: Request | WebSocket, error: Exception) -> Response:
    # The server that this is raised to logs the traceback: the note ties it to the answer.
    instance = _new_instance()
    error.add_note(f"answered as problem {instance}")
    logger.error("%s: problem %s: %s", _what(connection), instance, type(error).__name__)
    return _rendered(error, problem_of(error), instance)


def _rendered(error: BaseException, problem: Problem, instance: str | None = None) -> Response:
    headers = headers_of(error)
    if problem.status in _WITHOUT_BODY:
        return Response(status_code=problem.status, headers=headers)
    problem.instance = problem.instance or instance
    content = problem.model_dump(mode="json", exclude_none=True)
    return ProblemResponse(content, status_code=problem.status, headers=headers)


def _new_instance() -> str:
    return f"urn:uuid:{uuid4()}"


def _what(connection: HTTPConnection | None) -> str:
    if connection is None:
        return "a request"
    # Not its ``url``: that takes the Host header into account, which may be anything.
    scope = connection.scope
    return f"{scope.get('method', 'WEBSOCKET')} {quote(scope['path'])}"
