"""The in-process tier of one cached function: entries by address, apart from those of tags.

A tag that changes has to take every entry along that carries it, and there is no list of them.
So each entry is kept with the *epochs* its tags had in this process, objects that stand for
nothing but themselves; dropping a tag forgets its epoch, and with it goes whatever has the old
one, when it is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from time import monotonic
from typing import Any, Final, cast

from forze.application.integrations.cached.tags import TAG, tags_of
from forze.application.integrations.cached.values import Answer
from forze.application.integrations.document.codec import Codec
from forze.application.integrations.document.l1.store import L1Store
from forze.application.integrations.document.l1.tier import Key, Tier

KNOWN_TAGS: Final = 100_000
"""Epochs remembered; above it all of them are forgotten, and every tagged entry with them."""


class CallTier(Tier[Answer[Any]]):
    """The entries of one function in this process. The key of an entry is its address."""

    __slots__ = ("_epochs",)

    def __init__(self, store: L1Store, codec: Codec[Answer[Any]], *, ttl: timedelta) -> None:
        super().__init__(store, codec, ttl=ttl, tenant_aware=False)
        self._epochs: dict[str, object] = {}

    def key(self, pk: object, address: str) -> Key:
        """The address."""
        return address

    def get(self, key: Key) -> Answer[Any] | None:
        """The entry of ``key``, if the tier may serve it and no tag of it has changed."""
        if monotonic() >= self.trusted_until:
            return None
        found = self.find(key)
        if found is None:
            return None
        kept, epochs = cast("tuple[Any, tuple[object, ...]]", found)
        if epochs and epochs != tuple(map(self._epochs.get, tags_of(cast(str, key)))):
            self.store.invalidate(key)
            return None
        return cast("Answer[Any]", kept) if self.shared else self.decode(kept)

    def kept(self, key: Key, document: Answer[Any], body: bytes) -> object:
        """What is stored of an answer. No tag changed since it was asked for: its mark stands."""
        tags = tags_of(cast(str, key))
        return super().kept(key, document, body), tuple(map(self._epoch, tags))

    def drop(self, addresses: Iterable[str], *, pushed: bool = False) -> None:
        """Drop the entries at these addresses, and those that carry one that is a tag."""
        listed = list(addresses)
        super().drop(listed, pushed=pushed)
        for tag in listed:
            if TAG in tag:
                self._epochs.pop(tag, None)
                asked = [each for each in self._marks if tag in tags_of(cast(str, each))]
                for each in asked:
                    del self._marks[each]

    def flush(self) -> None:
        """Drop everything."""
        super().flush()
        self._epochs.clear()

    def key_at(self, address: str) -> Key | None:
        """The address."""
        return address

    def _epoch(self, tag: str) -> object:
        epoch = self._epochs.get(tag)
        if epoch is None:
            if len(self._epochs) >= KNOWN_TAGS:
                self._epochs.clear()
            epoch = self._epochs[tag] = object()
        return epoch
