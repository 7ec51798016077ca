"""Stretches in which weights and modules are taken as fixed: between the steps of one sampling."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Fixed(threading.local):
    """The stretch that a thread is in: what was found good in it, and the changes told by then."""

    found: set[Any] | None = None
    told = 0


_fixed = _Fixed()
_told = 0


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Take weights and modules as fixed in this thread, until `tell_change` says otherwise."""
    outer = _fixed.found, _fixed.told
    _fixed.found, _fixed.told = set(), _told
    try:
        yield
    finally:
        _fixed.found, _fixed.told = outer


def found_good() -> set[Any] | None:
    """Return where to note what needs no second look in this stretch; None: weights may change."""
    if _fixed.found and _fixed.told != _told:
        _fixed.found, _fixed.told = set(), _told
    return _fixed.found


def tell_change() -> None:
    """End what was found good so far, in all threads."""
    global _told
    _told += 1
