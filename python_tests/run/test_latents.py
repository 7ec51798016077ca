"""A run of latents from archive to report: decoding everywhere, in costs and budgets too."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.made_autoencoders import save_autoencoder

from ddsm_ext.data.codec import Codec
from ddsm_ext.data.config import CodecConfig, DataConfig
from ddsm_ext.data.encoding import EncodeOptions, encode
from ddsm_ext.data.images import read_image
from ddsm_ext.data.latents import MANIFEST, LatentManifest
from ddsm_ext.data.sample_archive import write_sample_archive
from ddsm_ext.data.stream import ImageStream
from ddsm_ext.graph import macs
from ddsm_ext.run import Run, configure
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.costs import estimate_sampling, estimate_scores, estimate_search
from ddsm_ext.run.searching import sensitivity_of
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.cost import CostTable
from ddsm_ext.search.front import Front
from ddsm_ext.settings import Refusal

SECTIONS: dict[str, dict[str, Any]] = {
    "model": {"ch": 8, "groups": 4, "ch_mult": [1, 2], "attn": [], "widths": [1.0, 0.5],
              "num_res_blocks": 1},
    "diffusion": {"schedule": "cosine", "timesteps": 50},
    "train": {"steps": 4, "batch_size": 8, "checkpoint_every": 3, "ema_decay": 0.9},
    "sampler": {"kind": "ddim", "steps": 4},
    "search": {"pool": 4, "population": 4, "generations": 2, "samples": 8, "most_samples": 8,
               "finalists": 1, "final_samples": 8},
    "eval": {"images": 24, "ranges": 1, "batch_size": 16, "features": "digits-classifier"},
}  # fmt: skip


def made(root: Path, kind: str, source: str = "digits", count: int = 120) -> Path:
    """An autoencoder and an archive of latents of digits beside it."""
    save_autoencoder(root / "autoencoder", kind)
    codec = Codec.load(root / "autoencoder")
    stream = ImageStream.open(DataConfig(source=source, limit=count))
    encode(stream, codec, root / "latents", EncodeOptions(flips=True, shard_images=50), scale=0)
    return root / "latents"


@pytest.fixture(scope="module", params=["kl", "vq"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def trained(archive: Path) -> Run:
    run = Run.create(archive.parent / "runs", "of-latents", settings(archive))
    run.train()
    return run


def settings(archive: Path, **changes: dict[str, Any]) -> RunConfig:
    sections = {**SECTIONS, "data": {"source": str(archive)}}
    for name, section in changes.items():
        sections[name] = {**sections.get(name, {}), **section}
    return configure(None, **sections)


@pytest.fixture
def copied(trained: Run, tmp_path: Path) -> Run:
    """The run in a folder of its own."""
    shutil.copytree(trained.folder, tmp_path / "runs" / trained.folder.name)
    return Run.open(tmp_path / "runs")


def test_settings_that_the_archive_decides(archive: Path) -> None:
    config, manifest = settings(archive), LatentManifest.of_archive(archive)
    channels, side, _ = manifest.shape
    assert (config.model.image_channels, config.model.image_size) == (channels, side)
    assert config.codec == manifest.codec
    assert config.codec.decode_macs == Codec.load(archive.parent / "autoencoder").macs(8)[1]
    assert config.sampler.clip_denoised is False  # where nobody says it
    saved = json.loads(json.dumps(config.to_dict()))
    assert RunConfig.from_dict(saved) == config
    given = settings(archive, codec={"batch_size": 2, "scale": 3.0})
    assert given.codec == replace(manifest.codec, batch_size=2, scale=3.0)


@pytest.mark.parametrize(
    ("section", "key", "value", "sentence"),
    [
        ("sampler", "clip_denoised", True, r"sampler\.clip_denoised is True with latents"),
        ("train", "augment", 0.1, r"train\.augment is 0\.1 with latents; need 0"),
        ("data", "limit", 5, r"data\.limit is 5 as the latents .*need it with ddsm encode"),
        ("data", "held_out", 0.1, r"data\.held_out is 0\.1 .*need it with ddsm encode"),
        ("data", "split", "test", r"data\.split is 'test' .*need it with ddsm encode"),
        ("codec", "kind", "mp3", r"kind is 'mp3'; need one of 'pixels', 'kl', 'vq'"),
        ("codec", "digest", None, r"without folder, digest or image_channels"),
        ("codec", "batch_size", 0, r"batch_size is 0"),
        ("codec", "batch_size", 10**9, r"batch_size is 1000000000; need at most"),
    ],
)
def test_what_latents_cannot_have(
    section: str, key: str, value: Any, sentence: str, archive: Path
) -> None:
    with pytest.raises(Refusal, match=sentence):
        settings(archive, **{section: {key: value}})


def test_a_network_of_another_size_is_refused(archive: Path, tmp_path: Path) -> None:
    """Also by a configuration that was put together by hand."""
    right = settings(archive)
    wrong = replace(right, model=replace(right.model, image_size=8))
    for make in (
        lambda: settings(archive, model={"image_size": 8}),
        lambda: Run.create(tmp_path, "x", wrong),
    ):
        with pytest.raises(Refusal, match=r"holds latents of \d channels and 4x4, the network tak"):
            make()


def test_latents_without_their_codec_are_refused(archive: Path, tmp_path: Path) -> None:
    """As of a configuration that was put together by hand."""
    config = replace(settings(archive), codec=CodecConfig())
    with pytest.raises(Refusal, match=r"holds latents, codec\.kind is 'pixels'; need"):
        Run.create(tmp_path, "x", config)


def test_a_network_of_latents_takes_no_images(tmp_path: Path) -> None:
    model = {"image_size": 8, "image_channels": 4}
    config = configure(None, **{**SECTIONS, "model": {**SECTIONS["model"], **model}})
    with pytest.raises(Refusal, match="takes 4 channels, as latents have; need the folder of"):
        Run.create(tmp_path, "x", config)


def test_images_with_a_codec_are_refused(archive: Path, tmp_path: Path) -> None:
    config = settings(archive)
    with pytest.raises(FileNotFoundError, match=MANIFEST):
        Run.create(tmp_path, "x", replace(config, data=DataConfig()))


def test_training_resumes_and_keeps_what_the_latents_are_of(trained: Run, archive: Path) -> None:
    assert (trained.folder / "encoded.json").exists()
    again = Run.create(trained.folder.parent, "of-latents", settings(archive))
    assert (again.folder, again.resumed) == (trained.folder, True)
    assert again.train().finished
    (grid,) = trained.folder.glob("samples/step-000004-w1.0.png")
    assert read_image(grid).shape == (4 * 9 + 1, 4 * 9 + 1, 1)  # 16 decoded images of 8x8


def test_samples_are_decoded(copied: Run, tmp_path: Path) -> None:
    """As the codec decodes what the sampler makes; a seed is an image in any batch."""
    found = copied.sample(range(6), 1.0, batch_size=4)
    assert found.images.shape == (6, 8, 8, 1)
    sampler = copied._sampler(6)
    latents = sampler.images(1.0, list(range(6)))
    assert latents.shape == (6, *sampler.shape)
    wanted = sampler.decoder.decode(latents).permute(0, 2, 3, 1).numpy()
    assert np.abs(found.images.astype(int) - wanted.astype(int)).max() <= 1
    assert np.array_equal(read_image(found.folder / "seed-000003.png"), found.images[3])
    steps = 4 * macs(copied.config.model, 1.0)
    assert found.macs_per_image == steps + copied.config.codec.decode_macs
    write_sample_archive(tmp_path / "samples.npz", found.images)


def test_features_are_those_of_decoded_images(copied: Run) -> None:
    sampler = copied._sampler(4)

    def extractor(images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        assert len(images) <= 4
        return images.float().mean((2, 3))

    found = sampler.features(1.0, list(range(6)), extractor)
    wanted = sampler.pictures(1.0, list(range(6))).float().mean((2, 3))
    assert torch.equal(found, wanted)


def test_search_scores_and_report(copied: Run) -> None:
    """The decoder's cost is part of all costs, and has a line of its own."""
    chosen = copied.search(budget_macs=0.9)
    decode = copied.config.codec.decode_macs
    each = {w: macs(copied.config.model, w) for w in (1.0, 0.5)}
    front = Front.load(copied.folder / "search" / "front.json")
    assert front.full_cost == 4 * each[1.0] + decode
    assert front.constants[1].cost == 4 * each[0.5] + decode
    assert chosen.cost <= 0.9 * front.full_cost
    table = CostTable.load(copied.folder / "search" / "cost_table.json")
    costs = json.loads((copied.folder / "search" / "costs.json").read_text())
    assert table.decoding == costs["decoding"]["ms"] > 0
    assert costs["decoding"]["macs"] == decode

    result = copied.evaluate()
    rows = {row["label"]: row for row in result["rows"]}
    assert rows["full width"]["macs_per_image"] == front.full_cost
    assert rows["width 0.5"]["macs_per_image"] == front.constants[1].cost
    assert result["reference"]["images"] == 120
    text = re.sub(r"\s+", " ", copied.report().read_text())
    share = decode / rows["strategy"]["macs_per_image"]
    assert f"Decoder: {decode / 1e6:.4g} million MACs and" in text
    assert f"{100 * share:.1f} % of the strategy's MACs" in text or share == 0
    assert "images of 8x8, grey" in text
    row = copied.folder / "samples" / "compare" / "row-0.png"  # of real images
    assert read_image(row).shape == (8 + 2, 16 * 9 + 1, 1)


