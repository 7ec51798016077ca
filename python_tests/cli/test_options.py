"""Options shared by the commands: seeds, devices, and what a run lets one change."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from ddsm_ext.cli import options
from ddsm_ext.run.config import configure
from ddsm_ext.run.folder import create_run
from ddsm_ext.run.scoring import seeds_text
from ddsm_ext.settings import shown


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("7", [7]), ("0-3", [0, 1, 2, 3]), ("0-1,9,4-5", [0, 1, 9, 4, 5]), ("3-3", [3])],
)
def test_seeds_read_and_print(text: str, seeds: list[int]) -> None:
    assert options.parse_seeds(text) == seeds
    assert options.parse_seeds(seeds_text(seeds)) == seeds


@pytest.mark.parametrize(
    "text",
    ["", "-", "-1", "5-2", "1,,2", "a", "0-", "0-99999999999", "1e3", "9" * 5000, "0-" + "9" * 5000,
     str(2**63)],
)  # fmt: skip
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


def test_a_run_that_keeps_no_notes_is_used_all_the_same(folder: Path) -> None:
    """As on a read-only disk; a folder in the file's place is refused to everyone, root too."""
    (folder / "commands.jsonl").mkdir()
    with pytest.warns(UserWarning, match="keeps no note of this command: Is a directory"):
        options.note_command(folder)


@pytest.mark.parametrize("name", ["new", "new/below", "there", "made.png"])
def test_outputs_that_can_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "made.png").touch()
    options.check_output("--out", str(tmp_path / name), folder=not name.endswith("png"))
    options.check_output("--out", None)


@pytest.mark.parametrize(
    ("name", "is_folder", "expected"),
    [
        ("file", True, "is there and no folder"),
        ("there", False, "is there and no file"),
        ("pipe", False, "is there and no file"),
        ("file/below", True, "in a place that can be written to"),
        ("file/below", False, "in a place that can be written to"),
    ],
)
def test_outputs_in_the_way_of_others_are_refused(
    name: str, is_folder: bool, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    os.mkfifo(tmp_path / "pipe")  # such as /dev/null, which no file may replace
    with pytest.raises(ValueError, match=f"--out is .*{expected}"):
        options.check_output("--out", str(tmp_path / name), folder=is_folder)


def test_names_of_another_ending_are_refused(tmp_path: Path) -> None:
    options.check_output("--out", str(tmp_path / "a.npz"), suffix=".npz")
    with pytest.raises(ValueError, match=r"--out is .*; need a name that ends in \.npz"):
        options.check_output("--out", str(tmp_path / "a"), suffix=".npz")


@pytest.mark.parametrize("value", [0, -1, 9, 10**5000], ids=shown)
def test_counts_have_an_end(value: int) -> None:
    options.check_count("--batch", 8, 8)
    options.check_count("--batch", None, 8)
    with pytest.raises(ValueError, match=r"--batch is .*; need a whole number from 1 to 8"):
        options.check_count("--batch", value, 8)
