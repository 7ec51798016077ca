"""A strategy searched with DDIM, run by other samplers: the digits, paired seed ranges.

    OMP_NUM_THREADS=1 python benchmarks/strategy_across_samplers.py OUT
    python benchmarks/strategy_across_samplers.py OUT --table

For each training seed the preset "digits" is trained and searched at 55 % of the MACs with the
preset's sampler, 20 steps of DDIM. Each sampler of SAMPLERS then runs that strategy, the constant
widths, and a strategy searched with this sampler itself, all from the noise of
training_recipes.py. Intervals are over the seed ranges. OUT/strategy_across_samplers.json has every
score; what is there is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from training_recipes import seed_ranges, trained

from ddsm_ext.data.pixels import to_uint8
from ddsm_ext.intervals import mean_interval, paired_interval
from ddsm_ext.io.files import read_json, write_json
from ddsm_ext.machine import machine_info
from ddsm_ext.run import Run, configure
from ddsm_ext.sampling.levels import evaluations
from ddsm_ext.sampling.strategy import Strategy

BUDGET = 0.55  # of the full width's MACs
SEARCHED = "ddim"  # whose strategy all run
# About 20 evaluations each. Levels are the preset's, evenly in t. Heun's method would fall there
# from the cosine schedule's sigma of 20,000 to 6 in one step, and multiply what its second
# prediction differs from the first by 1,800: it takes those of Karras et al. from sigma 80, in 10
# steps of 19 evaluations.
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "dpmpp_2m": {"kind": "dpmpp_2m"},
    "heun": {"kind": "heun", "steps": 10, "spacing": "karras", "sigma_max": 80.0},
    "ddpm": {"kind": "ddpm"},
    "unipc": {"kind": "unipc"},
    "euler": {"kind": "euler"},
}
CONSTANTS = (1.0, 0.75, 0.5, 0.25)
FULL, SHARED, OWN = "1", "searched with ddim", "searched with itself"


def score(run: Run, row: dict[str, Any]) -> None:
    """Add Fréchet distance of each range of seeds and share of the MACs to a row of widths."""
    scorer, strategy = run.scorer(), Strategy(row["widths"], row["cuts"])
    sampler = scorer.sampler
    images = (to_uint8(sampler.images(strategy, seeds)).cpu() for seeds in seed_ranges())
    row["frechet"] = [scorer.frechet(each) for each in images]
    row["macs"] = sampler.macs_per_image(strategy) / sampler.macs_per_image(1.0)


def best_constant(rows: Mapping[str, Any]) -> str:
    """The best scored of the narrower widths up to the narrowest that costs no less than the
    strategy."""
    narrower = [f"{width:g}" for width in CONSTANTS if width < 1.0]
    enough = [name for name in narrower if rows[name]["macs"] >= rows[SHARED]["macs"]]
    most = rows[enough[-1]]["macs"] if enough else 1.0
    fitting = [name for name in narrower if rows[name]["macs"] <= most]
    return min(fitting, key=lambda name: mean_interval(rows[name]["frechet"]).mean)


def table(results: Mapping[str, Any]) -> str:
    """Return the figures as a table of Markdown: a row a training and sampler."""
    head = [
        "training", "sampler", "evaluations", "DDIM's strategy", "MACs", "full width",
        "DDIM's - full", "best constant", "DDIM's - constant", "own strategy", "its MACs",
        "DDIM's - own",
    ]  # fmt: skip
    body = []
    for seed, samplers in results.items():
        for kind, found in samplers.items():
            rows = found["rows"]
            if len(rows) < len(CONSTANTS) + 1 or not all("frechet" in row for row in rows.values()):
                continue  # not all of it is there yet
            constant = best_constant(rows)
            means = {name: mean_interval(row["frechet"]).mean for name, row in rows.items()}
            body.append([
                seed, kind, found["evaluations"], f"{means[SHARED]:.3f}",
                f"{100 * rows[SHARED]['macs']:.1f} %", f"{means[FULL]:.3f}", _minus(rows, FULL),
                f"width {constant} {means[constant]:.3f}", _minus(rows, constant),
                *_own(rows, means),
            ])  # fmt: skip
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def _own(rows: Mapping[str, Any], means: Mapping[str, float]) -> list[str]:
    """The cells of the strategy that was searched with the sampler itself."""
    if OWN not in rows:
        return ["", "", ""]
    own, shared = rows[OWN], rows[SHARED]
    same = (own["widths"], own["cuts"]) == (shared["widths"], shared["cuts"])
    against = "the same strategy" if same else _minus(rows, OWN)
    return [f"{means[OWN]:.3f}", f"{100 * own['macs']:.1f} %", against]


def _minus(rows: Mapping[str, Any], other: str) -> str:
    """What the shared strategy scores above another row, over the seed ranges."""
    return paired_interval(rows[SHARED]["frechet"], rows[other]["frechet"]).text()


def strategies(run: Run, kind: str, samplers: Mapping[str, Any]) -> None:
    """Name in the rows of a sampler what is scored; its own strategy is searched."""
    rows = samplers[kind]["rows"]
    for width in CONSTANTS:
        rows.setdefault(f"{width:g}", {"widths": [width], "cuts": []})
    own = SHARED if kind == SEARCHED else OWN
    if own not in rows:
        chosen = run.search(budget_macs=BUDGET).strategy
        rows[own] = {"widths": chosen.widths, "cuts": chosen.cuts}
    shared = samplers[SEARCHED]["rows"][SHARED]
    rows.setdefault(SHARED, {"widths": shared["widths"], "cuts": shared["cuts"]})


def measure(out: Path, seed: int, samplers: dict[str, Any], kinds: Sequence[str]) -> Iterator[str]:
    """Measure samplers on one training; yields the name of each row as it is scored."""
    config = configure("digits", train={"seed": seed})
    folder = trained(out, f"seed{seed}", config, ()).folder
    for kind in dict.fromkeys([SEARCHED, *kinds]):
        run = Run.open(folder.parent, folder, {"sampler": SAMPLERS[kind]})
        count = len(evaluations(run.scorer().sampler.schedule, run.config.sampler))
        found = samplers.setdefault(kind, {"evaluations": count, "rows": {}})
        strategies(run, kind, samplers)
        for name, row in found["rows"].items():
            if "frechet" not in row:
                score(run, row)
                yield f"seed {seed}, {kind}, {name}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of runs and the scores")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    return parser.parse_args()


def main() -> None:
    """Train, search, score, write, print."""
    arguments = parsed()
    path = arguments.out / "strategy_across_samplers.json"
    content: dict[str, Any] = read_json(path) if path.exists() else {"results": {}}
    results = content["results"]
    if not arguments.table:
        torch.set_num_threads(1)
        content.update(machine=machine_info(command=False), samplers=SAMPLERS, budget=BUDGET)
        for seed in arguments.seeds:
            samplers = results.setdefault(str(seed), {})
            for done in measure(arguments.out, seed, samplers, arguments.samplers):
                write_json(path, content)
                print(done, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
