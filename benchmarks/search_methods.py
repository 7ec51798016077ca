"""The search of this package beside the DDSM paper's own, on trained digits.

    python benchmarks/search_methods.py OUT RUN [RUN ...]

For each run (`ddsm train --preset digits --set train.seed=N`) and search seed both methods search
the same network: "evolution" at its defaults, and "paper", NSGA-II from random strategies with a
whole score for each of 50 in each of 10 generations. Their fronts and the constant widths are then
sampled from new seeds, which neither saw. The hypervolume is that of the new scores, in a box from
the constant widths' new scores; the interval of the difference is a bootstrap over blocks of seeds.
Everything is kept in OUT and taken again when the command is repeated; OUT/search_methods.json has
the figures, the table is printed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from ddsm_ext.intervals import jackknife
from ddsm_ext.io.files import read_json, write_json
from ddsm_ext.machine import machine_info
from ddsm_ext.run import Run
from ddsm_ext.run.sampled_quality import SampledQuality
from ddsm_ext.run.searching import search_run
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import PAPER_EVALUATIONS, share_of_paper
from ddsm_ext.search.front import Front, HypervolumeMeter

METHODS = ("evolution", "paper")
NEW_SEEDS = 5_000_000  # far from those of searches and of `ddsm eval`
BLOCKS = 32
RESAMPLES = 2000
# The CIFAR-10 preset takes 100 steps a sample; a search makes as many samples there as here.
CIFAR_STEPS = 100


def searched(run: Run, folder: Path, method: str, seed: int, samples: int) -> Front:
    """Return the front of one search, made or taken from its folder."""
    path = folder / "search" / "front.json"
    settings = SearchConfig(widths=run.config.model.widths, method=method, seed=seed)
    if method == "paper":
        settings = replace(settings, samples=samples)
    done = folder / "settings.json"  # of the search that ended here
    if not done.exists() or read_json(done) != settings.to_dict():
        scorer = run.scorer()
        search_run(folder, scorer.sampler, run.dataset, scorer, settings)
        write_json(done, settings.to_dict())
    return Front.load(path)


def new_scores(
    run: Run, path: Path, strategies: list[Strategy], count: int
) -> dict[Strategy, list[float]]:
    """Return the pseudo-values of each strategy on new seeds; those on disk are taken again."""
    known = read_json(path) if path.exists() else []
    values = {Strategy(r["widths"], r["cuts"]): r["values"] for r in known if r["images"] == count}
    quality = SampledQuality(run.scorer(), NEW_SEEDS, count)
    for strategy in strategies:
        if strategy in values:
            continue
        values[strategy] = jackknife(
            quality.distance, quality.features(strategy, range(count)), BLOCKS
        )
        row = {"widths": strategy.widths, "cuts": strategy.cuts, "images": count}
        known.append({**row, "values": values[strategy]})
        write_json(path, known)
    return {strategy: values[strategy] for strategy in strategies}


def hypervolumes(
    fronts: dict[str, Front], scores: dict[Strategy, list[float]], blocks: np.ndarray
) -> dict[str, float]:
    """Return each front's hypervolume from the scores of some blocks, in the constants' box."""
    mean = {s: float(np.asarray(v)[blocks].mean()) for s, v in scores.items()}
    any_front = next(iter(fronts.values()))
    meter = HypervolumeMeter([(mean[p.strategy], p.cost_relative) for p in any_front.constants])
    # a user who searches has the constant widths too
    return {
        name: meter([(mean[p.strategy], p.cost_relative) for p in (*f.points, *f.constants)])
        for name, f in fronts.items()
    }


def compared(run: Run, out: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one network and search seed."""
    fronts = {
        method: searched(run, out / f"{method}-{seed}", method, seed, arguments.samples)
        for method in METHODS
    }
    points = [p for f in fronts.values() for p in (*f.points, *f.constants)]
    strategies = list(dict.fromkeys(p.strategy for p in points))
    scores = new_scores(run, out / "new-scores.json", strategies, arguments.new_images)
    every = np.arange(BLOCKS)
    whole = hypervolumes(fronts, scores, every)
    random = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        volumes = hypervolumes(fronts, scores, random.choice(every, BLOCKS))
        differences.append(volumes["evolution"] - volumes["paper"])
    low, high = np.percentile(differences, [2.5, 97.5])
    return {
        "run": run.folder.name,
        "seed": seed,
        "hypervolume": whole,
        "difference": whole["evolution"] - whole["paper"],
        "interval": [float(low), float(high)],
        "network_evaluations": {m: f.network_evaluations for m, f in fronts.items()},
        "points": {m: len(f.points) for m, f in fronts.items()},
    }


def table(results: list[dict[str, Any]], steps: int) -> str:
    """Return the figures as a table of Markdown."""
    head = [
        "run",
        "search seed",
        "ours",
        "paper's",
        "difference [95 %]",
        "evaluations ours",
        "paper's",
        "ours at 100 steps, of the paper's",
    ]
    rows = []
    for r in results:
        ours = r["network_evaluations"]["evolution"]
        low, high = r["interval"]
        rows.append([
            r["run"], r["seed"],
            f"{r['hypervolume']['evolution']:.4f}", f"{r['hypervolume']['paper']:.4f}",
            f"{r['difference']:+.4f} [{low:+.4f}, {high:+.4f}]",
            f"{ours:,}", f"{r['network_evaluations']['paper']:,}",
            share_of_paper(ours // steps * CIFAR_STEPS),
        ])  # fmt: skip
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True)


def main(words: list[str]) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="*", type=Path, help="trained runs; none with --table")
    parser.add_argument("--seeds", type=int, default=3, help="searches a run (default: 3)")
    parser.add_argument(
        "--samples", type=int, default=512, help="of a whole score of paper's (default: 512)"
    )
    parser.add_argument("--new-images", type=int, default=8192)
    parser.add_argument("--table", action="store_true", help="print what is there, and no more")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    path = arguments.out / "search_methods.json"
    if not (arguments.table or arguments.runs):
        parser.error("no RUN is named; need a trained one, or --table")
    content = read_json(path) if path.exists() else {"results": []}
    for folder in [] if arguments.table else arguments.runs:
        run = Run.open(folder.parent, folder)
        for seed in range(arguments.seeds):
            found = compared(run, arguments.out / folder.name, seed, arguments)
            key = (found["run"], found["seed"])
            others = [r for r in content["results"] if (r["run"], r["seed"]) != key]
            content = {
                "machine": machine_info(command=False),
                "samples_of_paper": arguments.samples,
                "new_images": arguments.new_images,
                "sampler": run.config.sampler.to_dict(),
                "paper_evaluations": PAPER_EVALUATIONS,
                "results": sorted([*others, found], key=lambda r: (r["run"], r["seed"])),
            }
            write_json(path, content)
            print(table(content["results"], run.config.sampler.steps), flush=True)
    if arguments.table and content["results"]:
        print(table(content["results"], content["sampler"]["steps"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