def test_a_budget_that_decoding_exceeds_is_refused(copied: Run) -> None:
    decode, full = copied.config.codec.decode_macs, 4 * macs(copied.config.model, 1.0)
    share = decode / (full + decode)
    sentence = rf"decoding alone takes {decode:.6g} \({share:.4g}\), the cheapest strategy costs"
    with pytest.raises(Refusal, match=sentence):
        copied.search(budget_macs=0.9 * share)
    with pytest.raises(Refusal, match=r"budget is 1e-09 ms .*decoding alone takes"):
        copied.search(budget_ms=1e-9)
    assert not (copied.folder / "search" / "strategy.json").exists()


def test_estimates_count_decoding(archive: Path) -> None:
    config = settings(archive)
    pixels = replace(config, codec=replace(config.codec, decode_macs=0))
    decode, strategy = config.codec.decode_macs, Strategy.constant(0.5)

    def more(estimate: Any, *arguments: Any) -> float:
        return estimate(config, *arguments).macs - estimate(pixels, *arguments).macs

    assert more(estimate_sampling, strategy, 7, 4) == 7 * decode
    assert more(estimate_scores, [strategy, strategy], 7) == 14 * decode
    assert more(estimate_search) == config.search.most_scored_samples() * decode


def test_sensitivity_is_of_latents_and_their_codec(copied: Run) -> None:
    sampler = copied._sampler(8)
    found = sensitivity_of(copied.folder, sampler, copied.dataset, "weights", [1.0, 0.5])
    assert found.conditions["codec"] == copied.config.codec.identity
    assert found.conditions["data"]["digest"] == copied.dataset.digest
    assert (found.errors[:, 1] > 0).all()


