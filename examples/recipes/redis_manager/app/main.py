"""The application: `uvicorn app.main:app` serves it."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Cookie, Depends, FastAPI, HTTPException, Response, status
from forze.errors import ForzeError
from forze_fastapi import register_exception_handlers
from pydantic import BaseModel

from app.core.rate_limit import check_rate_limit
from app.core.redis import redis_manager
from app.core.sessions import (
    create_session,
    delete_session,
    get_session,
    revoke_all,
    rotate_session,
)
from app.database import Profile
from app.profiles import clear_user_caches, get_user_profile, update_user_profile
from app.tasks import process_data

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Connect before the first request, and let go after the last."""
    await redis_manager.initialize_async()
    try:
        yield
    finally:
        await redis_manager.close()


app = FastAPI(title="RedisManager", lifespan=lifespan)
register_exception_handlers(app)


# -- cached answers


@app.get("/users/{user_id}")
async def read_profile(user_id: int) -> Profile:
    """A profile, cached."""
    profile = await get_user_profile(user_id)
    if profile is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    return profile


@app.put("/users/{user_id}")
async def change_profile(user_id: int, name: str) -> Profile:
    """Another name."""
    return await update_user_profile(user_id, name)


@app.delete("/users/{user_id}/caches")
async def forget(user_id: int) -> dict[str, int]:
    """Forget all that is cached of a user."""
    return {"deleted": await clear_user_caches(user_id)}


# -- sessions


class SignIn(BaseModel):
    """Who somebody says they are; checking it is another matter."""

    user_id: int


Id = Annotated[str, Cookie(alias="session")]


async def signed_in(session: Id = "") -> dict[str, Any]:
    """The session that the request's cookie names."""
    found = await get_session(session)
    if found is None:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED)
    return found


Session = Annotated[dict[str, Any], Depends(signed_in)]


@app.post("/sign-in")
async def sign_in(who: SignIn, response: Response) -> None:
    """A new session; five attempts a minute, and none that nobody counts."""
    await check_rate_limit(f"sign-in:{who.user_id}", limit=5, window=60, fail="closed")
    hand_out(response, await create_session(who.user_id, {"theme": "dark"}))


@app.get("/me")
async def me(session: Session) -> dict[str, Any]:
    """What the session holds."""
    return session


@app.post("/password")
async def change_password(response: Response, session: Id = "") -> None:
    """Rights have changed: the id that the session had until here is worth nothing any more."""
    new_id = await rotate_session(session)
    if new_id is None:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED)
    hand_out(response, new_id)


@app.post("/sign-out")
async def sign_out(response: Response, session: Id = "") -> None:
    """The end of this session."""
    await delete_session(session)
    response.delete_cookie("session")


@app.post("/sign-out-everywhere")
async def sign_out_everywhere(session: Session) -> dict[str, int]:
    """The end of all sessions of this user."""
    return {"revoked": await revoke_all(session["user_id"])}


def hand_out(response: Response, session_id: str) -> None:
    """In a cookie that scripts cannot read and other sites cannot use."""
    response.set_cookie("session", session_id, httponly=True, secure=True, samesite="lax")


# -- a limit, direct access, a task, health


@app.get("/search")
async def search(user_id: int) -> list[str]:
    """Ten times a minute."""
    await check_rate_limit(user_id, limit=10, window=60)
    return []


@app.post("/visits/{page}")
async def visit(page: str) -> dict[str, int]:
    """Counted with redis-py's own client: everything Redis can do is there."""
    client = await redis_manager.get_async_client()
    await client.hincrby("visits", page, 1)
    return {str(each): int(count) for each, count in (await client.hgetall("visits")).items()}


@app.post("/reports/{key}", status_code=status.HTTP_202_ACCEPTED)
def order_report(key: str) -> dict[str, str]:
    """Leave it to Celery. Publishing blocks, so this is a plain function: it runs in a thread."""
    return {"task": process_data.delay(f"report:{key}").id}


@app.get("/reports/{key}")
async def read_report(key: str) -> str:
    """What the task has put into the cache."""
    cached = await redis_manager.get_async(f"report:{key}")
    if cached is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    return cached


@app.get("/health/redis")
async def redis_health(response: Response) -> dict[str, str]:
    """503 where Redis does not answer; why it does not is in the log, not in the answer."""
    try:
        await redis_manager.async_test_connection()
    except ForzeError as error:
        logger.warning("Redis does not answer: %s", error)
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
        return {"status": "unhealthy"}
    return {"status": "healthy"}
