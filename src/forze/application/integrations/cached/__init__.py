"""Cached functions: read-through for any async function, by its arguments.

``function`` is the decorator, ``arguments`` and ``canonical`` make the key, ``values`` the body;
``tags`` is how whole groups of values are invalidated, ``ports`` binds all of it to a runtime.
"""

from forze.application.integrations.cached.function import CachedFunction, cached

__all__ = ["CachedFunction", "cached"]
