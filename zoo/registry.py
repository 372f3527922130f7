"""Named things found in one folder: methods, backbones, formats. Adding one is adding a file. Torch-free itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Generic, TypeVar

from ..errors import UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to things that the modules of one package register when they are imported.

    The package is imported, module by module, at the first lookup and not before.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._things: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: file the decorated class or function under `name`. Two of one name are a programming error."""

        def add(thing: T) -> T:
            if name in self._things:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {self._things[name]!r} and {thing!r}")
            self._things[name] = thing
            return thing

        return add

    def discover(self) -> None:
        """Import every module of the package, so that each registers what it holds."""
        package: ModuleType = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._discovered = True

    def names(self) -> list[str]:
        if not self._discovered:
            self.discover()
        return sorted(self._things)

    def get(self, name: str) -> T:
        """The thing called `name`; raises `UnknownName` with the nearest known name."""
        known = self.names()
        if name not in self._things:
            raise UnknownName(self.kind, name, known)
        return self._things[name]
