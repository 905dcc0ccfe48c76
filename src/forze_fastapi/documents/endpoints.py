"""REST routes for a document kind, put on a router by one call.

======  ==================  ===================  =====================================
method  path                operation id         answers
======  ==================  ===================  =====================================
POST    ``/products``       ``products_create``  201, ``Location``, ``ETag``
GET     ``/products``       ``products_list``    200, a page, ``Link`` to the next one
GET     ``/products/{id}``  ``products_get``     200, ``ETag``; 304
PATCH   ``/products/{id}``  ``products_update``  200, ``ETag``; 409, 412, 428
DELETE  ``/products/{id}``  ``products_delete``  204; 409, 412
======  ==================  ===================  =====================================

HEAD is answered where GET is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI
from fastapi.params import Depends

from forze.application.contracts.document import DocumentSpec
from forze.application.contracts.idempotency import IdempotencySpec
from forze.errors import ConfigurationError
from forze_fastapi.context import ContextDep, context_dependency
from forze_fastapi.documents.filters import Filterable
from forze_fastapi.documents.listing import Listing
from forze_fastapi.documents.openapi import answers_of, conditions_of, status_of
from forze_fastapi.documents.operations import Operations
from forze_fastapi.documents.options import EndpointOptions, Operation, Pages
from forze_fastapi.documents.representation import Representation
from forze_fastapi.documents.route import DocumentRoute, route_class
from forze_fastapi.documents.signature import endpoint_of
from forze_fastapi.idempotency import IdempotencyFeature

_MEBIBYTE = 1024 * 1024
_METHODS: Mapping[Operation, str] = {
    "create": "POST",
    "list": "GET",
    "get": "GET",
    "update": "PATCH",
    "delete": "DELETE",
}
_ONLY_CREATE: tuple[Operation, ...] = ("create",)
_OF_ONE = ("get", "update", "delete")


def attach_document_endpoints(
    router: APIRouter | FastAPI,
    *,
    document: DocumentSpec[Any, Any, Any],
    ctx_dep: ContextDep,
    idempotency: IdempotencySpec | None = None,
    idempotent: Collection[Operation] = _ONLY_CREATE,
    include: Collection[Operation] | None = None,
    exclude: Collection[Operation] = (),
    prefix: str | None = None,
    name: str | None = None,
    tags: Sequence[str] | None = None,
    dependencies: Sequence[Depends] | Mapping[Operation, Sequence[Depends]] = (),
    filterable: Filterable | None = None,
    sortable: Collection[str] | None = None,
    page_size: int = 50,
    max_page_size: int = 200,
    pages: Pages = "keyset",
    share_snapshots: bool = False,
    etag: bool | None = None,
    cache_control: str | None = "private, no-cache",
    vary: Sequence[str] = (),
    max_body_bytes: int = _MEBIBYTE,
) -> None:
    """Put the routes of a document kind on ``router``: create, get, list, update, delete.

    Those the spec has no types for are left out, as are those in ``exclude`` or not in
    ``include``. ``ctx_dep`` is the dependency that gives the context, such as
    ``runtime.get_context``. With ``idempotency`` the operations in ``idempotent`` run once per
    ``Idempotency-Key``.

    ``prefix`` is where the routes are: by default the router's own prefix, or the name of the
    document behind a slash where it has none. ``name`` begins the names of the routes, which
    are their operation ids. ``dependencies`` are for every route, or for each by its operation.

    ``filterable`` and ``sortable`` are fields of the read model (None: all that have an order
    and are shown); ``pages="snapshot"`` serves lists from ``DocumentSpec.snapshot``, which
    equal searches share with ``share_snapshots``. ``etag`` None offers tags unless documents
    are read from a view. ``cache_control`` and ``vary`` are headers of what is read. A body
    above ``max_body_bytes`` is refused.

    Raises ``ConfigurationError`` naming the option that cannot be.
    """
    options = EndpointOptions(
        document=document,
        include=include,
        exclude=exclude,
        idempotent=idempotent,
        prefix=prefix,
        name=name,
        tags=tags,
        dependencies=dependencies,
        filterable=filterable,
        sortable=sortable,
        page_size=page_size,
        max_page_size=max_page_size,
        pages=pages,
        share_snapshots=share_snapshots,
        etag=etag,
        cache_control=cache_control,
        vary=vary,
        max_body_bytes=max_body_bytes,
    )
    context = context_dependency(ctx_dep)
    once = None if idempotency is None else IdempotencyFeature(spec=idempotency, ctx_dep=ctx_dep)
    routes = router.router if isinstance(router, FastAPI) else router
    _attach(routes, options, context, once)


def _attach(
    routes: APIRouter,
    options: EndpointOptions,
    context: Callable[..., Any],
    once: IdempotencyFeature | None,
) -> None:
    operations = _operations_of(options)
    where = _prefix(routes, options)
    _refuse_taken(routes, where, options)
    route = route_class(routes, _allowed(options.operations), options.max_body_bytes)
    for operation in options.operations:
        repeatable = once is not None and operation in options.idempotent
        handler = endpoint_of(operations, operation, context)
        _add(
            routes,
            _path(where, operation),
            _METHODS[operation],
            once(handler) if once is not None and repeatable else handler,
            name=f"{options.slug}_{operation}",
            tags=[options.document.name] if options.tags is None else list(options.tags),
            dependencies=options.dependencies_of(operation),
            status_code=status_of(operation),
            response_model=_model_of(operations, operation),
            responses=answers_of(operation, options, idempotent=repeatable),
            openapi_extra=conditions_of(operation),
            route_class_override=route,
        )


def _operations_of(options: EndpointOptions) -> Operations[Any]:
    return Operations(
        options.document,
        Representation(
            options.document,
            etag=options.etag,
            cache_control=options.cache_control,
            vary=options.vary,
        ),
        Listing(
            options.document.read,
            filterable=options.filterable,
            sortable=options.sortable,
            page_size=options.page_size,
            max_page_size=options.max_page_size,
        ),
        frozen=options.pages == "snapshot",
        shared=options.share_snapshots,
    )


def _add(routes: APIRouter, path: str, method: str, handler: Any, **given: Any) -> None:
    routes.add_api_route(path, handler, methods=[method], operation_id=given["name"], **given)
    if method == "GET":  # apart, because one operation id stands for one method
        routes.add_api_route(path, handler, methods=["HEAD"], include_in_schema=False, **given)


def _allowed(operations: Sequence[Operation]) -> dict[bool, str]:
    """The methods of one document (True), and of all of them."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for each in operations:
        methods = ["GET", "HEAD"] if _METHODS[each] == "GET" else [_METHODS[each]]
        found[each in _OF_ONE] += methods
    return {one: ", ".join(methods) for one, methods in found.items()}


def _prefix(routes: APIRouter, options: EndpointOptions) -> str:
    if options.prefix is not None:
        return options.prefix.rstrip("/")
    return "" if routes.prefix else f"/{quote(options.document.name, safe='')}"


def _refuse_taken(routes: APIRouter, where: str, options: EndpointOptions) -> None:
    """Refuse to be where documents of another kind are: they would never be asked for."""
    wanted = {(routes.prefix + _path(where, op), _METHODS[op]) for op in options.operations}
    for each in routes.routes:
        if isinstance(each, DocumentRoute) and any(
            (each.path, method) in wanted for method in each.methods or ()
        ):
            raise ConfigurationError(
                f"attach_document_endpoints, document {options.document.name!r}: the router has "
                f"{each.name} at {each.path} already; give each of them a prefix= of its own",
                name="prefix",
            )


def _path(where: str, operation: Operation) -> str:
    return f"{where}/{{id}}" if operation in _OF_ONE else where


def _model_of(operations: Operations[Any], operation: Operation) -> Any:
    if operation == "delete":
        return None
    return operations.page if operation == "list" else operations.spec.read
