"""The package of caching tools for FastAPI on Redis: manager, service, dependencies, keys."""
