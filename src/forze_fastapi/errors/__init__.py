"""Errors over HTTP: problem details (RFC 9457) for everything that can go wrong.

- ``problem``: what a problem looks like, and the exception that is one.
- ``mapping``: which problem each error of the tree is; pure.
- ``handlers``: the exception handlers of an application.
- ``openapi``: the same in the application's OpenAPI document.

A problem says what the caller did, can do, or may expect. What happened inside (hosts, DSNs,
statements, names of the wiring) is in the log and never in a response.
"""

from forze_fastapi.errors.handlers import problem_response, register_exception_handlers
from forze_fastapi.errors.mapping import problem_of
from forze_fastapi.errors.openapi import problem_responses
from forze_fastapi.errors.problem import HTTPProblem, InvalidInput, Problem

__all__ = [
    "HTTPProblem",
    "InvalidInput",
    "Problem",
    "problem_of",
    "problem_response",
    "problem_responses",
    "register_exception_handlers",
]
