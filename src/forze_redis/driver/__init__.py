"""redis-py clients from a URL, guarded and bounded, for any thread, event loop and child process.

:func:`async_client` and :func:`sync_client` return clients of redis-py itself, so everything
redis-py can do is there; what they add is under them, in the pools:

- a call waits for a connection, with a deadline, instead of failing when all are in use;
- one :class:`ConnectionLimit` can bound several clients, asynchronous and blocking, together;
- a :class:`Guard` (say a :class:`Circuit`) lets calls fail at once while the server is away;
- one client serves several event loops and threads, and a forked child begins anew.

Errors are those of redis-py. :class:`PoolTimeout` and :class:`Refused` are of both families:
``redis.ConnectionError`` and :class:`~forze.errors.BackendError`.
"""

import os
from typing import Any

from forze_redis.driver import async_client as _async
from forze_redis.driver import async_cluster as _async_cluster
from forze_redis.driver import limit as _limit
from forze_redis.driver import sync_client as _sync
from forze_redis.driver import sync_cluster as _sync_cluster
from forze_redis.driver.async_client import async_client
from forze_redis.driver.guard import Circuit, Guard, NoGuard, Refused
from forze_redis.driver.limit import ConnectionLimit, PoolTimeout
from forze_redis.driver.options import DriverOptions
from forze_redis.driver.parting import Parting
from forze_redis.driver.patience import asked_seconds, patience
from forze_redis.driver.sync_client import sync_client

__all__ = [
    "Circuit",
    "ConnectionLimit",
    "DriverOptions",
    "Guard",
    "NoGuard",
    "PoolTimeout",
    "Refused",
    "asked_seconds",
    "async_client",
    "leave",
    "patience",
    "sync_client",
]


def leave(client: Any, *, in_use: bool = False) -> Parting:
    """Begin to close the connections of a client of ours, on every loop and from any thread.

    Then ``wait()``, or ``await gone()``: it returns when they are. Calls under way end as they
    would, unless ``in_use``, and close theirs afterwards. The client may be used again.
    """
    cluster = isinstance(client, (_async_cluster.LoopCluster, _sync_cluster.ThreadCluster))
    owner = client if cluster else client.connection_pool
    parting: Parting = owner.leave(in_use=in_use)
    return parting


def _after_fork() -> None:
    _limit.after_fork()  # first: the pools count anew with it
    for module in (_async, _sync, _async_cluster, _sync_cluster):
        module.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
