"""The whole way, tiny: train, search, sample, eval, report, export; and its interruptions."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.commands import PACKAGE_ROOT, TINY, sets
from PIL import Image

from ddsm_ext.cli.main import main
from ddsm_ext.io.checkpoint import load_checkpoint, newest_complete
from ddsm_ext.run import Run
from ddsm_ext.sampling.strategy import Strategy


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    assert main(["train", "--root", str(folder), *sets(TINY)]) == 0
    return folder / "00000-digits"


@pytest.fixture(scope="module")
def searched(trained: Path) -> Path:
    assert main(["search", "--run", str(trained)]) == 0
    return trained


def test_training_writes_a_run_and_the_same_command_continues(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = (trained / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3]
    assert main(["train", "--root", str(trained.parent), *sets(TINY)]) == 0
    assert "continuing" in capsys.readouterr().err
    assert (trained / "log.jsonl").read_text().splitlines() == log
    assert len(list(trained.parent.iterdir())) == 1


def test_training_begins_with_the_weights_of_another_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that moves nothing leaves the averaged weights of the first run."""
    more = [f"train.start_from={trained}", "train.lr=1e-30", "train.steps=2"]
    command = ["train", "--root", str(tmp_path), *sets([*TINY, *more])]
    assert main(command) == 0
    run = Path(capsys.readouterr().out.strip())
    wanted = load_checkpoint(newest_complete(trained)).tensors["ema"]
    found = load_checkpoint(newest_complete(run))
    assert found.step == 2
    for group in ("model", "ema"):
        for name, tensor in wanted.items():
            assert torch.equal(found.tensors[group][name], tensor), name
    (tmp_path / "moved").mkdir()
    gone = [f"train.start_from={tmp_path / 'moved'}", "train.lr=1e-30"]
    assert main([*command, *sets(gone)]) == 2
    assert "has no whole checkpoint" in capsys.readouterr().err


def test_samples_in_bfloat16_are_near_those_in_float32(searched: Path, tmp_path: Path) -> None:
    pixels = []
    for dtype in ("float32", "bfloat16"):
        out = str(tmp_path / dtype)
        command = ["sample", "--run", str(searched), "--strategy", "1", "--seeds", "0-7"]
        assert main([*command, "--out", out, "--set", f"sampler.dtype={dtype}"]) == 0
        with Image.open(Path(out) / "grid.png") as grid:
            pixels.append(np.asarray(grid, dtype=np.float64))
    difference = np.abs(pixels[0] - pixels[1]).mean()
    assert 0 < difference < 4  # of 255; bfloat16 keeps 8 bits


def test_search_chooses_within_the_budget(searched: Path) -> None:
    strategy = Strategy.load(searched / "search" / "strategy.json")
    assert strategy.origin["cost_relative"] <= 0.6
    costs = json.loads((searched / "search" / "costs.json").read_text())
    assert {row["width"] for row in costs["rows"]} == {1.0, 0.5}
    assert all(row["ms"] > 0 and row["macs"] > 0 for row in costs["rows"])
    steps = json.loads((searched / "search" / "steps.json").read_text())
    assert steps["timesteps"] == sorted(steps["timesteps"], reverse=True)
    assert len(steps["widths"]) == 4


def test_the_same_search_repeats_no_evaluation(searched: Path) -> None:
    archive = searched / "search" / "archive.jsonl"
    before = archive.read_bytes()
    assert main(["search", "--run", str(searched)]) == 0
    assert archive.read_bytes() == before


def test_a_seed_is_an_image_in_any_batch(searched: Path, tmp_path: Path) -> None:
    common = ["sample", "--run", str(searched), "--strategy", "1"]
    assert main([*common, "--seeds", "0-4", "--out", str(tmp_path / "a")]) == 0
    assert main([*common, "--seeds", "3", "--out", str(tmp_path / "b"), "--batch-size", "1"]) == 0
    with (
        Image.open(tmp_path / "a/seed-000003.png") as a,
        Image.open(tmp_path / "b/seed-000003.png") as b,
    ):
        assert a.size == (8, 8)
        worst = max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True))
    assert worst <= 1
    assert (tmp_path / "a/grid.png").exists()


