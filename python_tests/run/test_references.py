"""Statistics of the real images: kept for the next command, and of held-out images beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ddsm_ext.data.dataset import ImageDataset
from ddsm_ext.data.images import save_png
from ddsm_ext.eval.distances import frechet_distance, squared_mmd
from ddsm_ext.eval.metrics import reference_statistics
from ddsm_ext.eval.statistics import save_statistics
from ddsm_ext.run import RunConfig, configure
from ddsm_ext.run.images import load_images
from ddsm_ext.run.references import LEAST_IMAGES, held_out_for, reference_for
from ddsm_ext.run.scoring import Scorer, score_folder


class Means:
    """Mean of each channel: moments that numpy knows; counts the images that it has seen."""

    name, dim, digest = "means", 3, "00" * 32

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Any) -> torch.Tensor:
        self.seen += len(images)
        return torch.as_tensor(images).float().mean(dim=(2, 3))


def records(count: int, seed: int) -> bytes:
    """CIFAR-10 records: a label, then the pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
    pixels[:, 1:] //= rng.integers(1, 4, (count, 1), dtype=np.uint8)  # darker and brighter ones
    pixels[:, 0] %= 10
    return pixels.tobytes()


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar")
    (folder / "data_batch_1.bin").write_bytes(records(LEAST_IMAGES, 0))
    (folder / "test_batch.bin").write_bytes(records(300, 1))
    return folder


def config_of(folder: Path, **data: Any) -> RunConfig:
    return configure("cifar10", data={"source": str(folder), **data})


def rows_of(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float64).mean(axis=(2, 3))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(a.mean(axis=0), np.cov(a.T), b.mean(axis=0), np.cov(b.T))


def test_statistics_are_kept_for_the_next_command(cifar: Path, tmp_path: Path) -> None:
    config, extractor = config_of(cifar, limit=700), Means()
    dataset = load_images(config)
    told: list[Any] = []
    first = reference_for(config, extractor, dataset, tmp_path, lambda *how: told.append(how))
    assert (extractor.seen, first.n) == (700, 700)
    assert [how[1:3] for how in told] == [(512, 700), (700, 700)]
    again = reference_for(config, extractor, dataset, tmp_path)
    assert extractor.seen == 700
    assert np.array_equal(again.mu, first.mu)
    assert np.array_equal(again.rows, first.rows)
    assert again.rows_drawn == first.rows_drawn

    (kept,) = (tmp_path / "statistics").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    reference_for(config, extractor, dataset, tmp_path)  # a damaged one is made again
    assert extractor.seen == 1400
    other = load_images(config_of(cifar, limit=600))
    assert reference_for(config, extractor, other, tmp_path).n == 600
    assert reference_for(config, extractor, dataset).n == 700  # without a folder nothing is kept
    assert len(list((tmp_path / "statistics").iterdir())) == 2


def test_held_out_images_are_those_that_training_left_out(cifar: Path) -> None:
    config, extractor = config_of(cifar), Means()
    dataset = load_images(config)
    statistics = held_out_for(config, extractor, dataset)
    left_out = load_images(config_of(cifar, split="test")).images
    assert statistics.n == len(left_out) == 300
    assert np.allclose(statistics.mu, rows_of(left_out).mean(axis=0))


@pytest.mark.parametrize(
    "data", [{"split": "all"}, {"split": "test"}, {"limit": LEAST_IMAGES - 1}, {"source": "digits"}]
)
def test_without_held_out_images_or_with_few_there_are_none(cifar: Path, data: Any) -> None:
    config = config_of(cifar, **data)
    assert held_out_for(config, Means(), load_images(config)) is None


def test_a_missing_test_batch_is_told(cifar: Path, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "data_batch_1.bin").symlink_to(cifar / "data_batch_1.bin")
    config = config_of(tmp_path)
    with caplog.at_level("INFO"):
        assert held_out_for(config, Means(), load_images(config)) is None
    assert "no distance to held-out images" in caplog.text


@pytest.mark.parametrize("count", [1, 5])
def test_a_few_held_out_images_are_told_and_not_scored(
    count: int, cifar: Path, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "data_batch_1.bin").symlink_to(cifar / "data_batch_1.bin")
    (tmp_path / "test_batch.bin").write_bytes(records(count, 1))
    config = config_of(tmp_path)
    with caplog.at_level("INFO"):
        assert held_out_for(config, Means(), load_images(config)) is None
    assert f"no distance to held-out images: there are {count}, 3 features need 6" in caplog.text


