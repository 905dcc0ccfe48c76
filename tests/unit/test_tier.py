"""The tier's marks, on their own: which answers it keeps, and which it must not."""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from forze.application.integrations.document import LruL1Store
from forze.application.integrations.document.codec import DocumentCodec
from forze.application.integrations.document.l1 import tier
from forze.application.integrations.document.l1.tier import Tier
from forze.domain.models import ReadDocument


class Note(ReadDocument):
    text: str


class Tagged(ReadDocument):
    tags: list[str]


PREFIX = "app/cache/pointer/"
TTL = timedelta(seconds=60)


def note(pk: UUID, text: str = "kept") -> tuple[Note, bytes]:
    made = Note.model_validate(
        {
            "id": pk,
            "rev": 1,
            "created_at": "2026-01-01T00:00:00Z",
            "last_update_at": "2026-01-01T00:00:00Z",
            "text": text,
        }
    )
    return made, made.model_dump_json().encode()


class Kept:
    """A tier, and one document's place in it."""

    def __init__(self, *, tenant_aware: bool = False, ttl: timedelta = TTL) -> None:
        store = LruL1Store(capacity=8, ttl=TTL)
        self.tier = Tier(store, DocumentCodec(Note, "notes"), ttl=ttl, tenant_aware=tenant_aware)
        self.pk = uuid4()
        self.address = f"{PREFIX}{self.pk}"
        self.key = self.tier.key(self.pk, self.address)
        self.note, self.body = note(self.pk)

    def take(self, mark: float) -> bool:
        return self.tier.take(self.key, mark, self.note, self.body)


def test_an_answer_is_kept_while_its_mark_stands() -> None:
    it = Kept()
    assert it.take(it.tier.reserve(it.key))
    assert it.tier.get(it.key) is it.note
    assert not it.take(time.monotonic()), "an answer nobody asked for"


@pytest.mark.parametrize("pushed", [True, False])
def test_a_change_takes_entry_and_mark(pushed: bool) -> None:
    """P11: so the answer under way is not kept either."""
    it = Kept()
    it.take(it.tier.reserve(it.key))
    mark = it.tier.reserve(it.key)
    it.tier.drop((it.address,), pushed=pushed)
    assert not it.take(mark)
    assert it.tier.get(it.key) is None
    assert it.tier.pushed == pushed


def test_marks_are_not_shared() -> None:
    """P11: of questions under way together the first to ask keeps its answer, and no other."""
    it = Kept()
    first, second = it.tier.reserve(it.key), it.tier.reserve(it.key)
    assert not it.take(second)
    assert it.tier.get(it.key) is None
    assert it.take(first)
    assert it.tier.get(it.key) is it.note


def test_a_mark_that_would_be_too_late_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Kept()
    first = it.tier.reserve(it.key)
    monkeypatch.setattr(tier, "monotonic", lambda: first + 0.3)
    second = it.tier.reserve(it.key)
    assert not it.take(first)
    assert it.take(second)


def test_asking_removes_what_stood_there() -> None:
    """P12: a question may change the pointer, and only its own answer is known to be newer."""
    it = Kept()
    it.take(it.tier.reserve(it.key))
    mark = it.tier.reserve(it.key)
    assert it.tier.get(it.key) is None
    it.tier.withdraw(it.key, mark)
    assert not it.take(mark)


def test_a_withdrawn_mark_leaves_a_later_one() -> None:
    it = Kept()
    first, second = it.tier.reserve(it.key), it.tier.reserve(it.key)
    it.tier.withdraw(it.key, second)
    assert it.take(first)


def test_a_flush_takes_everything() -> None:
    """P11: entries, and answers under way."""
    it = Kept()
    it.take(it.tier.reserve(it.key))
    other = it.tier.key(uuid4(), PREFIX + str(uuid4()))
    mark = it.tier.reserve(other)
    it.tier.flush()
    assert it.tier.get(it.key) is None
    assert not it.tier.take(other, mark, it.note, it.body)
    assert it.tier.flushes == 1


def test_nothing_is_kept_or_served_without_trust() -> None:
    """P11: trust is granted for a moment, and what was kept is there again with the next."""
    it = Kept()
    it.take(it.tier.reserve(it.key))
    it.tier.trust(time.monotonic() - 0.001, 3.0)
    assert it.tier.get(it.key) is None
    it.tier.trust(time.monotonic() + 60, 3.0)
    assert it.tier.get(it.key) is it.note
    mark = it.tier.reserve(it.key)
    it.tier.trust(float("-inf"), 0.0)
    assert not it.take(mark)
    it.tier.trust(float("inf"), 3.0)
    assert it.tier.get(it.key) is None


@pytest.mark.parametrize(("ttl_s", "late_s"), [(60.0, 0.25), (0.4, 0.1)])
def test_an_answer_that_lay_unread_is_not_kept(
    ttl_s: float, late_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stood still would serve it for its ttl from then on."""
    it = Kept(ttl=timedelta(seconds=ttl_s))
    asked = time.monotonic()
    for waited_s, kept in ((late_s - 0.01, True), (late_s + 0.01, False)):
        monkeypatch.setattr(tier, "monotonic", lambda: asked)
        mark = it.tier.reserve(it.key)
        monkeypatch.setattr(tier, "monotonic", lambda waited_s=waited_s: asked + waited_s)
        assert it.take(mark) is kept


def test_what_is_no_document_is_ignored() -> None:
    it = Kept()
    it.take(it.tier.reserve(it.key))
    it.tier.drop((PREFIX + "plain", PREFIX + "x" * 40, "", PREFIX + str(uuid4())))
    assert it.tier.get(it.key) is it.note


def test_a_tenants_place_is_its_own() -> None:
    """P8: one id under two prefixes is two entries."""
    it = Kept(tenant_aware=True)
    one, two = (f"{PREFIX}{tenant}/{it.pk}" for tenant in ("one", "two"))
    for address in (one, two):
        key = it.tier.key(it.pk, address)
        it.tier.take(key, it.tier.reserve(key), it.note, it.body)
    it.tier.drop((one,))
    assert it.tier.get(it.tier.key(it.pk, one)) is None
    assert it.tier.get(it.tier.key(it.pk, two)) is it.note


def test_mutable_documents_are_made_anew() -> None:
    """P13: neither the reader that filled the tier nor one it serves holds what it keeps."""
    store = LruL1Store(capacity=8, ttl=TTL)
    tier = Tier(store, DocumentCodec(Tagged, "tagged"), ttl=TTL, tenant_aware=False)
    pk = uuid4()
    made = Tagged.model_validate(note(pk)[0].model_dump(exclude={"text"}) | {"tags": ["a"]})
    key = tier.key(pk, PREFIX + str(pk))
    tier.take(key, tier.reserve(key), made, made.model_dump_json().encode())
    made.tags.append("poison")
    served = tier.get(key)
    assert served is not None
    served.tags.append("poison")
    again = tier.get(key)
    assert again is not None
    assert again.tags == ["a"]
