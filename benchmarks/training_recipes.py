"""Compare training recipes by the scores of what they train: the digits, several training seeds.

    OMP_NUM_THREADS=1 python benchmarks/training_recipes.py OUT
    python benchmarks/training_recipes.py OUT --recipes balanced teacher --seeds 0 1
    python benchmarks/training_recipes.py OUT --table

Each recipe changes BASE in the settings below, is given the steps that cost as many MACs as BASE's,
and is trained once a seed; scored are the full width, each constant width and the budget solver's
strategies, all from the same noise. OUT/recipes.json has every score. What is there is not made
again, so an interrupted call continues; a training and its scores take about five minutes of one
core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddsm_ext.data.pixels import to_uint8
from ddsm_ext.intervals import mean_interval
from ddsm_ext.io.files import read_json, write_json
from ddsm_ext.machine import machine_info
from ddsm_ext.run import Run, RunConfig, configure, find_resumable, macs_table
from ddsm_ext.run.compose import weights_digest
from ddsm_ext.run.config import changed
from ddsm_ext.run.costs import estimate_training
from ddsm_ext.run.scoring import Scorer
from ddsm_ext.run.searching import sensitivity_of
from ddsm_ext.sampling.levels import evaluations, prediction_gains
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.budget import solve_budget

# What the recipes change: sandwich training with in-place distillation, as published.
BASE: dict[str, Any] = {"steps": 2180, "distill_weight": 0.5, "shared_noise": True}
RECIPES: dict[str, dict[str, Any]] = {
    "base": {},
    "alone": {"distill_weight": 0.0},
    "alone-own-noise": {"distill_weight": 0.0, "shared_noise": False},
    "alone-own-noise-two-middle": {
        "distill_weight": 0.0,
        "shared_noise": False,
        "middle_widths": 2,
    },
    "balanced": {"distill_balanced": True},
    # a middle width is trained in every other step alone
    "weights": {"width_weights": [1, 2, 2, 1]},
    "budget": {"middle_choice": "budget"},
    "two-middle": {"middle_widths": 2},
    "teacher": {"teacher": "ema"},
    "own-noise": {"teacher": "ema", "shared_noise": False},
    "importance": {"teacher": "ema", "t_importance": 0.5},
    "balanced-teacher": {"distill_balanced": True, "teacher": "ema"},
    "balanced-importance": {"distill_balanced": True, "teacher": "ema", "t_importance": 0.5},
    "balanced-two-middle": {"distill_balanced": True, "middle_widths": 2},
}
BUDGETS = (0.55, 0.25)  # of the full width's MACs
SEGMENTS = 4
RANGES, RANGE = 8, 1024  # ranges of seeds that score a strategy, and the samples of each
FIRST_SEED = 10_000


def seed_ranges() -> list[list[int]]:
    """Seeds of each range."""
    return [list(range(FIRST_SEED * k, FIRST_SEED * k + RANGE)) for k in range(1, RANGES + 1)]


def solved(scorer: Scorer, errors: np.ndarray, share: float) -> Strategy:
    """The strategy of least error [S, W] within a share of the full width's MACs."""
    sampler, widths = scorer.sampler, scorer.sampler.config.model.widths
    costs = macs_table(sampler.config.model, widths).costs
    log_snrs = [e.log_snr for e in evaluations(sampler.schedule, sampler.config.sampler)]
    budget = share * costs[1.0] * len(log_snrs)
    found = solve_budget(errors, [costs[w] for w in widths], budget, SEGMENTS)
    chosen = [widths[index] for index in found.choice]
    origin = {"kind": "budget", "share": share, "cost": found.cost / (costs[1.0] * len(log_snrs))}
    return Strategy.from_timestep_widths(chosen[::-1], log_snrs[::-1], origin)


def strategies(scorer: Scorer, scratch: Path) -> dict[str, Strategy]:
    """What is scored, by name."""
    sampler, config = scorer.sampler, scorer.sampler.config
    widths, digest = config.model.widths, weights_digest(sampler.network)
    measured = sensitivity_of(scratch, sampler, scorer.dataset, digest, widths)
    log_snrs = [e.log_snr for e in evaluations(sampler.schedule, config.sampler)]
    gains = prediction_gains(sampler.schedule, config.sampler, config.diffusion.parameterisation)
    errors = measured.for_steps(log_snrs, widths, gains)
    constants = {f"{width:g}": Strategy.constant(width) for width in widths}
    return constants | {f"solved {share:g}": solved(scorer, errors, share) for share in BUDGETS}