def test_a_reference_of_other_features_is_refused_before_a_score(
    cifar: Path, tmp_path: Path
) -> None:
    config = config_of(cifar, limit=50)
    dataset, other = load_images(config), Means()
    other.digest = "11" * 32
    file = save_statistics(tmp_path / "ref.npz", reference_statistics(dataset.images, other))
    scored = replace(config, eval=replace(config.eval, reference=str(file)))
    assert reference_for(scored, other, dataset).n == 50
    with pytest.raises(ValueError, match=r"ref\.npz: .*need statistics of the same extractor"):
        reference_for(scored, Means(), dataset)


def test_a_data_set_of_one_image_is_named(cifar: Path) -> None:
    config = config_of(cifar, limit=1)
    dataset = load_images(config)
    with pytest.raises(ValueError, match=f"{dataset.name}: holds 1 image; need at least 2"):
        reference_for(config, Means(), dataset)


def test_a_folder_of_one_image_is_named(cifar: Path, tmp_path: Path) -> None:
    config = config_of(cifar, limit=400)
    scorer = scorer_of(config, load_images(config))
    save_png(tmp_path / "one" / "a.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="one: holds 1 image; need at least 2 to score"):
        score_folder(scorer, str(tmp_path / "one"))


def test_a_folder_called_digits_is_scored_itself(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(cifar, limit=400)
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        save_png(Path("digits") / f"{number}.png", pixels)
    scorer = scorer_of(config, load_images(config))
    monkeypatch.setattr(scorer, "context", lambda: {"sampler": None})
    assert score_folder(scorer, "digits")["images"] == 4


def scorer_of(config: RunConfig, dataset: ImageDataset) -> Scorer:
    sampler: Any = SimpleNamespace(config=config, progress=None)
    reference = reference_for(config, Means(), dataset)
    return Scorer(sampler, Means(), reference, dataset, "cifar")


def test_a_score_has_a_held_out_column_where_there_are_such_images(cifar: Path) -> None:
    config = config_of(cifar)
    dataset = load_images(config)
    test = load_images(config_of(cifar, split="test"))
    samples = torch.from_numpy(dataset.images[:200])
    row = scorer_of(config, dataset).distances(samples)
    rows = rows_of(dataset.images[:200])
    assert row["frechet"] == pytest.approx(distance(rows, rows_of(dataset.images)), rel=1e-4)
    assert row["frechet_held_out"] == pytest.approx(distance(rows, rows_of(test.images)), rel=1e-4)
    assert row["images_held_out"] == 300
    json.dumps(row, allow_nan=False)
    whole = config_of(cifar, split="all")
    assert "frechet_held_out" not in scorer_of(whole, load_images(whole)).distances(samples)


def test_a_search_with_few_samples_ranks_by_the_kernel_distance_to_random_rows(
    cifar: Path,
) -> None:
    config = config_of(cifar)
    dataset = load_images(config)
    order = np.argsort(rows_of(dataset.images).mean(axis=1))  # sorted as classes would be
    scorer = scorer_of(config, replace(dataset, images=dataset.images[order]))
    samples = rows_of(load_images(config_of(cifar, split="test")).images)
    assert scorer.ranking_distance(6).name == "Fréchet distance"
    distance = scorer.ranking_distance(5)
    assert distance.name == "kernel distance"
    # The test images are drawn as the training images are, so nothing but chance is between them.
    expected = squared_mmd(samples, rows_of(dataset.images))
    first = squared_mmd(samples, rows_of(dataset.images[order][:2048]))
    assert abs(distance(samples) - expected) < 0.05 * first
    assert distance(samples) == distance(samples)


def test_too_few_images_for_a_frechet_distance_are_warned_about_once(
    cifar: Path, caplog: Any
) -> None:
    config = config_of(cifar, limit=400)
    dataset = load_images(config)
    scorer = scorer_of(config, dataset)
    scorer.distances(torch.from_numpy(dataset.images[:6]))  # twice the 3 features
    assert not caplog.records
    for _ in range(2):
        scorer.distances(torch.from_numpy(dataset.images[:5]))
    assert [record.name.split(".")[0] for record in caplog.records] == ["ddsm_ext"]
    assert caplog.messages[0].startswith("the Fréchet distance of 5 images with 3 features is bi")
    other = replace(scorer, folder=None)
    other.distances(torch.from_numpy(dataset.images[:5]))
    assert len(caplog.records) == 2


def test_too_few_real_images_are_warned_about_once(cifar: Path, caplog: Any) -> None:
    config = config_of(cifar, limit=5)
    scorer = scorer_of(config, load_images(config))
    images = torch.from_numpy(load_images(config_of(cifar, limit=20)).images)
    for _ in range(2):
        scorer.distances(images)
    (text,) = caplog.messages
    assert text.startswith("the Fréchet distance to 5 real images with 3 features is biased")
    caplog.clear()
    assert replace(scorer).ranking_distance(100).name == "Fréchet distance"  # as a search asks
    assert len(caplog.messages) == 1
