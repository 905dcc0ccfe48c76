"""Many servers behind one client: which one a call goes to, and how clients come and go.

``client`` is what users hold, ``routes`` the table of clients behind it, with a ``seats`` entry
for each; ``endpoints`` finds where a route leads, ``rotation`` moves it elsewhere. ``cache`` and
``pointers`` are the cache over it.
"""

from forze_redis.routed.client import RoutedRedisClient
from forze_redis.routed.endpoints import Endpoints

__all__ = ["Endpoints", "RoutedRedisClient"]
