"""Options shared by the commands: seeds, devices, and what a run lets one change."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ddsm_ext.cli import options
from ddsm_ext.run.config import configure
from ddsm_ext.run.folder import create_run
from ddsm_ext.run.scoring import seeds_text


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("7", [7]), ("0-3", [0, 1, 2, 3]), ("0-1,9,4-5", [0, 1, 9, 4, 5]), ("3-3", [3])],
)
def test_seeds_read_and_print(text: str, seeds: list[int]) -> None:
    assert options.parse_seeds(text) == seeds
    assert options.parse_seeds(seeds_text(seeds)) == seeds


@pytest.mark.parametrize("text", ["", "-", "-1", "5-2", "1,,2", "a", "0-", "0-99999999999", "1e3"])
def test_bad_seeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--seeds is .*; need"):
        options.parse_seeds(text)


def arguments(**values: object) -> argparse.Namespace:
    return argparse.Namespace(**{"set": [], "config": None, **values})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return create_run(tmp_path, "x", configure("digits").to_dict())


def test_the_sampler_of_a_run_can_be_changed(folder: Path) -> None:
    config = options.run_settings(folder, arguments(sampler="ddpm", steps=7))
    assert (config.sampler.kind, config.sampler.steps) == ("ddpm", 7)


def test_the_sampler_ddpm_takes_back_the_eta_of_the_run_alone(tmp_path: Path) -> None:
    made = configure("digits", sampler={"kind": "ddim", "eta": 0.5})
    folder = create_run(tmp_path, "noisy", made.to_dict())
    config = options.run_settings(folder, arguments(sampler="ddpm"))
    assert (config.sampler.kind, config.sampler.eta) == ("ddpm", 0.0)
    assert options.run_settings(folder, arguments(steps=7)).sampler.eta == 0.5
    with pytest.raises(ValueError, match="eta"):
        options.run_settings(folder, arguments(sampler="ddpm", set=["sampler.eta=0.5"]))


@pytest.mark.parametrize("setting", ["model.ch=64", "diffusion.schedule=linear"])
def test_what_the_weights_depend_on_cannot(folder: Path, setting: str) -> None:
    with pytest.raises(ValueError, match="which the weights"):
        options.run_settings(folder, arguments(set=[setting]))
