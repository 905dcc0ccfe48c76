"""Answers that dependencies give, in the OpenAPI document.

FastAPI documents the parameters of dependencies and not what they may answer. A dependency that
has ``forze_responses`` (as ``responses=`` of a route takes them) announces it to every route
that depends on it; what a route documents itself, stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import fastapi.routing
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant

from forze_fastapi.errors.problem import MEDIA_TYPE, Problem

Responses = Mapping[int | str, Mapping[str, Any]]


def add_announced(app: FastAPI, document: dict[str, Any], problem: str) -> None:
    """Add to ``document`` what dependencies announce; ``problem`` refers to that schema."""
    paths = document.get("paths", {})
    for route in _routes(app):
        dependant = getattr(route, "dependant", None)
        operations = paths.get(getattr(route, "path_format", None))
        if dependant is None or operations is None:
            continue
        for announced in _announced(dependant):
            for method in route.methods or ():
                _add(operations.get(method.lower()), _answers_to(method, announced), problem)


def _routes(app: FastAPI) -> Iterable[Any]:
    """Every route; newer versions keep those of included routers apart."""
    flattened = getattr(fastapi.routing, "iter_route_contexts", None)
    return app.routes if flattened is None else flattened(app.routes)


def _announced(dependant: Dependant) -> Iterator[Responses]:
    for each in dependant.dependencies:
        responses: Responses | None = getattr(each.call, "forze_responses", None)
        if responses is not None:
            yield responses
        yield from _announced(each)


def _answers_to(method: str, announced: Responses) -> Responses:
    """Without the 304 that only GET and HEAD may have."""
    if method in ("GET", "HEAD"):
        return announced
    return {status: each for status, each in announced.items() if status != 304}


def _add(operation: dict[str, Any] | None, announced: Responses, problem: str) -> None:
    if operation is None:
        return
    for status, response in announced.items():
        rest = {name: value for name, value in response.items() if name != "model"}
        if response.get("model") is Problem:
            rest["content"] = {MEDIA_TYPE: {"schema": {"$ref": problem}}}
        operation.setdefault("responses", {}).setdefault(str(status), rest)
