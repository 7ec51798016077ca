"""The one form in which the workflow says how far it is; lines go to the logger of ddsm_ext."""

from __future__ import annotations

from collections.abc import Callable

# (what is being done, units done, units in all or None where unknown, name of a unit, remark)
Progress = Callable[[str, int, int | None, str, str], None]


def counter(progress: Progress | None, title: str, unit: str) -> Callable[[int, int], None] | None:
    """Return the (done, total) callback that the parts take, for one title; None for silence."""
    if progress is None:
        return None
    tell = progress

    def update(done: int, total: int) -> None:
        tell(title, done, total, unit, "")

    return update
