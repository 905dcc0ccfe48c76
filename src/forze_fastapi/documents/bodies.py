"""The models of what goes over the wire, made from those of the spec; their names are stable.

| model | is |
|---|---|
| ``{Create}Body`` | the create command, unknown fields refused |
| ``{Update}Body`` | the update command and ``rev``, unknown fields refused |
| ``{Read}Page`` | a page of documents |

A model that says itself what becomes of unknown fields (``extra=``) is left as it is. They have
names of their own because the application may well use the models they are made of, and two
models of one name would give both longer ones.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, create_model
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema

from forze.domain.models import CreateDocumentCmd, ReadDocument
from forze_fastapi.documents.exact import Exact, Revision

_Named: TypeAlias = Revision | SkipJsonSchema[None]

ABOUT_REV: Final = "The `rev` that the change is made on top of; a later one is a conflict."


def create_body(command: type[CreateDocumentCmd]) -> type[CreateDocumentCmd]:
    """What a document is created from."""
    return _body(command, Exact)


def update_body(command: type[BaseModel]) -> type[BaseModel]:
    """What a document is changed by."""
    if "rev" in command.model_fields:
        return _body(command, Exact)
    rev = Field(default=None, description=ABOUT_REV)
    return _body(command, _Change, rev=(_Named, rev))


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
    about = f"A page of {read.__name__}."
    return create_model(name, __doc__=about, __module__=read.__module__, **fields)


class _Change(Exact):
    """A change, told to be made on top of a ``rev``; that ``If-Match`` may take its place is
    nothing that the schema of a body can say."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        told = handler.resolve_ref_schema(schema)
        del told["properties"]["rev"]["default"]
        told["required"] = [*told.get("required", ()), "rev"]
        return schema


def _body(command: type[Any], base: type[Exact], **more: Any) -> type[Any]:
    config = ConfigDict() if "extra" in command.model_config else ConfigDict(extra="forbid")
    strict = type(base.__name__, (base, command), {"model_config": config})
    return create_model(
        f"{command.__name__}Body",
        __base__=strict,
        __doc__=command.__doc__,
        __module__=command.__module__,  # tells it from one of that name made elsewhere
        **more,
    )
