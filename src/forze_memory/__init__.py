"""Every port in process: for a start without servers, and as a double that keeps the rules."""

from forze_memory.cache import MemoryCache
from forze_memory.config import MemoryCacheConfig, MemoryDocumentConfig, MemoryResourceConfig
from forze_memory.documents import MemoryDocumentStore
from forze_memory.module import MemoryDepsModule

__all__ = [
    "MemoryCache",
    "MemoryCacheConfig",
    "MemoryDepsModule",
    "MemoryDocumentConfig",
    "MemoryDocumentStore",
    "MemoryResourceConfig",
]
