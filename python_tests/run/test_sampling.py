"""Where samples go: a folder for each way of making them, and nothing mixed in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run.test_run import tiny

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset
from ddsm_ext.data.images import read_image
from ddsm_ext.run import Run, configure
from ddsm_ext.run.compose import Sampler, build_network, choose_device
from ddsm_ext.run.config import changed
from ddsm_ext.sampling import SAMPLERS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("sampled"), "tiny", tiny())
    run.train()
    return run


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    shutil.copytree(made.folder, tmp_path / made.folder.name)
    return Run.open(tmp_path)


def test_a_seed_more_goes_to_the_same_folder(run: Run) -> None:
    first = run.sample(range(2))
    second = run.sample([1, 4])
    assert first.folder == second.folder
    assert first.folder.name.startswith("full-width-ddim-3-")
    names = sorted(path.name for path in first.folder.iterdir())
    assert names == [
        "grid.png", "samples.json", "seed-000000.png", "seed-000001.png", "seed-000004.png",
    ]  # fmt: skip
    assert (first.images[1] == second.images[0]).all()
    assert (read_image(first.folder / "seed-000004.png") == second.images[1]).all()
    about = json.loads((first.folder / "samples.json").read_text())
    assert (about["weights"], about["widths"], about["sampler"]["steps"]) == ("ema", [1.0], 3)
    digest = hashlib.sha256()
    for name, tensor in sorted(run.network().state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert about["weights_digest"] == digest.hexdigest()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_run_samples_by_every_sampler(run: Run, kind: str) -> None:
    changes = {"sampler": {"kind": kind, "spacing": "karras"}}
    sampled = Run(run.folder, changed(run.config, changes)).sample([0, 1])
    assert sampled.folder.name.startswith(f"full-width-{kind}-3-")
    assert sampled.images.std() > 0


def test_progress_counts_evaluations_and_not_steps(run: Run) -> None:
    config = changed(run.config, {"sampler": {"kind": "heun"}})
    calls: list[tuple[int, int]] = []
    sampler = Sampler(run.network(), config, choose_device("cpu"), batch_size=2)
    sampler.images(1.0, [0], lambda done, total: calls.append((done, total)))
    assert calls == [(i, 5) for i in range(1, 6)]  # two a step, one in the last of three


def test_the_samplers_own_time_with_a_learned_variance(run: Run) -> None:
    learned = {"sampler": {"kind": "ddpm", "variance": "learned"}}
    with pytest.raises(ValueError, match="a network that predicts none"):
        changed(run.config, learned)
    model = {"family": "adm", "image_size": 8, "ch": 16, "ch_mult": [1], "attn": [],
             "num_res_blocks": 1, "groups": 4, "head_channels": 8}  # fmt: skip
    config = configure(model=model, **learned)
    network = build_network(config, choose_device("cpu"))
    sampler = Sampler(network, config, choose_device("cpu"), batch_size=2)
    assert sampler.overhead_ms(rounds=1) > 0  # by a stand-in with twice the channels


def test_whatever_changes_an_image_changes_the_folder(run: Run) -> None:
    folders = {run.sample([0]).folder, run.sample([0], 0.5).folder}
    folders.add(run.sample([0], weights="model").folder)
    for sampler in ({"eta": 0.5}, {"spacing": "trailing"}, {"clip_denoised": False}):
        folders.add(Run(run.folder, changed(run.config, {"sampler": sampler})).sample([0]).folder)
    run.extend(3)
    run.train()  # other weights
    folders.add(run.sample([0]).folder)
    assert len(folders) == 7
    assert {folder.parent for folder in folders} == {run.folder / "samples"}


def test_a_folder_of_the_users_takes_no_samples_of_other_settings(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run.sample([0], out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"out: holds samples with weights 'ema', now it is 'mod"):
        run.sample([1], weights="model", out=out)
    with pytest.raises(ValueError, match=r"out: holds samples with widths \[1.0\], now .* \[0.5\]"):
        run.sample([1], 0.5, out=out)
    (out / "samples.json").unlink()
    with pytest.raises(ValueError, match=r"out: holds samples without their samples\.json"):
        run.sample([1], out=out)
    del before["samples.json"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_of_samples_holds_as_many_images_as_seeds(run: Run) -> None:
    folder = run.sample(range(3)).folder
    data = load_dataset(DataConfig(source=str(folder), split="all"))
    assert len(data) == 3


def test_one_seed_is_computed_once(run: Run) -> None:
    sampler = Sampler.for_run(run.folder, run.config, choose_device("cpu"), 4, None)
    seen: list[int] = []
    sampler.progress = lambda title, done, *_: seen.append(done)
    started = sampler.pictures

    def counted(*args: Any) -> torch.Tensor:
        seen.append(0)
        return started(*args)

    sampler.pictures = counted  # type: ignore[method-assign]
    sampler.timed_images(run.strategy, [7], "one")
    assert seen.count(0) == 1
    assert max(seen) == 3
