"""Extractors by name, on images as they come from a data set or a sampler."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from eval.digits import digits_arrays

from ddsm_ext.eval.classifier import (
    ClassifierConfig,
    save_classifier,
    train_classifier,
)
from ddsm_ext.eval.features import DIGITS_CLASSIFIER_FILE, make_extractor


def test_digits_classifier_by_name() -> None:
    images, _ = digits_arrays()
    extractor = make_extractor("digits-classifier")
    features = extractor(images)
    assert features.shape == (1797, extractor.dim)
    assert features.dtype == torch.float32
    assert extractor.name == "digits-classifier"
    assert extractor.digest == hashlib.sha256(DIGITS_CLASSIFIER_FILE.read_bytes()).hexdigest()
    assert extractor.held_out_accuracy >= 0.97
    assert not features.requires_grad
    # A row depends on its own image; only the last bits may know the batch.
    alone = torch.cat([extractor(images[i : i + 1]) for i in (0, 600, 1796)])
    assert torch.allclose(alone, features[[0, 600, 1796]], rtol=1e-5, atol=1e-5)
    assert torch.equal(extractor(torch.from_numpy(images)), features)
    assert extractor(images[:0]).shape == (0, extractor.dim)


def test_own_classifier_by_path(tmp_path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 8, 8)).astype(np.uint8)
    config = ClassifierConfig(
        image_size=8, image_channels=3, classes=2, channels=4, features=6, epochs=1
    )
    trained = train_classifier(images, np.arange(40) % 2, data_name="noise", config=config)
    digest = save_classifier(trained, tmp_path / "own.safetensors")
    extractor = make_extractor(f"classifier:{tmp_path / 'own.safetensors'}")
    assert extractor.name == f"classifier-noise-{digest[:8]}"
    assert (extractor.dim, extractor.digest) == (6, digest)
    with pytest.raises(ValueError, match=r"\[N, 3, 8, 8\]"):
        extractor(images[:, :1])


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8), TypeError, "data.to_uint8"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), ValueError, r"\[N, C, H, W\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ValueError, r"\[N, 1, 8, 8\]"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), ValueError, "trained on"),
    ],
)
def test_wrong_images_are_named(images, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make_extractor("digits-classifier")(images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit-classifier", "did you mean digits-classifier"),
        ("inceptoin:x", "did you mean inception:<path>"),
        ("classifier", "need one of"),
        ("", "need one of"),
        ("digits-classifier:x", "need one of"),
    ],
)
def test_unknown_names_are_answered(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_extractor(name)


def test_missing_classifier_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        make_extractor(f"classifier:{tmp_path / 'absent.safetensors'}")
