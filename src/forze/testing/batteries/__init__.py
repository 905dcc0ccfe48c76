"""Contract batteries: each port's list of behaviours, written once for every backend.

A battery is a plain class whose ``test_*`` methods take a leg: what the backend under test
hands to it. With pytest, define a fixture of that name and subclass the battery in a test
module; nothing here imports pytest. Two batteries per port: what it does, and what it does
when things go wrong.
"""

from forze.testing.batteries.cache import CacheBehaviour, CacheFailures, CacheOutage
from forze.testing.batteries.cached_functions import CachedBehaviour, CachedFailures
from forze.testing.batteries.counters import (
    CounterBehaviour,
    CounterFailures,
    CounterLeg,
    CounterOutage,
)
from forze.testing.batteries.documents import DocumentBehaviour, DocumentFailures, DocumentOutage
from forze.testing.batteries.freshness import RefreshBehaviour, SlidingBehaviour
from forze.testing.batteries.id_blocks import AllocatorBehaviour, AllocatorFailures
from forze.testing.batteries.idempotency import IdempotencyBehaviour, IdempotencyLeg
from forze.testing.batteries.idempotency_failures import (
    IdempotencyFailures,
    IdempotencyOutage,
    IdempotencyTransactions,
)
from forze.testing.batteries.idempotency_ownership import IdempotencyOwnership
from forze.testing.batteries.inspection import InspectionBehaviour
from forze.testing.batteries.legs import CacheLeg, DocumentLeg, Outage
from forze.testing.batteries.locks import (
    DistributedLockBehaviour,
    DistributedLockFailures,
    DistributedLockOutage,
    LockLeg,
)
from forze.testing.batteries.pointers import PointerBehaviour, PointerFailures
from forze.testing.batteries.resilience import (
    BreakerBehaviour,
    BreakerFailures,
    RateLimitBehaviour,
    RateLimitFailures,
    ResilienceLeg,
)
from forze.testing.batteries.search_snapshots import (
    CursorBehaviour,
    SnapshotBehaviour,
    SnapshotFailures,
    SnapshotLeg,
    SnapshotOutage,
)
from forze.testing.batteries.shared_locks import (
    ReadWriteLockBehaviour,
    ReadWriteLockFailures,
    SemaphoreBehaviour,
    SemaphoreFailures,
)
from forze.testing.batteries.snapshot_searches import (
    SnapshotSearchBehaviour,
    SnapshotSearchFailures,
    SnapshotSearchLeg,
)
from forze.testing.batteries.stores import StoreBehaviour, StoreFailures
from forze.testing.batteries.transactions import TransactionBehaviour, TransactionFailures

__all__ = [
    "AllocatorBehaviour",
    "AllocatorFailures",
    "BreakerBehaviour",
    "BreakerFailures",
    "CacheBehaviour",
    "CacheFailures",
    "CacheLeg",
    "CacheOutage",
    "CachedBehaviour",
    "CachedFailures",
    "CounterBehaviour",
    "CounterFailures",
    "CounterLeg",
    "CounterOutage",
    "CursorBehaviour",
    "DistributedLockBehaviour",
    "DistributedLockFailures",
    "DistributedLockOutage",
    "DocumentBehaviour",
    "DocumentFailures",
    "DocumentLeg",
    "DocumentOutage",
    "IdempotencyBehaviour",
    "IdempotencyFailures",
    "IdempotencyLeg",
    "IdempotencyOutage",
    "IdempotencyOwnership",
    "IdempotencyTransactions",
    "InspectionBehaviour",
    "LockLeg",
    "Outage",
    "PointerBehaviour",
    "PointerFailures",
    "RateLimitBehaviour",
    "RateLimitFailures",
    "ReadWriteLockBehaviour",
    "ReadWriteLockFailures",
    "RefreshBehaviour",
    "ResilienceLeg",
    "SemaphoreBehaviour",
    "SemaphoreFailures",
    "SlidingBehaviour",
    "SnapshotBehaviour",
    "SnapshotFailures",
    "SnapshotLeg",
    "SnapshotOutage",
    "SnapshotSearchBehaviour",
    "SnapshotSearchFailures",
    "SnapshotSearchLeg",
    "StoreBehaviour",
    "StoreFailures",
    "TransactionBehaviour",
    "TransactionFailures",
]
