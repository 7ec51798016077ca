"""Lazy package exports (PEP 562), so that `import ddsm_ext` and `ddsm --help` load no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any


def attach(
    package: str, names: Mapping[str, str], unlisted: Mapping[str, str] = MappingProxyType({})
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package that loads names on first use.

    Args:
        package: the package's `__name__`.
        names: exported name -> submodule that defines it; a name equal to its submodule is the
            submodule itself. One that begins with an underscore is not listed.
        unlisted: further names, which `import *` leaves out.
    """
    public = sorted(name for name in names if not name.startswith("_"))
    places = {**names, **unlisted}

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{places[name]}")
        return module if places[name] == name else getattr(module, name)

    def __dir__() -> list[str]:
        return list(public)

    return __getattr__, __dir__, public
