from forze.testing.batteries import CacheBehaviour, CacheFailures
from forze.testing.batteries import PointerBehaviour, PointerFailures

class TestCache(CacheBehaviour): pass
class TestCacheFailures(CacheFailures): pass
class TestPointers(PointerBehaviour): pass
class TestPointerFailures(PointerFailures): pass