def test_the_archive_may_go_and_the_images_may_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples want the autoencoder alone, scores the images too."""
    from sklearn.datasets import load_digits

    from ddsm_ext.data.images import save_png

    for index, image in enumerate(load_digits().images[:40]):
        pixels = np.rint(image * (255 / 16)).astype(np.uint8)[:, :, None]
        save_png(tmp_path / "photos" / f"{index}.png", pixels)
    archive = made(tmp_path, "kl", str(tmp_path / "photos"), 40)
    run = Run.create(tmp_path / "runs", "x", settings(archive))
    run.train()
    shutil.rmtree(archive)
    (tmp_path / "photos").rename(tmp_path / "elsewhere")

    def opened(**changes: dict[str, Any]) -> Run:
        return Run.open(tmp_path / "runs", None, changes)

    assert len(opened().sample([0]).images) == 1
    with pytest.raises(
        FileNotFoundError, match=r"need the images there .*codec\.images.*eval\.ref"
    ):
        opened().evaluate([1.0])
    found = opened(codec={"images": str(tmp_path / "elsewhere")})
    assert found.evaluate([1.0])["reference"]["images"] == 40
    with pytest.raises(FileNotFoundError, match=MANIFEST):
        found.search()
    (tmp_path / "elsewhere" / "0.png").write_bytes((tmp_path / "elsewhere" / "1.png").read_bytes())
    shutil.rmtree(found.folder / "statistics")
    with pytest.warns(UserWarning, match="are not the images that the latents are of"):
        opened(codec={"images": str(tmp_path / "elsewhere")}).evaluate([1.0])


def test_the_autoencoder_may_move_and_no_other_takes_its_place(
    copied: Run, archive: Path, tmp_path: Path
) -> None:
    kind, folder = copied.config.codec.kind, archive.parent / "autoencoder"
    shutil.copytree(folder, tmp_path / "moved")
    save_autoencoder(tmp_path / "other", kind, seed=1)
    root = copied.folder.parent
    before = copied.sample(range(3)).images
    moved = Run.open(root, None, {"codec": {"folder": str(tmp_path / "moved")}})
    assert np.array_equal(moved.sample(range(3), out=tmp_path / "out").images, before)
    with pytest.raises(FileNotFoundError, match=r"no such folder; need that of an autoencoder"):
        Run.open(root, None, {"codec": {"folder": str(tmp_path / "gone")}}).sample([0])
    with pytest.raises(Refusal, match="holds another autoencoder, or a damaged one"):
        Run.open(root, None, {"codec": {"folder": str(tmp_path / "other")}}).sample([0])
    for change in ({"scale": 9.0}, {"kind": "pixels"}, {"digest": "x"}, {"factor": 4}):
        with pytest.raises(Refusal, match="codec is not the one which the weights"):
            Run.open(root, None, {"codec": change})
    # the same command with the autoencoder elsewhere goes on with the run
    config = settings(archive, codec={"folder": str(tmp_path / "moved"), "batch_size": 3})
    assert Run.create(root, "of-latents", config).folder == copied.folder


def test_a_missing_autoencoder_is_refused_before_a_run_is_made(
    archive: Path, tmp_path: Path
) -> None:
    config = settings(archive, codec={"folder": str(tmp_path / "gone")})
    with pytest.raises(FileNotFoundError, match="need that of an autoencoder"):
        Run.create(tmp_path / "runs", "x", config)
    assert not list((tmp_path / "runs").glob("*"))


def test_weights_of_other_latents_are_refused(copied: Run, archive: Path) -> None:
    """A checkpoint knows its autoencoder and how its latents were scaled."""
    path = copied.folder / "config.json"
    content = json.loads(path.read_text())
    del content["digest"]
    content["codec"]["scale"] = 9.0
    path.write_text(json.dumps(content))
    with pytest.raises(Refusal, match=r"was trained with codec\.scale"):
        Run.open(copied.folder.parent).sample([0])


def test_a_tuned_run_has_the_same_codec(copied: Run) -> None:
    tuned = copied.tune(0.5, train={"steps": 2})
    assert tuned.config.codec == copied.config.codec
    assert tuned.sample([0]).images.shape == (1, 8, 8, 1)
    with pytest.raises(Refusal, match="codec is not the one which the weights"):
        copied.tuned(0.5, codec={"scale": 2.0})
