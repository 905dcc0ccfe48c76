"""Sessions: what is known of somebody who signed in, under a secret id that only they hold.

All sessions of a user are one hash in Redis, so whatever happens to them happens at once: a
session that is made or rotated while `revoke_all` runs is revoked, or came after it.

    session:{user}        user: a digest of the user's id
        {SHA-256 of id}   when it ends unless it is used, when it ends at the latest
                          (milliseconds of Redis's clock), and the data as JSON

Redis never sees an id, so its dump opens no session. An id is the digest of the user, which says
where to look, and 256 random bits. A session ends a day after it was last used, and after a week
however much it is used; rotation does not prolong the week. While Redis is away nobody is signed
out: who somebody is is then unknown, and the answer is a 503, after a second of silence at most.
"""

import base64
import hashlib
import json
import re
import secrets
from typing import Any

from fastapi import HTTPException, status
from forze.errors import ForzeError
from forze_redis.driver import patience
from redis.exceptions import RedisClusterException, RedisError

from app.core.redis import redis_manager

UNUSED_SECONDS = 86_400
LONGEST_SECONDS = 7 * 86_400
RENEWED_SECONDS = 60
"""How much of its time a session must have spent to be given it anew: saves writes."""
SILENCE_SECONDS = 1.0

_USER_LENGTH = 22
_ID = re.compile(r"[A-Za-z0-9_-]{65}", re.ASCII)

# KEYS: 1  the sessions of a user (hash)
_SESSIONS = """
local sessions = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function ends(session) return tonumber(string.match(session, '^%d+')) end

local function read(field)
  local session = redis.call('HGET', sessions, field)
  if session and ends(session) > now then return string.match(session, '^(%d+) (%d+) (.*)$') end
end

local function keep(field, until_unused, at_the_latest, data)
  local head = string.format('%.0f %.0f ', until_unused, at_the_latest)
  redis.call('HSET', sessions, field, head .. data)
  if redis.call('PTTL', sessions) < until_unused - now then
    redis.call('PEXPIRE', sessions, string.format('%.0f', until_unused - now))
  end
end
"""

# ARGV: 1  session; 2, 3  milliseconds unused, and in all; 4  data. Removes some that have ended.
_CREATE = f"""{_SESSIONS}
local some = redis.call('HRANDFIELD', sessions, 8, 'WITHVALUES')
for i = 1, #some, 2 do
  if ends(some[i + 1]) <= now then redis.call('HDEL', sessions, some[i]) end
end
local at_the_latest = now + ARGV[3]
keep(ARGV[1], math.min(now + ARGV[2], at_the_latest), at_the_latest, ARGV[4])
return 1
"""

# ARGV: 1  session; 2  milliseconds unused; 3  milliseconds spent that make it worth a write
# Reply: its data, or nothing
_GET = f"""{_SESSIONS}
local until_unused, at_the_latest, data = read(ARGV[1])
if not data then return false end
local renewed = math.min(now + ARGV[2], tonumber(at_the_latest))
if renewed - until_unused >= tonumber(ARGV[3]) then
  keep(ARGV[1], renewed, at_the_latest, data)
elseif redis.call('PTTL', sessions) < until_unused - now then
  redis.call('PEXPIRE', sessions, string.format('%.0f', until_unused - now))
end
return data
"""

# ARGV: 1  session; 2  its new name; 3  milliseconds unused. Reply: 1, or 0 for no session
_ROTATE = f"""{_SESSIONS}
local _, at_the_latest, data = read(ARGV[1])
if not data then return 0 end
keep(ARGV[2], math.min(now + ARGV[3], tonumber(at_the_latest)), at_the_latest, data)
redis.call('HDEL', sessions, ARGV[1])
return 1
"""

# Reply: how many there were
_REVOKE_ALL = f"""{_SESSIONS}
local live = 0
for _, session in ipairs(redis.call('HVALS', sessions)) do
  if ends(session) > now then live = live + 1 end
end
redis.call('UNLINK', sessions)
return live
"""


async def create_session(user_id: int | str, data: dict[str, Any]) -> str:
    """Make a session and return its id, a secret of 65 characters; one round trip.

    `data` is what JSON can hold; its "user_id" is always `user_id`.
    """
    session_id = _new_id(_user(user_id))
    text = json.dumps({**data, "user_id": user_id})
    await _run(
        _CREATE, session_id, _name(session_id), UNUSED_SECONDS * 1000, LONGEST_SECONDS * 1000, text
    )
    return session_id


async def get_session(session_id: str) -> dict[str, Any] | None:
    """The session's data, and its time unused begins anew; None where it is not, or no longer.

    One round trip; none for what cannot be an id.
    """
    if not _is_id(session_id):
        return None
    name = _name(session_id)
    text = await _run(_GET, session_id, name, UNUSED_SECONDS * 1000, RENEWED_SECONDS * 1000)
    session: dict[str, Any] | None = None if text is None else json.loads(text)
    return session


async def rotate_session(session_id: str) -> str | None:
    """Give the session a new id, from which moment the old one is nobody's; one round trip.

    To be done whenever rights change (after a password was asked for again), so that an id that
    leaked before is worth nothing. None where the session is not, or no longer.
    """
    if not _is_id(session_id):
        return None
    new_id = _new_id(session_id[:_USER_LENGTH])
    names = _name(session_id), _name(new_id)
    return new_id if await _run(_ROTATE, session_id, *names, UNUSED_SECONDS * 1000) else None


async def delete_session(session_id: str) -> None:
    """End the session, if there is one: signing out."""
    if _is_id(session_id):
        await _run("return redis.call('HDEL', KEYS[1], ARGV[1])", session_id, _name(session_id))


async def revoke_all(user_id: int | str) -> int:
    """End every session of `user_id`, and return how many there were: after a change of password.

    One round trip; what is made at the same time is ended too, or was made afterwards.
    """
    return int(await _run(_REVOKE_ALL, _user(user_id)))


async def _run(script: str, of: str, *args: str | int) -> Any:
    """The script's reply, for the sessions that an id, or a user, belongs to."""
    try:
        client = await redis_manager.get_async_client()
        key = f"session:{of[:_USER_LENGTH]}"
        with patience(SILENCE_SECONDS):
            return await client.register_script(script)(keys=[key], args=args)
    except (RedisError, RedisClusterException, ForzeError, OSError) as error:
        raise HTTPException(
            status.HTTP_503_SERVICE_UNAVAILABLE,
            detail="Sessions are unavailable",
            headers={"Retry-After": "1"},
        ) from error


def _user(user_id: int | str) -> str:
    """A digest of the user's id: 22 characters, 132 bits of it."""
    digest = hashlib.sha256(str(user_id).encode()).digest()
    return base64.urlsafe_b64encode(digest).decode()[:_USER_LENGTH]


def _new_id(user: str) -> str:
    return user + secrets.token_urlsafe(32)


def _is_id(session_id: object) -> bool:
    return isinstance(session_id, str) and _ID.fullmatch(session_id) is not None


def _name(session_id: str) -> str:
    """What Redis knows the session by."""
    return hashlib.sha256(session_id.encode()).hexdigest()
