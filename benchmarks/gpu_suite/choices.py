"""What the CUDA kernels choose, from the lines that DDSM_PRINT_CHOICES makes them print."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LINE = re.compile(
    r"ddsm_ext: \S+ \S+ m=(\d+) n=(\d+) k_steps=(\d+) x(\d+): (\d+)x(\d+), (\d+) splits, "
    r"(.*), (\d+) of k are padding"
)


@contextmanager
def printed_choices() -> Iterator[list[str]]:
    """Collect what is printed to file 2 meanwhile, line by line; the kernels print each choice."""
    lines: list[str] = []
    sys.stderr.flush()
    kept, asked = os.dup(2), os.environ.get("DDSM_PRINT_CHOICES")
    os.environ["DDSM_PRINT_CHOICES"] = "1"
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if asked is None:
                del os.environ["DDSM_PRINT_CHOICES"]
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def parsed(line: str) -> dict[str, Any] | None:
    """Return the problem and the choice of a line; None: it is another line."""
    found = _LINE.match(line)
    if found is None:
        return None
    m, n, k_steps, batches, tile_m, tile_n, splits = map(int, found.groups()[:7])
    return {
        "m": m, "n": n, "k_steps": k_steps, "batches": batches, "splits": splits,
        "tile_m": tile_m, "tile_n": tile_n, "sm90a": found.group(8).startswith("sm_90a"),
        "k_padding": int(found.group(9)),
    }  # fmt: skip
