"""A search with known answers: analytic errors, and a program that a test kills as it runs."""

from __future__ import annotations

import functools
import itertools
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from ddsm_ext.io.files import read_jsonl
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.engine import Search, search
from ddsm_ext.search.front import Front
from ddsm_ext.search.genome import Genome, StrategySpace

WIDTHS = (1.0, 0.75, 0.5, 0.25)
# MMACs a step published for CIFAR-10 (shared/design/1-ddsm.md), without the attention products
COSTS = {1.0: 6070.0, 0.75: 3420.0, 0.5: 1520.0, 0.25: 382.5}


def log_snrs(steps: int) -> list[float]:
    """Evenly spread noise levels, from noise to image."""
    return [-9.0 + 18.0 * i / max(1, steps - 1) for i in range(steps)]


@functools.cache
def errors(steps: int) -> np.ndarray:
    """[S, W] errors that are largest in the middle of the noise levels."""
    at = np.linspace(0.0, 1.0, steps)[:, None]
    return (1 - np.array(WIDTHS)) ** 2 * (0.05 + np.exp(-24 * (at - 0.6) ** 2))


def cheap_of(widths: list[float]) -> float:
    """Cheap quality of the widths of all steps, by the formula rather than by our code."""
    table = errors(len(widths))
    return math.fsum(table[s, WIDTHS.index(w)] for s, w in enumerate(widths)) / len(widths)


def full_of(widths: list[float]) -> float:
    """A full quality that orders strategies a little otherwise than the cheap one."""
    cheap = cheap_of(widths)
    return 3.0 + 2.0 * cheap + 0.01 * math.sin(200.0 * cheap) + 0.002 * len(set(widths))


def all_points(steps: int, segments: int, quality=cheap_of) -> list[tuple[float, float]]:
    """(quality, cost as a fraction) of every strategy of at most `segments` segments."""
    found = set()
    for bounds in itertools.combinations_with_replacement(range(steps + 1), segments - 1):
        edges = [0, *bounds, steps]
        for choice in itertools.product(WIDTHS, repeat=segments):
            lengths = [b - a for a, b in itertools.pairwise(edges)]
            found.add(tuple(w for w, n in zip(choice, lengths, strict=True) for _ in range(n)))
    full = COSTS[1.0] * steps
    return [(quality(list(p)), sum(COSTS[w] for w in p) / full) for p in sorted(found)]


def genome_of(space: StrategySpace, *runs: tuple[int, int]) -> Genome:
    """Genome of (length, width index) runs."""
    return space.from_levels([w for n, w in runs for _ in range(n)])


def noisy(
    widths: list[float], samples: range, seed: int = 0, own: float = 0.05, shared: float = 1.0
) -> list[float]:
    """The full quality with noise a sample, as 8 blocks: one part is common to all strategies, the
    other a strategy's own. The same strategy, seed and sample give the same noise.

    Args:
        widths: of all steps.
        samples: which.
        seed: of all noise.
        own, shared: standard deviations of the two parts.
    """
    codes = [WIDTHS.index(w) for w in widths]
    common = np.random.default_rng([seed, 0]).normal(size=samples.stop)
    mine = np.random.default_rng([seed, 1, *codes]).normal(size=samples.stop)
    noise = (shared * common + own * mine)[samples.start :]
    return [full_of(widths) + float(noise[block::8].mean()) for block in range(8)]


def exact(widths: list[float], samples: range) -> float:
    """The full quality without noise, as a single value."""
    return full_of(widths)


def run_search(
    run_dir, config: SearchConfig, steps: int, hook=lambda samples: None, quality=noisy, **more
) -> Front:
    """Search the synthetic problem; `hook` is called with the samples before every evaluation."""
    levels = log_snrs(steps)

    def score(strategy, samples):
        hook(samples)
        return quality(strategy.widths_for(levels), samples)

    arguments = {
        "cost_table": COSTS,
        "log_snrs": levels,
        "run_dir": run_dir,
        "quality": score,
        "errors": errors(steps),
        "identity": {"checkpoint": "synthetic"},
    }
    return search(config, **{**arguments, **more})


SMALL = SearchConfig(
    segments=2, proxy_budgets=5, pool=8, population=6, generations=3, samples=8, most_samples=16,
    finalists=3, final_samples=32, budget_macs=0.5,
)  # fmt: skip
FILES = ("front.json", "history.json", "strategy.json")
KILLED_CONFIG = SearchConfig(
    segments=3, proxy_budgets=8, pool=12, population=6, generations=4, samples=8, most_samples=32,
    finalists=4, final_samples=32, budget_macs=0.5,
)  # fmt: skip
KILLED_STEPS = 12


def evaluations(run_dir: Path) -> list[dict]:
    path = run_dir / "search" / "archive.jsonl"
    return [r for r in read_jsonl(path, missing_ok=True) if r["kind"] != "header"]


def main() -> None:
    """`synthetic.py RUN_DIR CALLS DELAY`: search, and kill -9 this process at an evaluation.

    It dies DELAY seconds after the evaluation number CALLS began; a negative CALLS never dies.
    """
    calls, delay = int(sys.argv[2]), float(sys.argv[3])
    seen = 0

    def hook(samples: range) -> None:
        nonlocal seen
        seen += 1
        if seen == calls:
            if delay <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, delay)
        time.sleep(0.001)

    run_search(sys.argv[1], KILLED_CONFIG, KILLED_STEPS, hook)


if __name__ == "__main__":
    main()


def started(run_dir, config=SMALL, steps=12, **more) -> Search:
    """A search that is asked and told."""
    arguments = {"cost_table": COSTS, "log_snrs": log_snrs(steps), "run_dir": run_dir}
    return Search(config, **arguments, identity={"checkpoint": "synthetic"}, **more)
