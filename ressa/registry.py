"""Names → objects, imported on demand: the tables of `catalog.py` and installed plug-ins."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from ressa.errors import SpecError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named objects; a name is known without importing what it stands for.

    Args:
        kind: what the names stand for, as error messages say it ("prune method").
        group: the entry-point group by which installed plug-ins add names.
        builtins: name → "module:attribute".
    """

    def __init__(self, kind: str, *, group: str, builtins: Mapping[str, str]) -> None:
        self.kind, self.group = kind, group
        self._targets = dict(builtins)
        self._registered: dict[str, T] = {}

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._targets or point.name in found:
                raise SpecError(
                    f"{self.kind} {point.name!r} is offered twice; the second is {point.value}. "
                    "Uninstall one of the two packages."
                )
            found[point.name] = point
        return found

    def __contains__(self, name: object) -> bool:
        # Plug-ins last: looking through all installed packages takes time.
        return name in self._targets or name in self._registered or name in self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._targets, *self._registered, *self._plugins}))

    def __getitem__(self, name: str) -> T:
        if name in self._registered:
            return self._registered[name]
        if name in self._targets:
            module, attribute = self._targets[name].split(":")
            return cast(T, getattr(import_module(module), attribute))
        if name in self._plugins:
            return cast(T, self._plugins[name].load())
        raise UnknownNameError(self.kind, name, known=self)

    def register(self, name: str) -> Callable[[Any], Any]:
        """Adds an object under a name, for notebooks and tests; packages use entry points."""

        def add(target: T) -> T:
            if name in self:
                raise SpecError(f"{self.kind} {name!r} is already registered.")
            self._registered[name] = target
            return target

        return add
