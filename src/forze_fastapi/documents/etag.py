"""Entity tags of documents, and what conditional requests make of them: decided, not acted on.

A tag is the digest of what a representation is a function of: the shape of the read model as
it is written out, the document's id, ``rev`` and both times. Nothing of the process goes in,
so every replica gives the same one; and nothing but the document has to be read to know it,
so a revalidation costs what a cached read costs.

A digest of the representation itself would do as well and cost its serialisation, and would
change with the order of a set. Tags are strong: the bytes under one are always the same.

Source: RFC 9110, sections 8.8.3 (tags, comparison), 13.1 (conditions), 13.2.2 (their order).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from pydantic import BaseModel

from forze.application.integrations.document.codec import schema_digest
from forze.domain.models import ReadDocument

TAG_BYTES = 15

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_FIELD = re.compile(rf"[ \t]*(?:\*|,*[ \t]*{_TAG}(?:[ \t]*,[ \t]*(?:{_TAG})?)*)[ \t]*")
_TAGS = re.compile(_TAG)


class Tagger:
    """The tags of one read model. ``scope`` separates documents that share a model."""

    __slots__ = ("_seed",)

    def __init__(self, model: type[BaseModel], scope: str) -> None:
        self._seed = hashlib.blake2b(
            schema_digest(model, scope, mode="serialization").encode(), digest_size=TAG_BYTES
        )

    def tag(self, document: ReadDocument) -> str:
        """The tag of ``document``, quoted."""
        digest = self._seed.copy()
        created, updated = document.created_at.isoformat(), document.last_update_at.isoformat()
        digest.update(f"{document.id} {document.rev} {created} {updated}".encode())
        return f'"{base64.urlsafe_b64encode(digest.digest()).decode()}"'


class Tags(NamedTuple):
    """The field value of ``If-Match`` or ``If-None-Match``: any document, or one of these."""

    anything: bool
    listed: frozenset[str]

    def strongly(self, tag: str | None) -> bool:
        """Whether a document with this tag meets ``If-Match``; None is a document without one."""
        return self.anything or tag in self.listed

    def weakly(self, tag: str | None) -> bool:
        """Whether a document with this tag is one that ``If-None-Match`` names."""
        return self.anything or tag in self.listed or f"W/{tag}" in self.listed


def parse_tags(lines: Sequence[str]) -> Tags | None:
    """The tags of a field that may be sent in several lines; None where it is malformed.

    ``*`` stands alone, empty members of a list are allowed.
    """
    text = ",".join(lines)
    if _FIELD.fullmatch(text) is None:
        return None
    return Tags(text.strip() == "*", frozenset(_TAGS.findall(text)))


class Verdict(Enum):
    """What the conditions of a read say."""

    SEND = 200
    NOT_MODIFIED = 304
    FAILED = 412


def judge_read(tag: str | None, match: Tags | None, none_match: Tags | None) -> Verdict:
    """What to do with a read of a document that exists; ``If-Match`` is judged first."""
    if match is not None and not match.strongly(tag):
        return Verdict.FAILED
    if none_match is not None and none_match.weakly(tag):
        return Verdict.NOT_MODIFIED
    return Verdict.SEND
