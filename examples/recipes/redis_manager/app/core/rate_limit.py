"""Rate limits: at most `limit` calls of a user in any `window` seconds, over all processes.

Redis keeps, per user and limit, when the last `limit` calls were let through, by its own clock.
The next one is let through once the oldest of them is a window ago. So no window holds more,
wherever it begins; a counter with a TTL lets twice the limit through around its end.

While Redis is away every call is let through: a limit protects the service, and refusing all of
it would be the worse outage. The log says so, once, and again when the limits are back. A server
that is silent for a second counts as away. Where no call may go through uncounted (guessing
passwords), `fail="closed"` answers 503 instead. So does a process that has more to do than its
connections can carry: that is no outage of Redis.
"""

import hashlib
import logging
from math import ceil
from threading import Event
from typing import Literal

from fastapi import HTTPException, status
from forze.errors import ForzeError
from forze_redis.driver import patience
from redis.exceptions import MaxConnectionsError, RedisClusterException, RedisError

from app.core.redis import redis_manager

logger = logging.getLogger(__name__)

# KEYS: 1  when calls were let through (list of microseconds since 1970), the oldest first
# ARGV: 1  limit; 2  window (microseconds)
# Reply: 0 where this call is let through, else microseconds until one can be
_ADMIT = """
local calls, limit, window = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function remember(at)
  redis.call('RPUSH', calls, string.format('%.0f', at))
  redis.call('PEXPIRE', calls, string.format('%.0f', math.ceil(window / 1000)))
end

-- The clock was put back: so are the calls, or nobody gets through until it has caught up.
local ahead = (tonumber(redis.call('LINDEX', calls, -1)) or now) - now
if ahead > 0 then
  local before = redis.call('LRANGE', calls, 0, -1)
  redis.call('DEL', calls)
  for _, at in ipairs(before) do remember(at - ahead) end
end

if redis.call('LLEN', calls) >= limit then
  local wait = redis.call('LINDEX', calls, 0) + window - now
  if wait > 0 then return wait end
  redis.call('LPOP', calls)
end
remember(now)
return 0
"""

_LONGEST_ID = 64
_SILENCE_SECONDS = 1.0
_away = Event()
"""Set from the first call that Redis did not answer to the first that it does."""


async def check_rate_limit(
    user_id: int | str,
    limit: int = 100,
    window: int = 60,
    *,
    fail: Literal["open", "closed"] = "open",
) -> None:
    """Count a call of `user_id`, or raise a 429 that says when the next one can succeed.

    One round trip. A refusal writes nothing, so that asking again does not prolong it. Calls with
    another `limit` or `window` are counted apart.
    """
    if limit <= 0 or window <= 0:
        raise ValueError(f"limit and window must be above 0, not {limit!r} and {window!r}")
    wait = await _ask(_key(user_id, limit, window), limit, window * 1_000_000)
    if wait is None and fail == "closed":
        raise _unavailable()
    if wait:
        raise HTTPException(
            status.HTTP_429_TOO_MANY_REQUESTS,
            detail="Rate limit exceeded",
            headers={"Retry-After": str(ceil(wait / 1_000_000))},
        )


async def _ask(key: str, limit: int, window: int) -> int | None:
    """Microseconds to wait, 0 for a call that is let through; None where nobody knows."""
    try:
        client = await redis_manager.get_async_client()
        with patience(_SILENCE_SECONDS):
            wait = int(await client.register_script(_ADMIT)(keys=[key], args=[limit, window]))
    except MaxConnectionsError as error:
        raise _unavailable() from error
    except (RedisError, RedisClusterException, ForzeError, OSError) as error:
        if not _away.is_set():
            logger.warning("rate limits: Redis is away, calls are not counted: %s", error)
        _away.set()
        return None
    if _away.is_set():
        logger.warning("rate limits: Redis is back, calls are counted")
    _away.clear()
    return wait


def _unavailable() -> HTTPException:
    return HTTPException(
        status.HTTP_503_SERVICE_UNAVAILABLE,
        detail="Rate limits are unavailable",
        headers={"Retry-After": "1"},
    )


def _key(user_id: int | str, limit: int, window: int) -> str:
    """Where calls are counted; different for different arguments, and never long."""
    name = str(user_id)
    if len(name) >= _LONGEST_ID:
        name = hashlib.sha256(name.encode()).hexdigest()
    return f"rate_limit:{name}:{limit}:{window}"
