"""forze in a FastAPI application: lifespan, document endpoints, idempotency, limits, caching."""
