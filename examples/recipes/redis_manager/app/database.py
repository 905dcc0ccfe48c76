"""What stands for the database: users, how often they were asked for, and a way to be slow."""

import asyncio
from dataclasses import dataclass, field

from pydantic import BaseModel


class Profile(BaseModel):
    """What everybody may know of a user."""

    id: int
    name: str


@dataclass
class Users:
    """A table of users."""

    rows: dict[int, Profile] = field(default_factory=dict)
    queries: int = 0
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, what was read stays on its way."""

    async def get_by_id(self, user_id: int) -> Profile | None:
        """The row as it is now, delivered when `answers` is set."""
        self.queries += 1
        row = self.rows.get(user_id)
        await self.answers.wait()
        return row

    async def update(self, user_id: int, name: str) -> Profile:
        """Write a name."""
        self.rows[user_id] = Profile(id=user_id, name=name)
        return self.rows[user_id]


users = Users({7: Profile(id=7, name="Ann"), 70: Profile(id=70, name="Bob")})
users.answers.set()
