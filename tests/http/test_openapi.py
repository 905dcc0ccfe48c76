"""The OpenAPI document of document endpoints: complete, stable, and true.

True is what schemathesis finds, with the settings it has by default: it makes requests from the
document, valid and invalid ones, and looks whether the answers are those that the document has for
them, the valid ones are accepted and the invalid ones are not.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

from tests.http.catalogue import (
    SNAPSHOT,
    application,
    memory_application,
    memory_runtime,
    products,
)

from forze.testing.serving import serving

OPERATIONS = {
    "products_create": "201 400 409 413 422 500 503 504",
    "products_list": "200 400 404 422 500 503 504",
    "products_get": "200 304 400 404 412 422 500 503 504",
    "products_update": "200 400 404 409 412 413 422 428 500 503 504",
    "products_delete": "204 400 404 409 412 422 500 503 504",
}
SCHEMAS = "InvalidInput Problem ProductCreateBody ProductRead ProductReadPage ProductUpdateBody"
SETTINGS = Path(__file__).parents[2] / "examples/recipes/fastapi/schemathesis.toml"


def operations_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
    }


def test_operations_and_schemas_keep_their_names() -> None:
    document = memory_application().openapi()
    said = {name: " ".join(each["responses"]) for name, each in operations_of(document).items()}
    assert said == OPERATIONS
    assert " ".join(sorted(document["components"]["schemas"])) == SCHEMAS
    assert memory_application().openapi() == document


def test_every_answer_but_success_is_a_problem() -> None:
    for operation in operations_of(memory_application().openapi()).values():
        for status, response in operation["responses"].items():
            wanted = "application/problem+json" if status >= "4" else "application/json"
            assert set(response.get("content", {wanted: 0})) == {wanted}, (operation, status)


def test_parameters_are_typed() -> None:
    listing = operations_of(memory_application().openapi())["products_list"]
    types = {each["name"]: each["schema"] for each in listing["parameters"]}
    bounds = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    assert types["price__gte"] | bounds == types["price__gte"]
    assert types["price__in"]["items"] == bounds
    assert types["released_at__lt"]["format"] == "date-time"
    assert types["color__in"]["items"]["enum"] == ["red", "green", "blue"]
    assert types["color__is_null"]["type"] == "boolean"
    assert types["limit"] | {"title": ""} == types["limit"] | {
        "title": "", "minimum": 1, "maximum": 200, "default": 50,
    }  # fmt: skip
    assert not {"tags", "color__lt", "available__in", "weight__contains"} & set(types)
    reading = operations_of(memory_application().openapi())["products_get"]["parameters"]
    assert [each["name"] for each in reading] == ["id", "If-None-Match"]
    assert {"Idempotency-Key"} <= {
        each["name"]
        for each in operations_of(memory_application().openapi())["products_create"]["parameters"]
    }


def test_a_snapshot_page_is_another_schema() -> None:
    spec = products(snapshot=SNAPSHOT)
    document = application(memory_runtime(spec), spec, pages="snapshot").openapi()
    assert "ProductReadSnapshotPage" in document["components"]["schemas"]
    assert "410" in operations_of(document)["products_list"]["responses"]


async def test_without_etag_nothing_is_said_of_one() -> None:
    spec = products()
    document = application(memory_runtime(spec), spec, etag=False).openapi()
    for operation in operations_of(document).values():
        for response in operation["responses"].values():
            assert "ETag" not in response.get("headers", {})


ONE_OF_EACH_KIND = {
    "name": ["contains"],
    "price": ["in"],
    "color": ["is_null"],
    "weight": ["gt"],
    "vat": ["lte"],
    "available": ["eq"],
    "released_at": ["lt"],
    "id": ["ne"],
}


async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    async with serving(memory_application(filterable=ONE_OF_EACH_KIND)) as address:
        found = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(SETTINGS),
            "run", f"{address}/openapi.json", "--max-examples", "3", "--seed", "1", "--no-color",
            cwd=tmp_path, stdout=PIPE, stderr=STDOUT,
        )  # fmt: skip
        said = (await found.communicate())[0].decode()
    assert found.returncode == 0, said
    assert f"Operations:       {len(OPERATIONS)} selected" in said
    for phase in ("Coverage", "Fuzzing", "Stateful"):
        assert f"✅  {phase}" in said, said
