"""Dependencies: what is registered, and how registrations are put together.

A *module* is any zero-argument callable that returns :class:`Deps`. A registry is open, a
plan is frozen; building the plan calls the modules and merges what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from forze.application.contracts.deps import DepKey
from forze.errors import ConfigurationError

T = TypeVar("T")

DepsModule: TypeAlias = "Callable[[], Deps]"


class Deps:
    """An immutable set of dependencies: plain ones by key, routed ones by key and name.

    Asked with a route, a routed entry answers first and a plain one for every name left. A
    ``fallback`` is a plain entry that yields to another module's.
    """

    __slots__ = ("_fallback", "_plain", "_routed")

    def __init__(
        self,
        plain: Mapping[DepKey[Any], Any] | None = None,
        routed: Mapping[DepKey[Any], Mapping[str, Any]] | None = None,
        fallback: Mapping[DepKey[Any], Any] | None = None,
    ) -> None:
        self._plain: dict[DepKey[Any], Any] = dict(plain or {})
        self._fallback: dict[DepKey[Any], Any] = dict(fallback or {})
        self._routed: dict[DepKey[Any], dict[str, Any]] = {
            key: dict(routes) for key, routes in (routed or {}).items() if routes
        }

    @classmethod
    def plain(cls, values: Mapping[DepKey[Any], Any]) -> Deps:
        """Only plain entries."""
        return cls(plain=values)

    @classmethod
    def routed(cls, values: Mapping[DepKey[Any], Mapping[str, Any]]) -> Deps:
        """Only routed entries."""
        return cls(routed=values)

    @classmethod
    def merge(cls, *parts: Deps) -> Deps:
        """All entries together; an entry in two parts is a ``ConfigurationError`` naming it."""
        merged = cls()
        conflicts: list[str] = []
        for part in parts:
            for known, entries in (
                (merged._plain, part._plain),
                (merged._fallback, part._fallback),
            ):
                conflicts.extend(
                    key.name for key, value in entries.items() if known.get(key, value) is not value
                )
                known.update(entries)
            for key, routes in part._routed.items():
                named = merged._routed.setdefault(key, {})
                conflicts.extend(
                    f"{key.name}[{route}]"
                    for route, value in routes.items()
                    if named.get(route, value) is not value
                )
                named.update(routes)
        if conflicts:
            raise ConfigurationError(
                f"registered twice: {', '.join(sorted(conflicts))}; "
                "each name may come from one module only",
                name=conflicts[0],
                known=conflicts,
            )
        return merged

    def of(self, kind: type[T]) -> list[tuple[str, T]]:
        """Every entry that is a ``kind``, each once: by its route, a plain one by its key."""
        named = [(key.name, each) for key, each in (*self._plain.items(), *self._fallback.items())]
        for routes in self._routed.values():
            named += routes.items()
        found: dict[int, tuple[str, T]] = {}
        for name, each in named:
            if isinstance(each, kind):
                found.setdefault(id(each), (name, each))
        return list(found.values())

    def exists(self, key: DepKey[Any], route: str | None = None) -> bool:
        """Whether :meth:`provide` would find something."""
        if route is not None and route in self._routed.get(key, ()):
            return True
        return key in self._plain or key in self._fallback

    def provide(self, key: DepKey[T], route: str | None = None) -> T:
        """What is registered; raises ``ConfigurationError`` with the names that are."""
        routes = self._routed.get(key, {})
        if route is not None and route in routes:
            return routes[route]  # type: ignore[no-any-return]
        for entries in (self._plain, self._fallback):
            if key in entries:
                return entries[key]  # type: ignore[no-any-return]
        if route is None:
            known = sorted({each.name for each in (*self._plain, *self._fallback, *self._routed)})
            raise ConfigurationError(
                f"no {key.name} is registered; registered are: {', '.join(known) or 'none'}",
                name=key.name,
                known=known,
            )
        raise ConfigurationError(
            f"no {key.name} is registered under the name {route!r}; "
            f"registered are: {', '.join(sorted(routes)) or 'none'}",
            name=route,
            known=routes,
        )


@dataclass(frozen=True, slots=True)
class DepsPlan:
    """A frozen list of modules."""

    modules: tuple[DepsModule, ...] = ()

    @classmethod
    def from_modules(cls, *modules: DepsModule) -> DepsPlan:
        """The same as ``DepsRegistry.from_modules(...).freeze()``."""
        return cls(modules)

    def freeze(self) -> DepsPlan:
        """Itself: a plan is frozen."""
        return self

    def build(self) -> Deps:
        """Call every module and merge what they return."""
        parts: list[Deps] = []
        for module in self.modules:
            part = module()
            if not isinstance(part, Deps):
                raise ConfigurationError(
                    f"the module {module!r} returned {type(part).__name__}, not Deps"
                )
            parts.append(part)
        return Deps.merge(*parts)


@dataclass(frozen=True, slots=True)
class DepsRegistry:
    """An open list of modules; each ``with_modules`` gives a longer one."""

    modules: tuple[DepsModule, ...] = ()

    @classmethod
    def from_modules(cls, *modules: DepsModule) -> DepsRegistry:
        """A registry of these modules."""
        return cls(modules)

    def with_modules(self, *modules: DepsModule) -> DepsRegistry:
        """A registry of its modules and these."""
        return DepsRegistry((*self.modules, *modules))

    def freeze(self) -> DepsPlan:
        """The plan of its modules."""
        return DepsPlan(self.modules)
