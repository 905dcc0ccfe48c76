"""The page: one file, and the headers that keep everything else out of it."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final, NamedTuple

_INLINE: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


class Page(NamedTuple):
    """What is sent, and with which headers."""

    body: bytes
    headers: dict[str, str]


@cache
def load_page() -> Page:
    """The page; only its own script and style run in it, and it talks to its own origin only."""
    text = (files("forze_fastapi.console") / "page.html").read_text("utf-8")
    allowed = {kind: _digest(content) for kind, content in _INLINE.findall(text)}
    policy = (
        "default-src 'none'",
        f"script-src {allowed['script']}",
        f"style-src {allowed['style']}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return Page(
        text.encode(),
        {
            "Content-Security-Policy": "; ".join(policy),
            "Cross-Origin-Opener-Policy": "same-origin",
        },
    )


QUIET: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}
"""On every answer that does not say otherwise."""


def _digest(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