def test_a_search_and_scores_run_in_bfloat16(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    low = sets(["sampler.dtype=bfloat16"])
    assert main(["search", "--run", str(run), *low]) == 0
    costs = json.loads((run / "search" / "cost_table.json").read_text())
    assert costs["conditions"]["dtype"] == "bfloat16"
    capsys.readouterr()
    assert main(["eval", "--run", str(run), "--strategy", "1", *low]) == 0
    assert json.loads(capsys.readouterr().out)["sampler"]["dtype"] == "bfloat16"


def test_an_interrupted_eval_keeps_what_it_scored(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")

    def stop(title: str, *more: object) -> None:
        if title == "sampling width 0.5":
            raise KeyboardInterrupt

    run = Run.open(tmp_path, tmp_path / "run", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate([1.0, 0.5])
    rows = json.loads((run.folder / "metrics.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["full width"]


def test_eval_prints_json_and_the_report_shows_it(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["eval", "--run", str(searched)]) == 0
    printed = capsys.readouterr()
    assert "scoring 5 strategies by 1 x 32 samples each: 160; time: about" in printed.err
    result = json.loads(printed.out)
    kinds = ["full", "strategy", "width", "reverse", "two segments"]
    assert [row["kind"] for row in result["rows"]] == kinds
    assert all(row["images"] == 32 and row["frechet"] > 0 for row in result["rows"])
    full, chosen, *_ = (row["macs_per_image"] for row in result["rows"])
    assert chosen <= 0.6 * full
    assert main(["report", "--run", str(searched)]) == 0
    html = Path(capsys.readouterr().out.strip()).read_text()
    assert "MACs saved" in html
    assert "No samples yet" not in html


def test_two_strategy_files_of_one_name_have_a_row_each(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    files = [tmp_path / "a" / "best.json", tmp_path / "b" / "best.json"]
    for file, width in zip(files, (1.0, 0.5), strict=True):
        file.parent.mkdir()
        Strategy.constant(width).save(file)
    words = [word for file in [*files, files[1]] for word in ("--strategy", str(file))]
    capsys.readouterr()
    assert main(["eval", "--run", str(tmp_path / "run"), *words]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["label"] for row in rows] == ["best", f"best ({files[1]})"]
    assert [row["widths"] for row in rows] == [[1.0], [0.5]]
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert {row["label"] for row in kept} >= {row["label"] for row in rows}


def test_export_equals_the_network_at_that_width(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = ["export", "--run", str(trained), "--width", "0.5", "--out", str(tmp_path / "e")]
    assert main(arguments) == 0
    from safetensors import safe_open

    with safe_open(tmp_path / "e/model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    assert max(max(shape) for shape in shapes if len(shape) == 4) <= 16
    assert json.loads((tmp_path / "e/config.json").read_text())["width"] == 0.5


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["train", *sets(TINY)], "steps of 8 images"),
        (["search"], "method evolution: about"),
        (["sample", "--seeds", "0-9"], "for 10 images"),
        (["eval", "--strategy", "1", "--ranges", "3"], "1 strategies by 3 x 32 samples each: 96"),
    ],
)
def test_dry_runs_estimate_and_write_nothing(
    trained: Path, command: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(trained.parent.rglob("*"))
    root = ["--root", str(trained.parent)]
    assert main([*command, *root, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for part in (expected, "parameters:", "MMACs", "memory: about", "time: about"):
        assert part in text
    assert sorted(trained.parent.rglob("*")) == before


def test_refusals_of_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--run", str(trained)]
    for arguments, expected in (
        (["sample", *run, "--strategy", "0"], "width"),
        (["sample", *run, "--strategy", str(trained / "config.json")], "config.json"),
        (["sample", *run, "--steps", "5000"], "steps is 5000"),
        (["sample", *run, "--sampler", "ddmp"], "ddpm"),
        (["search", *run, "--budget-macs", "0.01"], "budget"),
        (["eval", *run, "--features", "inception"], "inception"),
        (["eval", *run, "--dry-run", "--images", "x"], "need one of the two"),
        (["export", *run, "--width", "3"], "3"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2, arguments
        text = capsys.readouterr().err
        assert expected in text
        assert "Traceback" not in text


@pytest.mark.slow
def test_quickstart_is_interrupted_and_continues(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "ddsm_ext.cli.main", "quickstart", "--fast",
        *sets([*TINY, "train.steps=400"]),
    ]  # fmt: skip
    environment = {"PYTHONPATH": PACKAGE_ROOT, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    log = tmp_path / "runs/00000-quickstart/log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command continues" in errors
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "continuing" in done.stderr
    assert "MACs saved" in done.stdout
    assert (tmp_path / "runs/00000-quickstart/report.html").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 1
