"""`ddsm train` on images of one's own: how the run is called, and what size it has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli.commands import TINY, sets

from ddsm_ext.cli.main import main
from ddsm_ext.data.images import save_png


def images(folder: Path, size: int = 8) -> Path:
    folder.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 1), np.uint8)
        save_png(folder / f"{number}.png", pixels)
    return folder


@pytest.mark.parametrize(
    "folder",
    ["my photos", "1.10", "null", "true", "NaN", "1e400", "[1]", "sp ", " sp", '"q"', "'q'", "a=b"],
)
def test_any_folder_is_trained_on_by_its_own_name(
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    images(Path(folder))
    config = {"model": {"image_size": 8, "image_channels": 1, "attn": [], "ch_mult": [1]},
              "train": {"sample_every": 0}, "eval": {"features": "none"}}  # fmt: skip
    Path("c.json").write_text(json.dumps(config))
    line = ["train", "--config", "c.json", "--data", folder, *sets([*TINY, "train.steps=1"])]
    assert main(line) == 0, capsys.readouterr().err
    run = Path(capsys.readouterr().out.strip())
    assert json.loads((run / "config.json").read_text())["data"]["source"] == folder


@pytest.mark.parametrize("given", [["--data", "big"], ["--set", "data.source=big"]])
def test_images_without_a_size_are_refused(
    given: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The preset of no option at all is the digits': photographs would become 8x8 and grey."""
    monkeypatch.chdir(tmp_path)
    images(Path("big"), 64)
    assert main(["train", *given]) == 2
    said = capsys.readouterr().err
    assert "'big'" in said
    assert "--preset (digits 8x8, cifar10 32x32" in said
    assert main(["quickstart", "--set", "data.source=big"]) == 2
    assert "'big'" in capsys.readouterr().err
    assert not Path("runs").exists()
    size, channels = said.split("or --set ")[1].split(" (")[0].split(" --set ")
    for one in (size, channels):
        assert main(["train", *given, "--set", one]) == 2
    capsys.readouterr()
    assert main(["train", *given, *sets([size, channels]), "-n"]) == 0
    data = json.JSONDecoder().raw_decode(capsys.readouterr().out)[0]["data"]
    assert (data["source"], data["split"]) == ("big", "train")
    assert main(["train", *given, "--preset", "digits", "-n"]) == 0
    said = capsys.readouterr().err
    assert "warning: --preset digits with the images 'big': they are brought to 8x8 grey" in said
    assert main(["train", "--data", "digits", "-n"]) == 0


def test_the_command_that_the_refusal_names_trains_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In colour, on the part for training alone, and nothing else of the digits."""
    monkeypatch.chdir(tmp_path)
    Path("big").mkdir()
    images(Path("big/train"), 32)
    images(Path("big/test"), 32)
    own = ["model.image_size=32", "model.image_channels=3", "model.ch_mult=1,1", "train.steps=1",
           "eval.features=none", "train.sample_every=0"]  # fmt: skip
    assert main(["train", "--data", "big", *sets([*TINY, *own])]) == 0
    run = Path(capsys.readouterr().out.strip())
    config = json.loads((run / "config.json").read_text())
    assert (config["model"]["image_channels"], config["data"]["split"]) == (3, "train")
