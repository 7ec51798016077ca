"""Latent diffusion whole: photographs, autoencoder, latents, supernet, search, images, scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval.photographs import crops, needs_features
from PIL import Image

from ddsm_ext.data import DataConfig
from ddsm_ext.graph import macs
from ddsm_ext.run import Run, configure
from ddsm_ext.run.autoencoder import (
    AutoencoderResult,
    configure_autoencoder,
    load_autoencoder_images,
    make_autoencoder,
)
from ddsm_ext.run.encoding import EncodeOptions, Encoding

pytest.importorskip("diffusers")
pytestmark = needs_features

SIDE = 32
SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"ch": 32, "groups": 8, "head_channels": 16, "widths": [1.0, 0.5]},
    "train": {"steps": 60, "batch_size": 16, "sample_every": 0, "log_every": 20},
    "sampler": {"steps": 5},
    "search": {
        "pool": 6, "population": 4, "generations": 1, "samples": 32, "most_samples": 32,
        "finalists": 1, "final_samples": 32,
    },
    "eval": {"images": 64, "ranges": 2, "batch_size": 32},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pieces of two real photographs, as PNG files."""
    folder = tmp_path_factory.mktemp("latent")
    (folder / "photos").mkdir()
    for index, pixels in enumerate(crops(400, SIDE, seed=1)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / "photos" / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def autoencoder(folder: Path) -> AutoencoderResult:
    images = load_autoencoder_images(DataConfig(source=str(folder / "photos")))
    changes = {"steps": 120, "batch_size": 8, "block_out_channels": [16, 32], "norm_groups": 8}
    config = configure_autoencoder(SIDE, "small-f2", changes)
    return make_autoencoder(folder / "ae", images, config)


@pytest.fixture(scope="module")
def latents(folder: Path, autoencoder: AutoencoderResult) -> Path:
    data = DataConfig(source=str(folder / "photos"))
    encoding = Encoding.open(data, autoencoder.folder, EncodeOptions(flips=True))
    manifest = encoding.write(folder / "latents")
    assert manifest.deviation * manifest.codec.scale == pytest.approx(1.0, abs=0.05)
    return folder / "latents"


@pytest.fixture(scope="module")
def run(folder: Path, latents: Path) -> Run:
    config = configure("ldm2-cifar10", data={"source": str(latents)}, **SETTINGS)
    run = Run.create(folder / "runs", "latent", config)
    assert run.train().finished
    return run


def test_the_network_learns_what_latents_are(folder: Path, run: Run) -> None:
    """Images of trained weights are nearer to the photographs than those of random ones."""
    config = configure("ldm2-cifar10", data={"source": run.config.data.source}, **{
        **SETTINGS, "train": {**SETTINGS["train"], "steps": 1}})  # fmt: skip
    untrained = Run.create(folder / "runs", "untrained", config)
    untrained.train()
    rows = [each.evaluate([1.0])["rows"][0] for each in (run, untrained)]
    assert rows[0]["kid"] < rows[1]["kid"]
    assert all(np.isfinite(row["kid"]) for row in rows)


def test_a_search_keeps_the_budget_of_whole_images(run: Run) -> None:
    """The MACs of an image are those of its steps and of its decoding."""
    chosen = run.search(budget_macs=0.6)
    samples = run.sample(range(2), chosen.strategy)
    full = run.sample(range(2), 1.0)
    decode = run.config.codec.decode_macs
    assert decode > 0
    assert full.macs_per_image == 5 * macs(run.config.model, 1.0) + decode
    assert samples.macs_per_image <= 0.6 * full.macs_per_image * (1 + 1e-9)


def test_samples_are_images_of_the_photographs_size(run: Run) -> None:
    samples = run.sample(range(3, 7), 0.5)
    assert samples.images.shape == (4, SIDE, SIDE, 3)
    assert samples.images.dtype == np.uint8
    assert samples.images.std() > 1
    with Image.open(samples.folder / "seed-000003.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), samples.images[0])
    again = run.sample([5], 0.5, out=run.folder / "again")  # a seed is an image
    difference = np.abs(again.images[0].astype(int) - samples.images[2].astype(int))
    assert (difference > 0).mean() < 0.01


def test_the_report_tells_what_decoding_takes(run: Run) -> None:
    run.evaluate()
    rows = json.loads((run.folder / "metrics.json").read_text())["rows"]
    whole = 5 * macs(run.config.model, 1.0) + run.config.codec.decode_macs
    assert max(row["macs_per_image"] for row in rows) == whole
    assert "decoder" in run.report().read_text()
