"""The searched strategy beside what a user would take instead, over training seeds.

    OMP_NUM_THREADS=1 python benchmarks/against_constants.py OUT
    python benchmarks/against_constants.py OUT --table

For each training seed the preset "digits" is trained, as `ddsm quickstart` does, and searched at
budgets of 55 and 25 % of the MACs; strategies and constant widths are scored on the same 8 ranges
of 1024 seeds. Printed are each seed's paired differences from the full width and from the best
constant width up to the narrowest that costs no less, with their intervals over the ranges, then
the mean over the training seeds with its interval over these. OUT/against_constants.json has every
score; what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ddsm_ext.intervals import Interval, mean_interval
from ddsm_ext.io.files import read_json, write_json
from ddsm_ext.machine import machine_info
from ddsm_ext.report.comparison import Line, best_constant, compare, lines_of
from ddsm_ext.run import Run, configure

BUDGETS = (0.55, 0.25)


def trained(out: Path, seed: int, changes: dict[str, dict[str, Any]]) -> Run:
    """Return the trained run of a seed."""
    sections = {**changes, "train": {**changes.get("train", {}), "seed": seed}}
    run = Run.create(out / "runs", f"seed{seed}", configure("digits", **sections))
    if not run.train().finished:
        raise SystemExit(f"{run.folder}: stopped before its last step; the same command continues")
    return run


def searched(run: Run, budget: float) -> Path:
    """Return the file of the strategy that a search at this budget chose."""
    path = run.folder / f"strategy-{100 * budget:.0f}.json"
    if not path.exists():
        run.search(budget_macs=budget)
        for name in ("front.json", "history.json"):
            shutil.copy(run.folder / "search" / name, path.with_name(f"{path.stem}-{name}"))
        shutil.copy(run.folder / "search" / "strategy.json", path)
    return path


def scored(run: Run) -> list[dict[str, Any]]:
    """Return the rows of all scores."""
    strategies = [searched(run, budget) for budget in BUDGETS]
    narrow = [width for width in run.config.model.widths if width != 1.0]
    return list(run.evaluate([1.0, *strategies, *narrow], again=False)["rows"])


def differences(rows: list[dict[str, Any]], budget: float) -> dict[str, tuple[Line, Interval]]:
    """Return "full" and "constant" -> what the strategy of a budget is compared with, and how."""
    lines = lines_of(rows)
    chosen = next(line for line in lines if line.label == f"strategy-{100 * budget:.0f}")
    others = {
        "constant": best_constant(chosen, lines),
        "full": next(line for line in lines if line.kind == "full"),
    }
    found = {name: line and compare(chosen, line) for name, line in others.items()}
    return {name: (c.other, c.interval) for name, c in found.items() if c}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return the figures as a table of Markdown."""
    head = ["budget", "training seed", "strategy", "MACs", "best constant", "strategy - constant",
            "full width", "strategy - full"]  # fmt: skip
    body = []
    for budget in BUDGETS if results else ():
        means: dict[str, list[float]] = {"constant": [], "full": [], "share": []}
        for seed, rows in results.items():
            lines = {line.label: line for line in lines_of(rows)}
            line, full = lines[f"strategy-{100 * budget:.0f}"], lines["full width"]
            found = differences(rows, budget)
            other, against = found["constant"]
            means["constant"].append(against.mean)
            means["share"].append(against.mean / other.mean)
            means["full"].append(found["full"][1].mean)
            assert line.macs is not None
            assert full.macs is not None
            body.append([
                f"{100 * budget:.0f} %", seed, f"{line.mean:.3f}",
                f"{100 * line.macs / full.macs:.1f} %", f"{other.label} {other.mean:.3f}",
                _text(against), f"{full.mean:.3f}", _text(found["full"][1]),
            ])  # fmt: skip
        whole = {name: mean_interval(values) for name, values in means.items()}
        share = whole["share"]
        body.append([
            f"{100 * budget:.0f} %", "mean", "", "", "",
            f"**{_text(whole['constant'])}** ({100 * share.mean:+.1f} ± "
            f"{100 * share.half_width:.1f} %)",
            "", _text(whole["full"]),
        ])  # fmt: skip
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def _text(interval: Interval) -> str:
    return f"{interval.mean:+.3f} ± {interval.half_width:.3f}"


def main(words: list[str]) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5], help="of the training"
    )
    parser.add_argument("--changes", type=json.loads, default={}, help="JSON over the preset")
    parser.add_argument("--table", action="store_true", help="print what is there, and no more")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    path = arguments.out / "against_constants.json"
    content = read_json(path) if path.exists() else {"results": {}}
    results = content["results"]
    if not arguments.table:
        for seed in arguments.seeds:
            run = trained(arguments.out, seed, arguments.changes)
            results[str(seed)] = scored(run)
            machine = machine_info(command=False)
            about = {"machine": machine, "config": run.config.to_dict()}
            write_json(path, {**about, "results": results})
            print(table(results), flush=True)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
