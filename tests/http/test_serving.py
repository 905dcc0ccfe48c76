"""The server that the tests of HTTP share leaves nothing behind in their process."""

from __future__ import annotations

import signal

from fastapi import FastAPI

from forze.testing.serving import serving


async def test_ctrl_c_is_whose_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    first, second = serving(FastAPI()), serving(FastAPI())
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    await second.__aexit__(None, None, None)
    assert signal.getsignal(signal.SIGINT) is before
