"""Demos: trained networks of the package become runs, and draw what they were trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddsm_ext.cli.main import main
from ddsm_ext.io.checkpoint import load_newest
from ddsm_ext.io.files import read_json
from ddsm_ext.run import Run, demos
from ddsm_ext.run.demos import DEMOS, demo_folder, demo_names, demo_run
from ddsm_ext.search.front import Front


def test_they_are_small_and_say_where_their_data_is_from() -> None:
    assert demo_names() == ["photographs", "photographs-supernet"]
    assert sum(path.stat().st_size for path in DEMOS.rglob("*.safetensors")) <= 6_000_000
    text = (DEMOS / "README.md").read_text()
    assert all(f"`{name}`" in text for name in demo_names())
    for word in ("CIFAR-10", "JPEG", "licence", "Apache-2.0"):
        assert word in text


@pytest.mark.parametrize("name", ["photographs", "photographs-supernet"])
def test_a_demo_becomes_one_run(tmp_path: Path, name: str) -> None:
    run = Run.demo(name, tmp_path)
    assert run.folder == tmp_path / f"00000-{name}"
    assert Run.demo(name, tmp_path).folder == run.folder  # made once
    newest = load_newest(run.folder, ("ema",))
    assert newest is not None
    assert newest.step == run.config.train.steps
    weights = newest.tensors["ema"].values()
    assert all(torch.equal(each, each.bfloat16().float()) for each in weights)
    assert len(run.strategy.widths) > 1  # step-aware
    assert run.config.tune.strategy == (run.strategy if name == "photographs" else None)
    assert "/" not in run.config.data.source


def test_the_supernets_front_has_its_strategy(tmp_path: Path) -> None:
    run = Run.demo("photographs-supernet", tmp_path)
    front = Front.load(run.folder / "search" / "front.json")
    assert front.chosen is not None
    assert front.chosen.strategy == run.strategy
    assert front.chosen.cost_relative <= 0.4 + 1e-9
    assert Run.demo("photographs", tmp_path).strategy == run.strategy


def test_it_draws_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "--demo", "photographs", "--root", str(tmp_path), "--seeds", "0-39"]
    assert main([*words, "--dry-run"]) == 0
    assert not any(tmp_path.iterdir())
    capsys.readouterr()
    assert main(words) == 0
    grid = Path(capsys.readouterr().out.strip())
    assert grid.name == "grid.png"
    assert main([*words, "--class", "ship,frog"]) == 0
    images = Run.demo("photographs", tmp_path).sample(range(40)).images / 255.0  # [N, H, W, C]
    assert images.shape == (40, 16, 16, 3)
    # photographs are smooth: neighbouring pixels of CIFAR-10 at 16x16 correlate by about 0.9
    left, right = images[:, :, :-1].ravel(), images[:, :, 1:].ravel()
    assert np.corrcoef(left, right)[0, 1] > 0.8
    # the sky and sea of ships (class 8) are bluer than the surroundings of frogs (class 6)
    by_class = images.reshape(4, 10, 16, 16, 3).mean(axis=(0, 2, 3))  # [class, colour]
    assert by_class[8, 2] - by_class[8, 0] > by_class[6, 2] - by_class[6, 0]
    assert main(["report", "--root", str(tmp_path)]) == 0


def test_a_demo_of_other_weights_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = demo_run(tmp_path, "photographs")
    other = tmp_path / "demos" / "photographs"
    shutil.copytree(demo_folder("photographs-supernet"), other)
    shutil.copy(demo_folder("photographs") / "config.json", other)
    monkeypatch.setattr(demos, "DEMOS", other.parent)
    assert demo_run(tmp_path, "photographs") != first


def test_a_changed_bit_of_its_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DEMOS, tmp_path / "demos")
    monkeypatch.setattr(demos, "DEMOS", tmp_path / "demos")
    (weights,) = demo_folder("photographs").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-7] ^= 4
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        demo_run(tmp_path / "runs", "photographs")
    assert not (tmp_path / "runs").exists()


def test_unknown_names_and_two_runs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["--demo", "photograph"], "did you mean photographs"),
        (["--demo", "photographs", "--run", "3"], "need one of them"),
    ):
        assert main(["sample", *words, "--root", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_their_strategies_are_those_of_the_results(tmp_path: Path) -> None:
    """The figures of docs/results.md are of the strategy that the demos have."""
    results = Path(__file__).resolve().parents[2] / "benchmarks/results/method/photographs.json"
    row = read_json(results)["seeds"]["0"]["strategies"]["strategy 40 %"]
    own = Run.demo("photographs", tmp_path).strategy
    assert (list(own.widths), list(own.cuts)) == (row["widths"], row["cuts"])