def configured(name: str, seed: int) -> RunConfig:
    """A recipe, with the steps that cost what BASE costs."""
    base = configure("digits", train=BASE)
    config = configure("digits", train={**BASE, **RECIPES[name], "seed": seed})
    share = estimate_training(base).macs / estimate_training(config).macs
    return changed(config, {"train": {"steps": round(BASE["steps"] * share)}})


def trained(out: Path, name: str, config: RunConfig, roots: Sequence[Path]) -> Run:
    """The trained run of a config, from one of `roots` if it is there, else made in OUT."""
    for root in roots:
        folder = find_resumable(root, config)
        last = f"checkpoints/step-{config.train.steps:06d}"
        if folder is not None and (folder / last).is_dir():
            return Run.open(root, folder)
    run = Run.create(out / "runs", name, config)
    if not run.train().finished:
        raise SystemExit(f"{run.folder}: stopped before its last step; the same command continues")
    return run


def score(run: Run, out: Path, label: str, rows: dict[str, Any]) -> Iterator[str]:
    """Score a run's strategies into `rows`, one after another; yields the name of each."""
    scorer = Run.open(run.folder.parent, run.folder, {"eval": {"sensitivity_images": 512}}).scorer()
    for name, strategy in strategies(scorer, out / "sensitivity" / label).items():
        if name in rows:
            continue
        distances = []
        for seeds in seed_ranges():
            images = to_uint8(scorer.sampler.images(strategy, seeds)).cpu()
            distances.append(scorer.frechet(images))
        rows[name] = {
            "frechet": distances,
            "macs": scorer.sampler.macs_per_image(strategy),
            "widths": strategy.widths,
            "cuts": strategy.cuts,
        }
        yield name


def shown(values: Sequence[float], sign: str = "+") -> str:
    """Mean and its 95 % interval, as a cell of a table."""
    if not values:
        return "-"
    found = mean_interval(values)
    half = f" ± {found.half_width:.3f}" if found.half_width else ""
    return f"{found.mean:{sign}.3f}{half}"


def table(results: dict[str, Any]) -> str:
    """Markdown: the default's scores, then what each recipe adds to them at the same seeds."""

    def means(recipe: str, seed: str) -> dict[str, float]:
        rows = results.get(recipe, {}).get(seed, {})
        return {name: float(np.mean(row["frechet"])) for name, row in rows.items()}

    columns = [f"{width:g}" for width in (1.0, 0.75, 0.5, 0.25)]
    columns += [f"solved {share:g}" for share in BUDGETS]
    lines = [
        "| recipe | seeds | " + " | ".join(columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for recipe in results:
        pairs = {seed: (means(recipe, seed), means("base", seed)) for seed in results[recipe]}
        whole = {s: p for s, p in pairs.items() if all(c in p[0] and c in p[1] for c in columns)}
        if not whole:
            continue
        cells = []
        for column in columns:
            own = [mine[column] for mine, _ in whole.values()]
            differences = [mine[column] - other[column] for mine, other in whole.values()]
            cells.append(shown(own, "") if recipe == "base" else shown(differences))
        lines.append(f"| {recipe} | {len(whole)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of runs, scores and recipes.json")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument(
        "--runs", nargs="+", type=Path, default=[], help="folders with trained runs; read only"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    return parser.parse_args()


def main() -> None:
    """Train, score, write, print."""
    arguments = parsed()
    out: Path = arguments.out
    path = out / "recipes.json"
    content: dict[str, Any] = read_json(path) if path.exists() else {}
    results = content.setdefault("results", {})
    if not arguments.table:
        torch.set_num_threads(1)
        machine = machine_info(command=False)
        content.update(machine=machine, ranges=RANGES, images=RANGE, base=BASE, settings=RECIPES)
        for seed in arguments.seeds:
            for name in arguments.recipes:
                label = f"{name}-{seed}"
                rows = results.setdefault(name, {}).setdefault(str(seed), {})
                if len(rows) == len(BUDGETS) + 4:
                    continue
                run = trained(out, label, configured(name, seed), arguments.runs)
                print(f"{label}: trained", flush=True)
                for strategy in score(run, out, label, rows):
                    print(f"{label}: {strategy} {shown(rows[strategy]['frechet'], '')}", flush=True)
                    write_json(path, content)
    print(table(results))


if __name__ == "__main__":
    main()
