"""The tiles of the CUDA products, of csrc/cuda/tile_choice.h, and what the kernels choose."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "tile_choice.h"
_LINE = re.compile(
    r"ddsm_ext: \S+ \S+ m=(\d+) n=(\d+) k_steps=(\d+) x(\d+): (\d+)x(\d+), (\d+) splits, "
    r"(.*), (\d+) of k are padding"
)


@dataclass(frozen=True)
class Tile:
    """A tile of m x n outputs.

    Attributes:
        algo: what forces it in an op.
        sm90a: of that path.
        serves_gradient: gradients of x have a kernel for it.
    """

    algo: int
    m: int
    n: int
    sm90a: bool
    serves_gradient: bool

    def __str__(self) -> str:
        return f"{self.m}x{self.n}"


@cache
def tiles() -> tuple[Tile, ...]:
    """Return all tiles in the header's order."""
    text = HEADER.read_text(encoding="utf-8")
    listed = re.search(r"kTiles\[\]\s*=\s*\{(.*?)\};", text, re.S)
    gradient = re.search(r"serves_gradient\(.*return kTiles\[tile\]\.n >= (\d+);", text)
    assert listed is not None
    assert gradient is not None
    least = int(gradient.group(1))
    rows = re.findall(r"\{\s*(\d+)\s*,\s*(\d+)[^{}]*\}", listed.group(1))
    portable = constant("kPortableTiles")
    return tuple(
        Tile(index + 1, int(m), int(n), index >= portable, index < portable or int(n) >= least)
        for index, (m, n) in enumerate(rows)
    )


def constant(name: str) -> float:
    """Return a number that the header names."""
    found = re.search(rf"\b{name}\s*=\s*([0-9.]+)", HEADER.read_text(encoding="utf-8"))
    assert found is not None, f"{HEADER} has no {name}"
    return float(found.group(1))


def compiled(source: str) -> ctypes.CDLL:
    """Compile C++, which may include tile_choice.h, and load it."""
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder, "source.cpp"), Path(folder, "library.so")
        file.write_text(source, encoding="utf-8")
        command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", str(file), "-o", str(library)]
        command += [f"-I{HEADER.parents[1] / 'include'}", f"-I{HEADER.parent}"]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


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
