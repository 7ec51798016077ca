"""The tiles of the CUDA products, read from csrc/cuda/tile_choice.h: the one list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "tile_choice.h"


@dataclass(frozen=True)
class Tile:
    """A tile of m x n outputs; `algo` is what forces it in an op."""

    algo: int
    m: int
    n: int
    sm90a: bool

    def __str__(self) -> str:
        return f"{self.m}x{self.n}"


@cache
def tiles() -> tuple[Tile, ...]:
    """Return all tiles in the header's order."""
    text = HEADER.read_text(encoding="utf-8")
    listed = re.search(r"kTiles\[\]\s*=\s*\{(.*?)\};", text, re.S)
    assert listed is not None
    rows = re.findall(r"\{\s*(\d+)\s*,\s*(\d+)[^{}]*\}", listed.group(1))
    portable = constant("kPortableTiles")
    return tuple(
        Tile(index + 1, int(m), int(n), index >= portable) for index, (m, n) in enumerate(rows)
    )


def constant(name: str) -> float:
    """Return a number that the header names."""
    found = re.search(rf"\b{name}\s*=\s*([0-9.]+)", HEADER.read_text(encoding="utf-8"))
    assert found is not None, f"{HEADER} has no {name}"
    return float(found.group(1))
