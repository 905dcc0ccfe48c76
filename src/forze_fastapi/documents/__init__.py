"""Documents over HTTP: typed REST routes for a ``DocumentSpec``.

- ``endpoints``: puts the routes on a router; ``options`` what can be chosen about them.
- ``operations``: what they do, over the ports.
- ``representation``, ``etag``: how documents are sent, and conditional requests.
- ``listing``, ``filters``: lists, by the query parameters of a URL.
- ``bodies``, ``signature``, ``openapi``: what FastAPI is told, and tells callers.
- ``route``, ``strict_json``: the class of the routes, and the JSON it accepts.
- ``exact``: values that are what their schema says.
"""

from forze_fastapi.documents.endpoints import attach_document_endpoints

__all__ = ["attach_document_endpoints"]
