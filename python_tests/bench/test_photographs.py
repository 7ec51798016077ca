"""The plan of `photographs.py`: it goes on where it was stopped, and its tables say what it has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.scripts import ROOT  # makes step_aware importable
from filelock import FileLock
from PIL import Image
from scipy import stats
from step_aware.presets import PRESETS, Preset, Target
from step_aware.tables import TABLES, claims, constant_beside, lines_of, over_seeds

from ddsm_ext.io.checkpoint import load_newest
from ddsm_ext.io.files import read_json
from ddsm_ext.run import Run, configure, demos
from ddsm_ext.run.folder import config_of

TRIAL = PRESETS["trial"]


def call(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the script; a benchmark imports its neighbours, which PYTHONSAFEPATH hides."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    command = [sys.executable, str(ROOT / "benchmarks" / "photographs.py"), *words]
    return subprocess.run(command, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True,
                          text=True, check=False)  # fmt: skip


def test_it_goes_on_where_it_was_stopped_and_makes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tmp_path), "--preset", "trial"]
    stops = 0
    while (done := call(*words, "--minutes", "0.15")).returncode == 130:
        assert "the same command goes on" in done.stderr
        stops += 1
        assert stops < 30
    assert done.returncode == 0, done.stderr
    before = (tmp_path / "trial.json").read_bytes()
    assert call(*words).stdout == ""  # nothing is trained, searched or scored again

    content = read_json(tmp_path / "trial.json")
    assert read_json(tmp_path / "trial.json")["seeds"] == content["seeds"]
    results = content["seeds"]["0"]
    names = {"strategy 60 %", "strategy 70 %", "full width"}
    widths = {f"width {width:g}" for width in TRIAL.sections["model"]["widths"][1:]}
    others = {"strategy 70 %, reverse", "strategy 70 %, two segments"}
    equal = {"strategy as width 0.5"} & results["strategies"].keys()  # if that width saves time
    searched = {f"width {row['width']:g}" for row in results["costs"]["rows"]} - {"width 1"}
    assert searched <= widths
    assert set(results["scores"]["general"]) == names | searched | others | equal
    assert names | equal <= set(results["scores"])
    for rows in results["scores"].values():
        for ranges in rows.values():
            assert [row["digits-classifier"]["images"] for row in ranges] == [128, 128]
    for name in names - {"full width"}:
        row = results["strategies"][name]
        share = row["ms"] / results["strategies"]["full width"]["ms"]
        assert share <= float(name.split()[1]) / 100 + 1e-9
    for name in equal:
        same = results["strategies"]["width 0.5"]["ms"]
        assert results["strategies"][name]["ms"] <= same * (1 + 1e-9)
    assert set(results["timing"]["ms_per_image"]) == set(results["strategies"])
    assert all(seconds > 0 for seconds in results["seconds"].values())
    # a tuned run's score is of its own weights
    general, tuned = (results["scores"][w]["strategy 70 %"] for w in ("general", "strategy 70 %"))
    assert general != tuned

    shown = call(*words, "--table", "claims").stdout
    assert 2 < shown.count("\n") <= 2 + 2 * 3  # times decide which constants are beside
    drawn = call(*words, "--docs", str(tmp_path))
    assert drawn.returncode == 0, drawn.stderr
    for name in ("trial-samples.png", "trial-front.png"):
        with Image.open(tmp_path / name) as image:
            assert np.asarray(image).std() > 5
    packed = call(*words, "--demo", str(tmp_path / "demos"))
    assert packed.returncode == 0, packed.stderr
    assert (tmp_path / "trial.json").read_bytes() == before

    monkeypatch.setattr(demos, "DEMOS", tmp_path / "demos")
    made = Run.demo("photographs", tmp_path / "made")
    (origin,) = (
        folder for folder in (tmp_path / "runs").glob("*-tune")
        if Run(folder, config_of(folder)).config.tune.strategy == made.strategy
    )  # fmt: skip
    theirs = load_newest(origin, ("ema",))
    assert theirs is not None
    own = made.network().state_dict()
    assert all(torch.equal(own[k], v.bfloat16().float()) for k, v in theirs.tensors["ema"].items())
    assert made.config.data.source == "digits"


def test_other_settings_do_not_mix_with_figures_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "trial.json").write_text('{"tune_steps": 4, "seeds": {}}')
    refused = call(str(tmp_path), "--preset", "trial")
    assert refused.returncode == 1
    assert "has figures of other images or settings" in refused.stderr


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with FileLock(tmp_path / "trial.lock"):
        refused = call(str(tmp_path), "--preset", "trial")
    assert refused.returncode == 1
    assert "another process writes it" in refused.stderr


def test_photographs_want_images(tmp_path: Path) -> None:
    refused = call(str(tmp_path))
    assert refused.returncode == 1
    assert "need --data" in refused.stderr


@pytest.mark.parametrize("name", ["photographs", "cifar10", "digits"])
def test_presets_are_settings_of_the_package(name: str) -> None:
    preset = PRESETS[name]
    config = configure(preset.base, **preset.sections)
    assert config.model.widths == config.train.widths == preset.search["widths"]
    assert set(preset.budgets) == {0.25, 0.4, 0.55}
    assert config.eval.ranges >= 8
    assert config.eval.images == 1024
    assert config.eval.features == preset.features[0]


def scored(*distances: float) -> list[dict[str, Any]]:
    return [{"f": {"frechet": value, "images": 1024}} for value in distances]


def strategy(kind: str, ms: float) -> dict[str, Any]:
    return {"kind": kind, "widths": [1.0], "cuts": [], "ms": ms, "macs": 10 * ms}


FORTY = Target("strategy 40 %", "f", share=0.4)
STUDY = Preset("digits", {}, {}, ("f",), (), 1, budgets=(0.4,), as_widths=())
RESULTS: dict[str, Any] = {
    "strategies": {
        "full width": strategy("full", 100.0),
        "width 0.5": strategy("width", 42.0),
        "width 0.25": strategy("width", 20.0),
        "strategy 40 %": strategy("strategy", 39.0),
    },
    "scores": {
        "general": {
            "full width": scored(1.0, 1.2, 1.1),
            "width 0.5": scored(2.0, 2.5, 2.2),
            "width 0.25": scored(2.1, 2.4, 2.6),
            "strategy 40 %": scored(1.5, 1.9, 1.8),
        },
        "strategy 40 %": {"strategy 40 %": scored(1.25, 1.0, 1.4)},
        "width 0.5": {"width 0.5": scored(1.2, 1.1, 1.3)},
    },
}
OTHER = {**RESULTS, "scores": {**RESULTS["scores"], "strategy 40 %": {
    "strategy 40 %": scored(1.5, 1.2, 1.6)}}}  # fmt: skip


def t_interval(values: list[float]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(np.mean(values)), (high - low) / 2


def test_a_claim_is_the_paired_interval_beside_the_best_constant_of_no_less_time() -> None:
    assert STUDY.targets == (FORTY,)
    assert constant_beside(RESULTS, FORTY) == "width 0.5"
    shown = claims({"seeds": {"0": RESULTS}}, STUDY).splitlines()
    general, tuned = ([cell.strip() for cell in row.split("|")] for row in shown[2:])
    mean, half = t_interval([-0.5, -0.6, -0.4])
    cells = ["strategy 40 %", "39 %", "width 0.5", "42 %", "1.73", f"**{mean:.2f} ± {half:.2f}**"]
    assert general[3:9] == cells
    mean, half = t_interval([0.05, -0.1, 0.1])
    assert tuned[8] == f"{mean:+.2f} ± {half:.2f}"  # holds 0: not bold
    mean, half = t_interval([0.25, -0.2, 0.3])  # the full width keeps its general weights
    assert tuned[9] == f"{mean:+.2f} ± {half:.2f}"


def test_over_seeds_the_interval_is_of_the_trainings() -> None:
    shown = over_seeds({"seeds": {"0": RESULTS, "1": OTHER}}, STUDY).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in shown]
    rows = {f"{row[0]}, {row[2]}": row[4:] for row in cells}
    first, second = np.mean([0.05, -0.1, 0.1]), np.mean([0.3, 0.1, 0.3])
    mean, half = t_interval([first, second])
    assert rows["tuned, constant"][:2] == [f"{first:+.3f}", f"{second:+.3f}"]
    assert rows["tuned, constant"][2] == f"{mean:+.1f} ± {half:.1f}"


def test_a_table_of_what_was_not_measured_yet_is_empty() -> None:
    half = {"strategies": {}, "scores": {}}
    for name, make in TABLES.items():
        rows = make({"seeds": {"0": half}}, STUDY).count("\n") - 1
        assert rows <= (name == "times")  # of no minutes in all
    assert lines_of(half, "f") == {}
