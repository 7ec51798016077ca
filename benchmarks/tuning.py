"""Compare ways of tuning for a strategy by the scores of what comes out: the digits, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/tuning.py OUT [--runs FOLDER ...] [--steps 1200]
    python benchmarks/tuning.py OUT --table

Tunes runs of the preset "digits" for the budget solver's strategies and for constant widths of
about the same cost. OUT/tuning.json has the scores of each tuned run at its strategy and at the
full width, all from the noise of training_recipes.py; what is there is not made again.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_recipes import seed_ranges, shown, strategies, trained

from ddsm_ext.data.pixels import to_uint8
from ddsm_ext.io.files import read_json, write_json
from ddsm_ext.machine import machine_info
from ddsm_ext.run import Run, configure
from ddsm_ext.sampling.strategy import Strategy


@dataclass(frozen=True)
class Way:
    """Share of sandwich steps, weight of the distance to the origin, and steps, of --steps."""

    sandwich: float = 0.0
    teacher: float = 0.0
    steps: float = 1.0


WAYS: dict[str, Way] = {
    "alone": Way(),
    "sandwich 0.1": Way(0.1),
    "sandwich 0.1, twice the steps": Way(0.1, steps=2.0),
    "sandwich 0.3": Way(0.3),
    "teacher": Way(teacher=0.5),
    "sandwich 0.1, teacher": Way(0.1, teacher=0.5),
    "sandwich alone": Way(1.0),  # about twice the time
}
TARGETS = ("solved 0.55", "0.75", "solved 0.25", "0.5")


def origin(out: Path, seed: int, roots: list[Path]) -> Run:
    """The run that is tuned, in OUT, as tuned runs lie beside it."""
    found = trained(out, f"seed{seed}", configure("digits", train={"seed": seed}), roots)
    own = out / "runs" / f"{seed:05d}-origin{seed}"
    if not own.exists():
        shutil.copytree(found.folder, own)
    return Run.open(out / "runs", own, {"eval": {"sensitivity_images": 512}})


def scores(run: Run, strategy: Strategy) -> list[float]:
    """Fréchet distance of each range of seeds."""
    scorer = run.scorer()
    images = (to_uint8(scorer.sampler.images(strategy, seeds)).cpu() for seeds in seed_ranges())
    return [scorer.frechet(each) for each in images]


def measure(run: Run, way: str, strategy: Strategy, steps: int) -> dict[str, Any]:
    """Tune and score."""
    each = WAYS[way]
    train = {
        "steps": round(steps * each.steps),
        "distill_weight": each.teacher,
        "distill_balanced": True,
    }
    tuned = run.tuning(strategy, train=train, tune={"sandwich_share": each.sandwich})
    result = tuned.train()
    if not result.finished:
        raise SystemExit(f"{tuned.folder}: stopped before its last step; the same command goes on")
    seconds = result.seconds
    return {
        "strategy": scores(tuned, strategy),
        "full": scores(tuned, Strategy.constant(1.0)),
        "seconds": seconds,
    }


def means(results: dict[str, Any], way: str, target: str, kind: str) -> dict[str, float]:
    """Seed of the training -> score; kind is "strategy" or "full"."""
    rows = results[way].get(target, {})
    return {seed: float(np.mean(row[kind])) for seed, row in rows.items()}


def minus(a: dict[str, float], b: dict[str, float]) -> str:
    """Mean difference at equal seeds, as a cell."""
    return shown([a[seed] - b[seed] for seed in a if seed in b])


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a way; of each target the strategy's score and that of the full width, then
    what the strategies are above the constant widths of about their cost.

    The first row, of no tuning, has scores; the others what they add at equal training seeds.
    """
    pairs = list(zip(TARGETS[::2], TARGETS[1::2], strict=True))
    names = [name for target in TARGETS for name in (target, "full")]
    names += [f"{strategy} - {constant}" for strategy, constant in pairs]
    lines = ["| way | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for way in results:
        cells = []
        for target in TARGETS:
            for kind in ("strategy", "full"):
                own = means(results, way, target, kind)
                first = shown(list(own.values()), "")
                cells.append(
                    first if way == "none" else minus(own, means(results, "none", target, kind))
                )
        for pair in pairs:
            strategy, constant = (means(results, way, target, "strategy") for target in pair)
            cells.append(minus(strategy, constant))
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of runs, scores and tuning.json")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--steps", type=int, default=1200, help="of tuning")
    parser.add_argument(
        "--runs", nargs="+", type=Path, default=[], help="folders with trained runs; read only"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    return parser.parse_args()


def main() -> None:
    """Tune, score, write, print."""
    arguments = parsed()
    path = arguments.out / "tuning.json"
    content: dict[str, Any] = read_json(path) if path.exists() else {}
    results = content.setdefault("results", {"none": {}})
    if not arguments.table:
        torch.set_num_threads(1)
        content.update(
            machine=machine_info(command=False),
            steps=arguments.steps,
            ways={k: asdict(w) for k, w in WAYS.items()},
        )
        for seed in arguments.seeds:
            run = origin(arguments.out, seed, arguments.runs)
            named = strategies(run.scorer(), arguments.out / "sensitivity" / f"origin-{seed}")
            full = None
            for target in arguments.targets:
                for way in ["none", *arguments.ways]:
                    rows = results.setdefault(way, {}).setdefault(target, {})
                    if str(seed) in rows:
                        continue
                    if way == "none":
                        full = full or scores(run, Strategy.constant(1.0))
                        row = {"strategy": scores(run, named[target]), "full": full}
                    else:
                        row = measure(run, way, named[target], arguments.steps)
                    rows[str(seed)] = row
                    write_json(path, content)
                    means = {k: round(float(np.mean(v)), 3) for k, v in row.items()}
                    print(f"seed {seed}, {target}, {way}: {means}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
