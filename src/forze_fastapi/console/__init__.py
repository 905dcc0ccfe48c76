"""A page that shows live what the caches do, and explains one key. Off unless it is asked for.

- ``router``: what is served, to whom, under which headers.
- ``gathering``: what this process knows, put together for one answer.
- ``history``: the last minute.
- ``explaining``: one document: where it is, and why its reads go where they go.
- ``shapes``: what the answers look like.
- ``page`` and ``page.html``: the page itself. It has no part elsewhere, and no build.

The page shows one process: with several replicas, that which happened to answer.
"""

from forze_fastapi.console.router import console, open_to_everyone

__all__ = ["console", "open_to_everyone"]
