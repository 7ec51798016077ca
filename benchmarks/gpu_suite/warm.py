"""Compiles the dense network of one width and batch, so that its code lies in Inductor's cache."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ddsm_ext.bench.steps import Steps, prepare_steps
from gpu_suite import work


def mark(batch: int, width: float) -> Path | None:
    """Return the file that says that a step lies in Inductor's cache; None: there is no cache."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return None if folder is None else Path(folder) / f"warm-{batch}-{width:g}"


def cache_counts() -> dict[str, int]:
    """Return how often Inductor found a graph in its cache and how often it did not."""
    from torch._dynamo.utils import counters

    names = ("fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")
    return {name: int(counters["inductor"][name]) for name in names}


def main(words: Sequence[str], *, prepare: Callable[..., Steps] = prepare_steps) -> int:
    """Compile as `bench_unet_step.py` does, by `prepare`."""
    parser = argparse.ArgumentParser(prog="gpu_suite.warm")
    parser.add_argument("--width", type=float, required=True)
    parser.add_argument("--batch", type=int, required=True)
    arguments = parser.parse_args(words)
    setting = work.setting()
    start = time.monotonic()
    with setting.active(), torch.no_grad():
        steps = prepare(work.CONFIG, [arguments.width], ["compiled"], arguments.batch, setting)
    done = mark(arguments.batch, arguments.width)
    if done is not None and not steps.failed:
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
    print("\n".join(steps.failed))
    work.report(None, {}, {"compiled_s": round(time.monotonic() - start, 1), **cache_counts()})
    return 1 if steps.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
