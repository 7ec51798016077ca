"""`ddsm autoencoder`: what it prints, Ctrl-C and the same command again, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.commands import PACKAGE_ROOT, sets
from eval.photographs import crops
from training.toy_autoencoder import needs_diffusers

from ddsm_ext.cli.main import main
from ddsm_ext.data.images import save_png

pytestmark = needs_diffusers
TINY = sets(["block_out_channels=4,8", "norm_groups=2", "batch_size=4", "warmup_steps=2"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, image in enumerate(crops(30, 24, seed=0)):
        save_png(tmp_path / "photos" / f"{number}.png", image.transpose(1, 2, 0))
    return tmp_path / "photos"


def command(photos: Path, out: Path, *more: str) -> list[str]:
    return ["autoencoder", "--data", str(photos), "--out", str(out), *TINY, *more]


def test_photographs_become_an_autoencoder(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--image-size", "16"]
    line = command(photos, tmp_path / "ae", *size, *sets(["steps=6", "data.held_out=0.2"]))
    assert main([*line, "--dry-run"]) == 0
    said = capsys.readouterr()
    settings, end = json.JSONDecoder().raw_decode(said.out)
    assert settings["data"]["held_out"] == 0.2
    assert settings["autoencoder"]["block_out_channels"] == [4, 8]
    for text in (
        "images: 24 of 3x16x16 to train on, 6 to score by", "latents: 4x8x8", "parameters: ",
        "million MACs", "memory: about", "for 6 steps of 4 images",
    ):  # fmt: skip
        assert text in said.out[end:]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]

    assert main(line) == 0
    said = capsys.readouterr()
    assert Path(said.out.strip()) == tmp_path / "ae"
    assert "PSNR of 6 held-out images: " in said.err
    assert json.loads((tmp_path / "ae" / "training.json").read_text())["steps"] == 6
    log = (tmp_path / "ae" / "log.jsonl").read_bytes()
    assert main(line) == 0
    assert "is there, of these settings and images" in capsys.readouterr().err
    assert main([*line, "--set", "seed=1"]) == 2
    assert "holds an autoencoder with seed 0, now it is 1" in capsys.readouterr().err
    assert (tmp_path / "ae" / "log.jsonl").read_bytes() == log


def test_the_same_command_continues_after_ctrl_c_and_kill(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")])
    steps = sets(["steps=150", "checkpoint_every=10", "log_every=1", "sample_every=0"])

    def start(out: str) -> subprocess.Popen[str]:
        line = command(photos, tmp_path / out, *steps)
        program = [sys.executable, "-m", "ddsm_ext.cli.main", *line]
        return subprocess.Popen(program, env=env, stderr=subprocess.PIPE, text=True)

    log = tmp_path / "parts.training" / "log.jsonl"
    for number, rows, code, said in (
        (signal.SIGINT, 5, 130, "the same command continues"),
        (signal.SIGKILL, 40, -signal.SIGKILL, ""),
    ):
        job = start("parts")
        while job.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < rows):
            time.sleep(0.005)
        job.send_signal(number)
        _, err = job.communicate(timeout=120)
        assert job.returncode == code, err
        assert said in err
        assert not (tmp_path / "parts").exists()
    jobs = [start("parts"), start("whole")]
    for job in jobs:
        _, err = job.communicate(timeout=300)
        assert job.returncode == 0, err
    for name in ("diffusion_pytorch_model.safetensors", "config.json", "reconstructions.png"):
        parts, whole = ((tmp_path / out / name).read_bytes() for out in ("parts", "whole"))
        assert parts == whole, name
    rows = [json.loads(row)["step"] for row in (tmp_path / "parts" / "log.jsonl").open()]
    assert rows == list(range(1, 151))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "stepz=3"], "unknown key stepz; did you mean steps?"),
        (["--set", "data.splitt=all"], "unknown key data.splitt; did you mean split?"),
        (["--set", "steps"], "--set steps: need key=value"),
        (["--set", "steps=many"], "steps is 'many'; need a whole number"),
        (["--set", "data.split=all"], "data.split is 'all'; need 'train'"),
        (["--set", "block_out_channels=4"], "block_out_channels is (4,); need 2, 3 or 4"),
        (["--preset", "smal-f4"], "did you mean small-f4?"),
        (["--image-size", "3"], "--image-size is 3; need a whole number of 4 or more"),
        (["--image-size", "18", "--set", "block_out_channels=4,8,8"], "images are 18x18"),
        (["--data", "nowhere"], "no such file or folder"),
        (["--out", "photos"], "holds something else than an autoencoder; need another --out"),
        (["--out", "photos/0.png"], "--out is photos/0.png, which is there and no folder"),
        (["--device", "tpu"], "--device is 'tpu'; need auto, cpu, cuda"),
    ],
)
def test_refusals(
    more: list[str], said: str, photos: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(photos.parent)
    before = sorted(photos.parent.rglob("*"))
    assert main([*command(photos, Path("ae")), *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(photos.parent.rglob("*")) == before


def test_a_missing_package_is_told_before_the_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str, *rest: object) -> None:
        assert name == "diffusers"

    monkeypatch.setattr("importlib.util.find_spec", absent)
    assert main(command(Path("nowhere"), tmp_path / "ae")) == 2
    said = capsys.readouterr().err
    assert said.startswith("ddsm autoencoder: diffusers is not installed; need the extra: pip")
    assert list(tmp_path.iterdir()) == []
