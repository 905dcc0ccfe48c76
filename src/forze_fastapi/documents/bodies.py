"""The models of what goes over the wire, made from those of the spec; their names are stable.

| model | is |
|---|---|
| ``{Create}Body`` | the create command, unknown fields refused |
| ``{Update}Body`` | the update command and ``rev``, unknown fields refused |
| ``{Read}Page`` | a page of documents |

A model that says itself what becomes of unknown fields (``extra=``) is left as it is. They have
names of their own because the application may well use the models they are made of, and two
models of one name would give both longer ones.

What is accepted of any body (``strict_json``, ``operations``) is in their JSON schemas too, so
that whoever keeps to the schema is not refused: text without NUL, integers that fit a column, and
the ``rev`` that a change is made on top of. Only ``If-Match`` takes its place, which no schema of
a body can say.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final
from uuid import UUID

from annotated_types import Ge, Le
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    create_model,
)

from forze.domain.models import CreateDocumentCmd, ReadDocument


def _digits(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch("-?[0-9]+", value):
        raise ValueError("write an integer in digits")
    return value


def _word(value: object) -> object:
    if isinstance(value, str) and value.lower() not in ("true", "false"):
        raise ValueError("write true or false")
    return value


Integer = Annotated[int, Ge(-(2**63)), Le(2**63 - 1), BeforeValidator(_digits)]
"""An integer of a URL, as far as databases have them; ``+1.0`` is none."""

Revision = Annotated[int, Ge(1), Le(2**53 - 1), BeforeValidator(_digits)]
"""``rev`` of a document, as a caller may give it: what every JSON parser reads exactly."""

WITHOUT_NUL: Final = r"^[^\x00]*$"

Text = Annotated[str, StringConstraints(pattern=WITHOUT_NUL)]
"""Text of a URL, as far as databases have it."""

Flag = Annotated[bool, BeforeValidator(_word)]
"""``true`` or ``false``; pydantic takes ``0``, ``off`` and ``n`` for one too."""

ABOUT_REV: Final = "The `rev` that the change is made on top of; a later one is a conflict."


def create_body(command: type[CreateDocumentCmd]) -> type[CreateDocumentCmd]:
    """What a document is created from."""
    return create_model(f"{command.__name__}Body", __base__=(_Body, _strict(command)))


def update_body(command: type[BaseModel]) -> type[BaseModel]:
    """What a document is changed by."""
    name, base = f"{command.__name__}Body", _strict(command)
    if "rev" in command.model_fields:
        return create_model(name, __base__=(_Body, base))
    rev: dict[str, Any] = {"rev": (Revision, Field(default=None, description=ABOUT_REV))}
    return create_model(name, __base__=(_Change, base), **rev)


def page_of(read: type[ReadDocument], *, frozen: bool) -> type[BaseModel]:
    """A page of documents; ``frozen`` is one of a search that stands still."""
    following = Field(description="Leads to the next page as `cursor`; null on the last.")
    fields: dict[str, Any] = {
        "items": (list[read], Field(description="The documents, in order.")),  # type: ignore[valid-type]
        "next_cursor": (str | None, following),
    }
    if frozen:
        fields["total"] = (int, Field(description="How many documents the search has kept."))
        fields["truncated"] = (bool, Field(description="Whether it found more than it keeps."))
        gone = Field(description="Documents of this page that exist no longer.")
        fields["missing"] = (list[UUID], gone)
    name = f"{read.__name__}{'SnapshotPage' if frozen else 'Page'}"
    return create_model(name, __doc__=f"A page of {read.__name__}.", **fields)


class _Body(BaseModel):
    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        _bound(handler.resolve_ref_schema(schema).get("properties", {}))
        return schema


class _Change(_Body):
    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        own = handler.resolve_ref_schema(schema)
        own["properties"]["rev"].pop("default", None)
        own["required"] = [*own.get("required", ()), "rev"]
        return schema


def _bound(node: Any) -> None:
    """Say of each text and integer below ``node`` what is held of it, where nothing else is said."""
    if isinstance(node, list):
        for each in node:
            _bound(each)
    elif isinstance(node, dict):
        told = node.keys() & {"pattern", "format", "enum", "const", "minimum", "maximum"}
        if node.get("type") == "string" and not told:
            node["pattern"] = WITHOUT_NUL
        elif node.get("type") == "integer" and not told:
            node["format"] = "int64"
        for name, each in node.items():
            if name not in ("default", "example", "examples"):
                _bound(each)


def _strict(model: type[Any]) -> type[Any]:
    if "extra" in model.model_config:
        return model
    return type(
        model.__name__,
        (model,),
        {
            "__module__": model.__module__,
            "__doc__": model.__doc__,
            "model_config": ConfigDict(extra="forbid"),
        },
    )
