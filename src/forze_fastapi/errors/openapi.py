"""Problems in the OpenAPI document: their schema once, and their media type everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI

from forze.errors import ForzeError, ValidationError
from forze_fastapi.announced import add_announced
from forze_fastapi.errors.mapping import kind_of
from forze_fastapi.errors.problem import MEDIA_TYPE, Problem, phrase, type_of

_REFERENCE: Final = "#/components/schemas/"
_SCHEMA: Final = Problem.model_json_schema(
    mode="serialization", ref_template=_REFERENCE + "{model}"
)
_OF_REQUESTS: Final = "What is wrong with the request, one by one"
_OF_FASTAPI: Final = ("HTTPValidationError", "ValidationError")
_NAMED: Final = re.compile(r"(?P<title>[^;`]+) \(`(?P<type>[^`]+)`\)")
"""The first of the problems in a description."""

_RETRIED: Final = frozenset({409, 429, 503})
_RETRY_AFTER: Final = {
    "Retry-After": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer", "minimum": 1},
    }
}


def problem_responses(*errors: type[ForzeError] | int) -> dict[int | str, dict[str, Any]]:
    """For ``responses=`` of routes and routers: these errors, or statuses, are problems.

    ``problem_responses(NotFoundError, RevisionMismatch, 401)`` documents 404, 409 and 401.
    """
    kinds: dict[int, list[str]] = {}
    for each in errors:
        if isinstance(each, int):
            kinds.setdefault(each, [])
        else:
            kind = kind_of(each)
            kinds.setdefault(kind.status, []).append(f"{kind.title} (`{type_of(kind.kind)}`)")
    return {status: _response(status, titles) for status, titles in sorted(kinds.items())}


def _response(status: int, titles: list[str]) -> dict[str, Any]:
    described = "; ".join(dict.fromkeys(titles)) or phrase(status)
    headers = {"headers": _RETRY_AFTER} if status in _RETRIED else {}
    return {"model": Problem, "description": described, **headers}


def describe_problems(app: FastAPI) -> None:
    """Make ``app.openapi()`` say what is sent: problems, also where FastAPI tells of its own."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        if document.get("openapi"):
            schemas = document.get("components", {}).get("schemas", {})
            add_announced(app, document, _REFERENCE + _name_in(schemas))
            _describe(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation has it


def _describe(document: dict[str, Any]) -> None:
    """Change a document in place; once more changes nothing."""
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    ours = _name_in(schemas)
    problem, of_fastapi = ({"$ref": _REFERENCE + name} for name in (ours, _OF_FASTAPI[0]))
    for status, response in _responses(document):
        content = response.get("content", {})
        told = content.get("application/json", {})
        if told.get("schema") == of_fastapi:
            response["description"] = _OF_REQUESTS
            told = {"schema": dict(problem)}
        if told.get("schema") == problem:
            del content["application/json"]
            content[MEDIA_TYPE] = {**told, **content.get(MEDIA_TYPE, {})}
        told = content.get(MEDIA_TYPE, {})
        if told.get("schema") == problem and status.isdigit() and "examples" not in told:
            told.setdefault("example", _example(int(status), response["description"]))
    _add_schema(document, schemas, ours)
    for name in _OF_FASTAPI:
        if not _refers(document, name):
            schemas.pop(name, None)
    if not schemas:
        del document["components"]["schemas"]
    if not document["components"]:
        del document["components"]


def _example(status: int, described: str) -> dict[str, Any]:
    """One problem of this status, so that readers are not shown that of another."""
    named = _NAMED.match(described)
    shown: dict[str, Any] = {"type": named["type"]} if named else {}
    shown |= {"title": named["title"] if named else phrase(status), "status": status}
    if described == _OF_REQUESTS:
        kind = kind_of(ValidationError)
        wrong = {"detail": "Field required", "location": "body", "pointer": "#/name"}
        shown |= {"type": type_of(kind.kind), "title": kind.title, "errors": [wrong]}
    return shown


def _responses(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in (*document.get("paths", {}).values(), *document.get("webhooks", {}).values()):
        for operation in path.values():
            if isinstance(operation, dict):
                yield from operation.get("responses", {}).items()


def _name_in(schemas: dict[str, Any]) -> str:
    """What FastAPI called our model: another name where the application has a ``Problem`` too."""
    said = _SCHEMA["description"]
    for name, schema in schemas.items():
        if name.endswith("Problem") and schema.get("description") == said:
            return name
    return "ForzeProblem" if "Problem" in schemas else "Problem"


def _add_schema(document: dict[str, Any], schemas: dict[str, Any], name: str) -> None:
    if name in schemas or not _refers(document, name):
        return
    own = dict(_SCHEMA)
    for inner, schema in own.pop("$defs", {}).items():
        schemas.setdefault(inner, schema)
    schemas[name] = own


def _refers(node: Any, name: str) -> bool:
    """Whether anything below ``node`` refers to the schema ``name``."""
    if isinstance(node, dict):
        return node.get("$ref") == _REFERENCE + name or any(
            _refers(each, name) for each in node.values()
        )
    return isinstance(node, list) and any(_refers(each, name) for each in node)
