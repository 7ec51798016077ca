"""'Did you mean ...?' for names that a user typed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, or the list of known names when nothing is close.

    Args:
        name: what the user typed.
        known: the names that would have been right.
    """
    choices = list(known)
    close = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(choices)}" if choices else ""
