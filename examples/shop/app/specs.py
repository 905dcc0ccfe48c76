"""What the shop is made of: its documents, and what is cached, counted, locked, limited.

Nothing here says where anything is kept; that is in ``wiring``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from app.settings import settings
from forze.application.contracts.cache import CACHED, CacheSpec, L1Spec
from forze.application.contracts.counter import CounterSpec
from forze.application.contracts.dlock import DistributedLockSpec
from forze.application.contracts.document import DocumentSpec, DocumentWriteTypes
from forze.application.contracts.idempotency import IdempotencySpec
from forze.application.contracts.resilience import (
    CircuitBreakerStrategy,
    RateLimitStrategy,
    ResiliencePolicy,
    RetryStrategy,
)
from forze.application.contracts.search import SearchResultSnapshotSpec
from forze.domain.models import BaseDTO, CreateDocumentCmd, Document, ReadDocument

Cents = Annotated[int, Field(ge=0, le=10_000_000)]
Quantity = Annotated[int, Field(ge=1, le=100)]
Stock = Annotated[int, Field(ge=0, le=1_000_000)]
Status = Literal["placed", "confirmed"]

# -- products ----------------------------------------------------------------


class Product(Document):
    name: str
    category: str
    price: Cents
    stock: Stock
    refill: Stock


class ProductCreate(CreateDocumentCmd):
    name: str
    category: str
    price: Cents
    stock: Stock
    refill: Stock = 0
    """What the worker fills the stock up to when it runs low; 0: never."""


class ProductUpdate(BaseDTO):
    name: str | None = None
    price: Cents | None = None
    stock: Stock | None = None


class ProductRead(ReadDocument):
    name: str
    category: str
    price: Cents
    stock: Stock
    refill: Stock


class Offer(ReadDocument):
    price: Cents
    stock: Stock


PRODUCTS = DocumentSpec(
    name="products",
    read=ProductRead,
    write=DocumentWriteTypes(domain=Product, create_cmd=ProductCreate, update_cmd=ProductUpdate),
    # The catalogue: hot, and a push late at most. Served from the process itself.
    cache=CacheSpec(
        name="products",
        ttl=timedelta(minutes=5),
        l1=L1Spec(ttl=timedelta(seconds=60)),
        early_refresh_beta=1.0,
        early_refresh_background=True,
    ),
    snapshot=SearchResultSnapshotSpec(name="products", cursor_secret=settings.cursor_secret),
)

# The same rows for whoever is about to pay: cached in Valkey only, and never stale.
OFFERS = DocumentSpec(name="offers", read=Offer, cache=CacheSpec(name="offers"))

# -- orders ------------------------------------------------------------------


class Order(Document):
    number: int
    customer: str
    product_id: UUID
    quantity: Quantity
    total: Cents
    status: Status = "placed"
    receipt: str | None = None


class OrderPlace(BaseDTO):
    """What a customer sends."""

    product_id: UUID
    quantity: Quantity


class OrderCreate(CreateDocumentCmd):
    number: int
    customer: str
    product_id: UUID
    quantity: Quantity
    total: Cents


class OrderUpdate(BaseDTO):
    status: Status | None = None
    receipt: str | None = None


class OrderRead(ReadDocument):
    number: int
    customer: str
    product_id: UUID
    quantity: Quantity
    total: Cents
    status: Status
    receipt: str | None


# Not cached: each is read a few times, by one customer.
ORDERS = DocumentSpec(
    name="orders",
    read=OrderRead,
    write=DocumentWriteTypes(domain=Order, create_cmd=OrderCreate, update_cmd=OrderUpdate),
)

# -- coordination ------------------------------------------------------------

ORDER_NUMBERS = CounterSpec(name="order_numbers")
# Whoever died with a claim in hand holds up a repetition for as long as the lease.
ORDERING = IdempotencySpec(name="ordering", lease=timedelta(seconds=5), wait=timedelta(seconds=2))
PAYMENTS = IdempotencySpec(name="payments", lease=timedelta(seconds=5))
ROUNDS = DistributedLockSpec(name="rounds", ttl=timedelta(seconds=5))

SPECS = (PRODUCTS, OFFERS, ORDERS, CACHED, ORDER_NUMBERS, ORDERING, PAYMENTS, ROUNDS)

POLICIES = {
    "payments": ResiliencePolicy(
        retry=RetryStrategy(attempts=3, base_delay=0.02, max_delay=0.2),
        timeout=timedelta(seconds=5),
        circuit_breaker=CircuitBreakerStrategy(
            failure_ratio=0.5, sampling_window=5.0, min_throughput=10, break_duration=0.5
        ),
    ),
    "search": ResiliencePolicy(rate_limit=RateLimitStrategy(permits=5, per=1.0)),  # per customer
}
