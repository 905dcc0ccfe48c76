"""Contract batteries: each port's list of behaviours, written once for every backend.

A battery is a plain class whose ``test_*`` methods take a leg: what the backend under test
hands to it. With pytest, define a fixture of that name and subclass the battery in a test
module; nothing here imports pytest. Two batteries per port: what it does, and what it does
when things go wrong.
"""

from forze.testing.batteries.cache import CacheBehaviour, CacheFailures, CacheOutage
from forze.testing.batteries.documents import DocumentBehaviour, DocumentFailures, DocumentOutage
from forze.testing.batteries.freshness import RefreshBehaviour, SlidingBehaviour
from forze.testing.batteries.legs import CacheLeg, DocumentLeg, Outage
from forze.testing.batteries.pointers import PointerBehaviour, PointerFailures
from forze.testing.batteries.stores import StoreBehaviour, StoreFailures
from forze.testing.batteries.transactions import TransactionBehaviour, TransactionFailures

__all__ = [
    "CacheBehaviour",
    "CacheFailures",
    "CacheLeg",
    "CacheOutage",
    "DocumentBehaviour",
    "DocumentFailures",
    "DocumentLeg",
    "DocumentOutage",
    "Outage",
    "PointerBehaviour",
    "PointerFailures",
    "RefreshBehaviour",
    "SlidingBehaviour",
    "StoreBehaviour",
    "StoreFailures",
    "TransactionBehaviour",
    "TransactionFailures",
]
