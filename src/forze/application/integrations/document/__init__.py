"""The document read-through: ports, coordination, and the protocol that keeps reads fresh."""

from forze.application.integrations.document.l1.lru import LruL1Store, lru_l1_store
from forze.application.integrations.document.l1.store import L1Stats, L1Store
from forze.application.integrations.document.l1.tiny_lfu import TinyLfuL1Store, tiny_lfu_l1_store

__all__ = [
    "L1Stats",
    "L1Store",
    "LruL1Store",
    "TinyLfuL1Store",
    "lru_l1_store",
    "tiny_lfu_l1_store",
]
