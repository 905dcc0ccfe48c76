"""What makes two requests the same: method, path, query and body, as one hash.

A body of JSON counts by its value, so that a client may write it anew; a form by its fields
and the contents of its files, because boundaries differ; anything else byte for byte.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, params
from starlette.datastructures import UploadFile

from forze.application.integrations.idempotency import payload_hash
from forze.errors import ValidationError
from forze_fastapi.errors import HTTPProblem
from forze_fastapi.idempotency.header import NAME

_CHUNK_BYTES = 256 * 1024
_NONE = ("none", None)


async def fingerprint(request: Request, body_field: Any, limit: int | None) -> str:
    """The hash of ``request``. ``body_field`` is what FastAPI parsed its body for, if anything.

    A body that FastAPI has parsed is always compared; above ``limit`` bytes it is refused, by an
    ``HTTPProblem``. One that the handler reads itself is compared where its length
    is announced and within ``limit``; else it is left unread, so that it can be streamed.
    """
    query = sorted(parse_qsl(request.url.query, keep_blank_values=True), key=lambda each: each[0])
    body = await _body(request, body_field, limit)
    return payload_hash([request.method, request.scope["path"], query, *body])


async def _body(request: Request, body_field: Any, limit: int | None) -> tuple[str, object]:
    announced = _announced_bytes(request)
    above = limit is not None and announced is not None and announced > limit
    if body_field is None and (announced is None or above):
        return _NONE
    if above:
        raise _too_large(limit)
    if body_field is not None and isinstance(body_field.field_info, params.Form):
        return "form", await _form(request, limit)
    body = await request.body()
    if limit is not None and len(body) > limit:
        raise _too_large(limit)
    if not body:
        return _NONE
    if _is_json(request.headers.get("content-type", "")):
        try:
            value = json.loads(body)
            return "json", payload_hash([value])
        except (ValueError, RecursionError, ValidationError):
            pass  # whatever it is, its bytes tell it from another
    return "bytes", payload_hash(body)


def _too_large(limit: int | None) -> HTTPProblem:
    return HTTPProblem(
        413,
        "body-too-large",
        f"With {NAME}, the body may have {limit} bytes at most.",
        title="The body is too large",
        max_bytes=limit,
    )


async def _form(request: Request, limit: int | None) -> list[tuple[str, object]]:
    items = (await request.form()).multi_items()
    sizes = (each.size if isinstance(each, UploadFile) else len(each) for _, each in items)
    if limit is not None and sum(size or 0 for size in sizes) > limit:
        raise _too_large(limit)
    return [
        (name, await _file(value) if isinstance(value, UploadFile) else value)
        for name, value in items
    ]


async def _file(file: UploadFile) -> list[str | None]:
    digest = sha256()
    await file.seek(0)
    while chunk := await file.read(_CHUNK_BYTES):
        digest.update(chunk)
    await file.seek(0)
    return [file.filename, file.content_type, digest.hexdigest()]


def _announced_bytes(request: Request) -> int | None:
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def _is_json(content_type: str) -> bool:
    essence = content_type.partition(";")[0].strip().lower()
    return essence == "application/json" or essence.endswith("+json")
