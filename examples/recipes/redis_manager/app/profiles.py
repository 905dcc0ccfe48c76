"""Answers that are cached for five minutes, and forgotten when what they were made of changes.

What is cached comes back as the model it was. Without Redis the database answers: a cache may be
away, its users may not notice. What this cannot do: a reader that was slow puts back what a writer
has just removed (see the README); documents of forze do not have that.
"""

import logging

from forze.errors import ForzeError

from app.core.redis import redis_manager
from app.database import Profile, users

logger = logging.getLogger(__name__)

PROFILE_SECONDS = 300


async def get_user_profile(user_id: int) -> Profile | None:
    """The profile, from the cache where it is there."""
    cache_key = f"user:{user_id}:profile"
    try:
        cached = await redis_manager.get_async(cache_key)
    except ForzeError as error:
        logger.warning("profiles come from the database: %s", error)
        return await users.get_by_id(user_id)
    if cached is not None:
        return Profile.model_validate_json(cached)
    user = await users.get_by_id(user_id)
    if user is not None:
        await redis_manager.set_async(cache_key, user.model_dump_json(), ex=PROFILE_SECONDS)
    return user


async def update_user_profile(user_id: int, name: str) -> Profile:
    """Change the profile, and forget the cached one."""
    user = await users.update(user_id, name)
    try:
        await redis_manager.delete_async(f"user:{user_id}:profile")
    except ForzeError as error:  # the change stands; the old profile lives for its five minutes
        logger.warning("the cached profile of user %s was not removed: %s", user_id, error)
    return user


async def clear_user_caches(user_id: int) -> int:
    """Forget all that is cached of a user; how many entries it was."""
    return await redis_manager.delete_pattern_async(f"user:{user_id}:*")
