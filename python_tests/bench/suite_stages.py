"""Stages of a few lines of Python in place of the suite's own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.scripts import ROOT  # makes gpu_suite importable
from gpu_suite.running import Place
from gpu_suite.stages import Stage


def stage(name: str, code: str, **more: Any) -> Stage:
    """A stage that runs `code`, in which braces stand for what a command's braces do."""
    made = Stage(name, f"about {name}", 20.0, 0.0, ("-c", code), needs=None)
    return replace(made, **more)


def place(folder: Path) -> Place:
    """Where nothing is built and everything may be written."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return Place(ROOT, folder / "build", scratch, sys.executable)
