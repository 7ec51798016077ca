"""What was made ready for the steps used last, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from ddsm_ext.runtime.backend import StepKey

Made = TypeVar("Made")


class StepCache(Generic[Made]):
    """Keeps what was made for each key until newer use of others fills the bound.

    The one used last is kept however large it is.

    Args:
        most_bytes: the bound.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[StepKey, tuple[Made, int]] = OrderedDict()
        self._nbytes = 0

    def get(self, key: StepKey) -> Made | None:
        """Return what was made for a key, now the one used last; None: nothing, or not any more."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: StepKey, made: Made, nbytes: int) -> list[StepKey]:
        """Keep what was made for a new key and return the keys that it took the room of."""
        self._kept[key] = (made, nbytes)
        self._nbytes += nbytes
        dropped = []
        while self._nbytes > self._most_bytes and len(self._kept) > 1:
            oldest, (_, freed) = self._kept.popitem(last=False)
            self._nbytes -= freed
            dropped.append(oldest)
        return dropped

    def values(self) -> Iterator[Made]:
        """Yield all that is kept, the one used last at the end."""
        return (made for made, _ in self._kept.values())

    def nbytes(self) -> int:
        """Return the bytes of all that is kept."""
        return self._nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._nbytes = 0
