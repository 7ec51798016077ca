"""`ddsm encode`, and the commands that follow it, on latents of digits."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli.commands import TINY, sets
from data.made_autoencoders import save_autoencoder
from data.made_latents import write_photos

from ddsm_ext.cli.main import main
from ddsm_ext.data.latents import LatentManifest
from ddsm_ext.data.sample_archive import read_sample_archive

SMALL = [*TINY, "model.ch_mult=1,2", "model.attn=[]", "search.budget_macs=0.9"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two autoencoders, and latents of the first."""
    folder = tmp_path_factory.mktemp("work")
    save_autoencoder(folder / "kl", "kl")
    save_autoencoder(folder / "vq", "vq")
    assert main(line(folder, "latents", "--scale", "std")) == 0
    return folder


def line(work: Path, out: str, *more: str, autoencoder: str = "kl", data: str = "digits"):
    where = ["--autoencoder", str(work / autoencoder), "--out", str(work / out)]
    return ["encode", "--data", data, *where, *sets(["data.limit=100"]), *more]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence of a command that is refused."""
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_what_is_written_and_said(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command finds nothing to do."""
    manifest = LatentManifest.of_archive(work / "latents")
    assert (manifest.images.count, manifest.images.name, manifest.flips) == (100, "digits", False)
    assert manifest.deviation * manifest.codec.scale == pytest.approx(1.0)
    before = {p: p.stat().st_mtime_ns for p in (work / "latents").glob("*.safetensors")}
    assert main(line(work, "latents", "--scale", "std")) == 0
    found = capsys.readouterr()
    assert found.out.strip() == str(work / "latents")
    assert "100 latents of 2x4x4" in found.err
    assert "standard deviation is 1\n" in found.err
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_dry_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line(work, "none", "--flips", "-n", autoencoder="vq")) == 0
    text = capsys.readouterr().out
    assert "100 images of 1x8x8: latents of 3x4x4, and of the mirrored ones" in text
    assert "million MACs an image:" in text
    assert "disk: about 0 MB" in text
    assert "time: about" in text
    assert json.loads(text[: text.index("\n}\n") + 3])["codec"]["kind"] == "vq"
    assert not (work / "none").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--scale", "0"], "--scale is '0'; need std, or a number from 1e-6 to 1e6"),
        (["--scale", "much"], "--scale is 'much'; need std, or a number"),
        (["--scale", "nan"], "--scale is 'nan'; need std"),
        (["--shift", "nan"], "--shift is nan; need a number"),
        (["--dtype", "int8"], "--dtype is 'int8'; need one of 'float32', 'float16'"),
        (["--batch-size", "0"], "--batch-size is 0; need a whole number"),
        (["--shard-images", "-1"], "--shard-images is -1; need a whole number"),
        (["--set", "train.steps=1"], "--set train: images alone are encoded"),
        (["--set", "data.image_size=7"], "takes sides that are multiples of 2, got images of 7x7"),
        (["--set", "data.channels=3"], "takes images of 1 channels, got 3"),
        (["--set", "data.limt=3"], "unknown key 'limt'; did you mean limit?"),
        (["--device", "tpu"], "--device is 'tpu'; need auto, cpu, cuda or cuda:N"),
        (["--flip"], "unknown option --flip; did you mean --flips?"),
    ],
)
def test_what_is_refused(
    more: list[str], sentence: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(line(work, "refused", *more), capsys)
    assert not (work / "refused").exists()


def test_what_is_not_there_or_something_else(
    work: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no such folder" in refused(line(work, "x", autoencoder="none"), capsys)
    assert "no such file or folder" in refused(line(work, "x", data=str(work / "none")), capsys)
    latents = str(work / "latents")
    assert "holds latents of images" in refused(line(work, "x", data=latents), capsys)
    assert ", and no latents; need a new folder" in refused(line(work, "kl"), capsys)
    shutil.copytree(latents, tmp_path / "latents")
    own = line(tmp_path, "latents", "--flips")
    own[own.index("--autoencoder") + 1] = str(work / "kl")
    assert "flips False, now it is True; need another folder" in refused(own, capsys)
    (tmp_path / "file").write_text("")
    assert "which is there and no folder" in refused(line(tmp_path, "file"), capsys)
    assert "holds latents of images" in refused(
        ["classifier", "--data", latents, "--out", str(tmp_path / "c.safetensors")], capsys
    )


def test_a_scale_that_is_far_off_is_said(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line(work, "scaled", "--scale", "0.01")) == 0
    assert "have the standard deviation 0.00" in capsys.readouterr().err
    assert main(line(work, "scaled", "--scale", "std")) == 0
    assert "need about 1" not in capsys.readouterr().err


def test_without_diffusers_the_command_that_installs_it_is_said(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "diffusers" else find(name)
    )
    said = "diffusers is not installed; need the extra: pip install 'ddsm_ext[diffusers]'"
    assert f"ddsm encode: {said}" in refused(line(work, "x"), capsys)
    train = ["train", "--data", str(work / "latents"), "--root", str(work / "none"), *sets(SMALL)]
    assert f"a run of latents: {said}" in refused(train, capsys)
    assert not (work / "x").exists()
    assert not list((work / "none").glob("*"))


_STOPPED = """
import os, sys
from ddsm_ext.cli.main import main
from ddsm_ext.data import encoding

written, left = encoding._written, [int(sys.argv[1])]

def stopping(*arguments):
    shard = written(*arguments)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), int(sys.argv[2]))
    return shard

encoding._written = stopping
sys.exit(main(sys.argv[3:]))
"""


def stopped(words: list[str], shards: int, number: int, cwd: Path) -> tuple[int, str]:
    """Run a command that gets a signal after it wrote so many shards; its code and what it said."""
    command = [sys.executable, "-c", _STOPPED, str(shards), str(number), *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    return result.returncode, result.stderr


def test_killed_and_interrupted_the_same_command_goes_on(work: Path, tmp_path: Path) -> None:
    """To the archive of a command that nothing disturbed, bit for bit."""
    photos, out = write_photos(tmp_path / "photos", 40), tmp_path / "latents"
    words = ["encode", "--data", str(photos), "--autoencoder", str(work / "kl")]
    words += ["--shard-images", "8", "--batch-size", "3", "--out"]

    def done() -> int:
        return sum(s is not None for s in LatentManifest.load(out / "latents.json").shards)

    assert stopped([*words, str(out)], 2, signal.SIGKILL, tmp_path)[0] == -signal.SIGKILL
    assert done() == 1  # the second one was not recorded yet
    code, error = stopped([*words, str(out)], 2, signal.SIGINT, tmp_path)
    assert (code, done()) == (130, 3)
    assert "stopped at 24 of 40 images; the same command continues" in error
    assert main([*words, str(out)]) == 0
    whole = tmp_path / "whole"
    assert main([*words, str(whole)]) == 0
    names = sorted(path.name for path in whole.iterdir() if path.name != ".lock")
    assert names == sorted(path.name for path in out.iterdir() if path.name != ".lock")
    assert all((whole / name).read_bytes() == (out / name).read_bytes() for name in names)


def test_from_latents_to_the_report(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path / "runs")]
    train = ["train", "--data", str(work / "latents"), *root, *sets(SMALL)]
    assert main([*train, "-n"]) == 0
    assert '"source": ' in capsys.readouterr().out
    assert main(train) == 0
    run = Path(capsys.readouterr().out.strip())
    assert main(train) == 0
    assert f"continuing {run}" in capsys.readouterr().err
    npz = str(tmp_path / "samples.npz")
    assert main(["sample", *root, "--seeds", "0-4", "--npz", npz]) == 0
    assert "million MACs an image" in capsys.readouterr().err
    assert read_sample_archive(npz).images.shape == (5, 8, 8, 1)
    assert main(["sample", *root, "--seeds", "0-4", "-n"]) == 0
    text = capsys.readouterr().out
    assert "decoder: " in text
    assert "steps of the full width; " in text
    assert main(["search", *root, "-n"]) == 0
    assert "decoder: " in capsys.readouterr().out
    sentence = refused(["search", *root, "--budget-macs", "0.01"], capsys)
    assert "decoding alone takes" in sentence
    assert main(["search", *root]) == 0
    assert main(["eval", *root, "-n"]) == 0
    assert "decoder: " in capsys.readouterr().out
    assert main(["eval", *root]) == 0
    assert json.loads(capsys.readouterr().out)["reference"]["name"] == "digits"
    images = write_photos(tmp_path / "photos", 4, classes=0)
    assert main(["eval", *root, "--images", str(images)]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    assert main(["report", *root]) == 0
    assert "Decoder: " in (run / "report.html").read_text()
    assert np.isfinite(json.loads((run / "metrics.json").read_text())["rows"][0]["frechet"])
