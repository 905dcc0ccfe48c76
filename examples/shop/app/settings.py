"""What differs from one place to the next, from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Addresses and secrets. The console is off without a token."""

    postgres_dsn: str
    redis_dsn: str
    cursor_secret: str
    console_token: str | None = None

    @classmethod
    def from_environment(cls) -> Settings:
        """``SHOP_POSTGRES_DSN`` and the like."""
        return cls(
            postgres_dsn=os.environ["SHOP_POSTGRES_DSN"],
            redis_dsn=os.environ["SHOP_REDIS_DSN"],
            cursor_secret=os.environ["SHOP_CURSOR_SECRET"],
            console_token=os.environ.get("SHOP_CONSOLE_TOKEN"),
        )


settings = Settings.from_environment()
