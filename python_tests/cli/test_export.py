"""`ddsm convert --from diffusers | latent-diffusion` and `ddsm export --to ...`: their options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers_there import diffusers
from run.test_importing_diffusers import UNET, checkpoint, folder_of
from safetensors.torch import load_file

from ddsm_ext.cli.main import main
from ddsm_ext.run import Run
from ddsm_ext.sampling import Strategy


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one of a U-Net of diffusers."""
    place = tmp_path_factory.mktemp("work")
    source = folder_of(place / "unet", {"_class_name": "DDIMScheduler"})
    arguments = ["convert", str(source), "--from", "diffusers", "--root", str(place / "runs")]
    assert main([*arguments, "--name", "imported", "--set", "sampler.steps=5"]) == 0
    return place / "runs"


def test_a_pipeline_with_a_strategy(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diffusers()
    Strategy((0.5, 1.0), (0.0,)).save(tmp_path / "s.json")
    out = tmp_path / "p"
    arguments = ["export", "--root", str(root), "--to", "diffusers", "--out", str(out)]
    assert main([*arguments, "--strategy", str(tmp_path / "s.json"), "--sampler", "ddpm"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    call = f'import ddsm_ext; DDPMPipeline.from_pretrained("{out}")(num_inference_steps=5)'
    assert call in told.err
    settings = json.loads((out / "unet" / "config.json").read_text())
    assert settings["strategy"]["widths"] == [0.5, 1.0]
    assert settings["schedule"]["timesteps"] == 1000


def test_places_in_the_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diffusers()
    export = Run.open(root).folder / "export"
    for options, place in (
        (["--to", "diffusers", "--width", "0.5"], "diffusers-0.5"),
        (["--to", "state-dict"], "width-1"),
        (["--width", "0.5"], "width-0.5"),
    ):
        assert main(["export", "--root", str(root), *options]) == 0
        assert capsys.readouterr().out == f"{export / place}\n"
    unet = diffusers().UNet2DModel.from_pretrained(export / "diffusers-0.5" / "unet")
    state = load_file(export / "width-0.5" / "model.safetensors")
    assert torch.equal(unet.conv_in.weight, state["head.weight"])
    assert len(load_file(export / "width-1" / "model.safetensors")["head.weight"]) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "need --width, or --to and other code's name"),
        (["--to", "onxx"], "--to is 'onxx'; need one of 'state-dict'"),
        (["--to", "guided-diffusion", "--width", "0.5"], "--width is of no use with --to guided"),
        (["--to", "diffusers", "--width", "0.5", "--strategy", "1"], "got width 0.5 and strategy"),
        (["--to", "onnx", "--strategy", "0.5"], "--strategy is of no use with --to onnx"),
        (["--width", "0.5", "--sampler", "ddim"], "--sampler is of no use with --to state-dict"),
        (["--to", "onnx", "--out", "net.bin"], "need a name that ends in .onnx"),
        (["--to", "diffusers", "--sampler", "heun"], "sampler.kind is 'heun'; need one whose"),
        (["--to", "diffusers", "--width", "2"], "width is 2; need 0 < width <= 1"),
        (["--to", "diffusers", "--autoencoder", "none"], "none: no such folder"),
    ],
)
def test_options_that_are_refused(
    root: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "diffusers" in options:
        diffusers()
    before = sorted(root.rglob("*"))
    assert main(["export", "--root", str(root), *options]) == 2
    assert message in capsys.readouterr().err
    assert [path for path in sorted(root.rglob("*")) if path not in before] == []


def test_latent_diffusion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(checkpoint(tmp_path))
    (tmp_path / "unet.json").write_text(json.dumps(UNET))
    arguments = ["convert", source, "--from", "latent-diffusion", "--root", str(tmp_path / "runs")]
    assert main(arguments) == 2
    assert "need --flags, the model's configuration" in capsys.readouterr().err
    assert main([*arguments, "--flags", str(tmp_path / "unet.json")]) == 0
    assert Run.open(tmp_path / "runs").config.diffusion.schedule == "scaled_linear"


def test_what_convert_takes_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(folder_of(tmp_path / "unet"))
    for arguments, message in (
        ([str(tmp_path / "none"), "--from", "diffusers"], "no such folder; need one of diffusers"),
        ([source, "--from", "diffusers", "--flags", "x"], "--flags is of no use for"),
        ([source], "unet: is a folder; need a file, or --from diffusers for a folder of it"),
        ([source, "--from", "diffuser"], "--from is 'diffuser'; need one of 'ddsm', "),
        ([str(tmp_path / "none")], "no such file; need an official .pt or search.txt"),
    ):
        assert main(["convert", *arguments]) == 2
        assert message in capsys.readouterr().err
