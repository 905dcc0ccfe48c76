"""The documents of the bench, as models. Needs an environment with forze, ours or 0.16.2."""

from __future__ import annotations

from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument


class Product(Document):
    name: str
    price: int
    description: str


class ProductCreate(CreateDocumentCmd):
    name: str
    price: int
    description: str


class ProductUpdate(BaseDTO):
    price: int | None = None


class ProductRead(ReadDocument):
    name: str
    price: int
    description: str
