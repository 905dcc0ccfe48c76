"""Responses as they are kept, and the header fields of what is given again: no I/O here.

Kept are the status, the body, the content type, and headers that are named; never a cookie.
What a response says of itself (``Cache-Control: no-store``, ``private``, ``Vary: *``,
``Set-Cookie``) keeps it from being given to anybody else.

Source: RFC 9110, sections 8.8.3 (``ETag``) and 15.4.5 (304); RFC 9111, sections 3 and 5.2;
RFC 9211 (``Cache-Status``).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from time import time
from typing import Final

import http_sf
from fastapi import Response

from forze.application.integrations.cached.values import VERSION, Answer
from forze.domain.models import utcnow

KEPT: Final = frozenset(
    {
        "cache-control", "content-disposition", "content-encoding", "content-language",
        "content-location", "content-type", "deprecation", "etag", "last-modified", "link",
        "location", "sunset", "vary",
    }
)  # fmt: skip
"""Headers that are kept with a response, and those that are named besides."""

NOT_MODIFIED: Final = frozenset(
    {"cache-control", "content-location", "date", "etag", "expires", "vary", "set-cookie"}
)
"""Headers of a 304."""

TAG_BYTES: Final = 15
_UNSHARED: Final = frozenset({"no-store", "private", "no-cache"})
_ME: Final = http_sf.Token("forze")


@dataclass(frozen=True, slots=True)
class Stored:
    """One response: ``at`` is when it was made, in seconds since the epoch."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at: float

    def remaining(self, life: float, now: float) -> float:
        """How many of the ``life`` seconds it has are left."""
        return max(0.0, min(life, self.at + life - now))

    def fields(self) -> dict[str, str]:
        """The headers, by their names in lower case; several lines of one are a list."""
        fields: dict[str, str] = {}
        for name, value in self.headers:
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        return fields


class StoredCodec:
    """A response as bytes: a line of JSON, then the body. A ``Codec`` of ``Answer``."""

    shareable: Final = True

    def decode(self, body: bytes) -> Answer[Stored]:
        """Raises ``ValueError`` for what is no stored response."""
        head, found, content = body.partition(b"\n")
        status, at, headers = json.loads(head)
        if not found or not isinstance(status, int):
            raise ValueError("no stored response")
        return Answer(Stored(status, tuple((n, v) for n, v in headers), content, float(at)))

    def encode(self, document: Answer[Stored]) -> bytes:
        """Never refuses: what must not be kept does not get here."""
        kept = document.value
        head = json.dumps([kept.status, kept.at, kept.headers], separators=(",", ":"))
        return b"%b\n%b" % (head.encode(), kept.body)

    def copy(self, document: Answer[Stored]) -> Answer[Stored]:
        """Itself: nothing can change it."""
        return document

    def version(self, document: Answer[Stored]) -> int:
        """Responses have no revisions."""
        return VERSION

    def changed_at(self, document: Answer[Stored]) -> datetime:
        """A response is as old as its making."""
        return utcnow()


def stored_of(
    response: Response, kept: Collection[str], statuses: Collection[int]
) -> Stored | None:
    """``response`` as it is kept; None for one that is for nobody else.

    It gets an entity tag of its content if it has none: the same one in every process.
    """
    body: object = getattr(response, "body", None)
    control = _directives(response.headers.getlist("cache-control"))
    if (
        not isinstance(body, bytes | memoryview)
        or response.status_code not in statuses
        or "set-cookie" in response.headers
        or control & _UNSHARED
        or "*" in "".join(response.headers.getlist("vary"))
    ):
        return None
    headers = tuple(
        (name.decode("latin-1").lower(), value.decode("latin-1"))
        for name, value in response.raw_headers
        if name.decode("latin-1").lower() in kept
    )
    content = bytes(body)
    if "etag" not in response.headers:
        headers = (*headers, ("etag", entity_tag(content, headers)))
    return Stored(response.status_code, headers, content, time())


def entity_tag(body: bytes, headers: Sequence[tuple[str, str]]) -> str:
    """A strong tag: the digest of the body, its type and its encoding."""
    digest = hashlib.blake2b(digest_size=TAG_BYTES)
    for name, value in headers:
        if name in ("content-type", "content-encoding", "content-language"):
            digest.update(f"{name}:{value}\n".encode())
    digest.update(b"\n" + body)
    return f'"{base64.urlsafe_b64encode(digest.digest()).decode()}"'


def cache_control(remaining: float, *, public: bool, most: float | None) -> str:
    """``Cache-Control``: for how many seconds others may reuse a response, at ``most``.

    What remains, and no ``Age`` beside it: an age would be taken off once more.
    """
    reusable = int(remaining if most is None else min(remaining, most))
    whose = "public" if public else "private"
    return f"{whose}, max-age={reusable}" if reusable else f"{whose}, no-cache"


@lru_cache
def cache_status(**parameters: str | int | bool) -> str:
    """``Cache-Status`` of this cache: ``hit=True, ttl=42``, or ``fwd="uri-miss"``."""
    given = {
        name: http_sf.Token(value) if isinstance(value, str) else value
        for name, value in parameters.items()
    }
    return http_sf.ser([(_ME, given)])  # type: ignore[list-item] # typed without parameters


def _directives(lines: Sequence[str]) -> set[str]:
    """The names of ``Cache-Control`` directives, in lower case."""
    return {part.split("=", 1)[0].strip().lower() for line in lines for part in line.split(",")}


def asks_for(lines: Sequence[str]) -> str | None:
    """What the caller asks of a cache: ``"no-store"``, ``"no-cache"`` or nothing."""
    asked = _directives(lines)
    ages = {part.strip().replace(" ", "").lower() for line in lines for part in line.split(",")}
    if "no-store" in asked:
        return "no-store"
    return "no-cache" if "no-cache" in asked or "max-age=0" in ages else None


def varying(*fields: str | None) -> str | None:
    """One ``Vary`` of several, each name once."""
    names = {
        name.strip().lower(): name.strip() for field in fields if field for name in field.split(",")
    }
    return ", ".join(names.values()) or None
