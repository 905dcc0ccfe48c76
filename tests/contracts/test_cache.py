from forze.testing.batteries import CacheBehaviour, CacheFailures, PointerBehaviour, PointerFailures


class TestCache(CacheBehaviour): pass
class TestCacheFailures(CacheFailures): pass
class TestPointers(PointerBehaviour): pass
class TestPointerFailures(PointerFailures): pass
