"""Scores: right quantities, right names, and what they depend on beside them."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from eval.digits import digits_arrays

from ddsm_ext.eval.distances import enough_images, frechet_distance, squared_mmd
from ddsm_ext.eval.features import make_extractor
from ddsm_ext.eval.metrics import (
    check_reference,
    evaluate,
    frechet_to_reference,
    reference_statistics,
    score_names,
)
from ddsm_ext.eval.statistics import ReferenceStatistics, load_statistics, save_statistics


class Pixels:
    """Raw pixels as features: their moments are known from numpy alone."""

    name, dim, digest = "pixels", 64, "00" * 32

    def __call__(self, images) -> torch.Tensor:
        return torch.as_tensor(images).flatten(1).float()


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return digits_arrays()[0]


def batches(images: np.ndarray, size: int) -> list[np.ndarray]:
    return [images[i : i + size] for i in range(0, len(images), size)]


def test_scores_of_pixels_agree_with_numpy(digits: np.ndarray) -> None:
    first, second = digits[:900], digits[900:]
    reference = reference_statistics(batches(second, 100), Pixels())
    got = evaluate(batches(first, 77), reference, Pixels(), kid_subset_size=200, kid_subsets=3)
    flat = [x.reshape(len(x), 64).astype(float) for x in (first, second)]
    expected = frechet_distance(
        flat[0].mean(axis=0), np.cov(flat[0].T), flat[1].mean(axis=0), np.cov(flat[1].T)
    )
    # Corner pixels never vary: the root of a singular matrix turns 1e-16 into 1e-8.
    assert got["frechet_distance"] == pytest.approx(expected, rel=1e-7)
    assert frechet_to_reference(first, reference, Pixels()) == pytest.approx(expected, rel=1e-7)
    assert (got["n_images"], got["n_reference"]) == (900, 897)
    assert (got["features"], got["features_digest"], got["seed"]) == ("pixels", "00" * 32, 2020)
    assert (got["kid_subsets"], got["kid_subset_size"]) == (3, 200)
    json.dumps(got, allow_nan=False)


def test_score_does_not_depend_on_the_batch_size(digits: np.ndarray) -> None:
    extractor = make_extractor("digits-classifier")
    reference = reference_statistics(digits[:900], extractor)
    scores = [
        frechet_to_reference(batches(digits[900:], n), reference, extractor) for n in (1797, 100)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_more_noise_scores_worse(digits: np.ndarray) -> None:
    extractor = make_extractor("digits-classifier")
    reference = reference_statistics(digits[:900], extractor)
    rng = np.random.default_rng(0)
    scores = []
    for level in (0, 30, 80, 200):
        noisy = digits[900:] + rng.normal(0, level, digits[900:].shape)
        images = noisy.round().clip(0, 255).astype(np.uint8)
        scores.append(evaluate(images, reference, extractor, kid_subsets=5))
    for key in ("frechet_distance", "kernel_distance"):
        values = [score[key] for score in scores]
        assert values == sorted(values)
        assert values[-1] > 5 * values[0]


def test_a_small_set_lowers_the_subset_size(digits: np.ndarray) -> None:
    reference = reference_statistics(digits[:300], Pixels())
    got = evaluate(digits[:50], reference, Pixels(), kid_subsets=2)
    assert got["kid_subset_size"] == 50


def test_without_reference_rows_there_is_no_kernel_distance(tmp_path, digits: np.ndarray) -> None:
    reference = reference_statistics(digits[:300], Pixels(), keep_rows=0)
    bare = ReferenceStatistics(reference.mu, reference.sigma)
    got = evaluate(digits[300:600], bare, Pixels())
    assert got["kernel_distance"] is None
    assert got["n_reference"] is None
    saved = load_statistics(save_statistics(tmp_path / "r.npz", reference))
    assert evaluate(digits[300:600], saved, Pixels())["frechet_distance"] == got["frechet_distance"]


def test_kept_rows_are_those_of_images_and_say_how_they_were_drawn(digits: np.ndarray) -> None:
    reference = reference_statistics(batches(digits[:300], 70), Pixels(), keep_rows=100)
    assert reference.n == 300
    assert reference.rows.shape == (100, 64)
    assert reference.rows_drawn == "reservoir, seed 0"
    images = {row.tobytes() for row in Pixels()(digits[:300]).numpy()}
    assert {row.tobytes() for row in reference.rows} <= images


def test_sorted_images_have_the_kernel_distance_of_shuffled_ones(digits: np.ndarray) -> None:
    """A folder is read class by class: its first images are of a few classes."""
    _, labels = digits_arrays()
    by_class = digits[np.argsort(labels, kind="stable")]
    order = np.random.default_rng(0).permutation(len(digits))
    samples, rest = digits[order[:500]], np.sort(order[500:])
    real = {
        "shuffled": digits[order[500:]],
        "sorted": by_class[np.isin(np.argsort(labels, kind="stable"), rest)],
    }
    extractor = make_extractor("digits-classifier")

    def distance(images: np.ndarray, **options: int) -> float:
        reference = reference_statistics(batches(images, 128), extractor, **options)
        return squared_mmd(extractor(samples), reference.rows)

    found = {name: distance(images, keep_rows=300) for name, images in real.items()}
    first = distance(real["sorted"][:300])  # what earlier versions compared with
    # the spread of the distance over other shuffles of the same images
    others = [
        distance(np.random.default_rng(k).permutation(real["shuffled"])[:300]) for k in range(8)
    ]
    assert abs(found["sorted"] - found["shuffled"]) < 4 * np.std(others)
    assert first > np.mean(others) + 20 * np.std(others)


def test_the_distance_to_held_out_images_stands_beside_the_other(digits: np.ndarray) -> None:
    training, held_out, samples = digits[:800], digits[800:1300], digits[1300:]
    references = [reference_statistics(images, Pixels()) for images in (training, held_out)]
    got = evaluate(samples, references[0], Pixels(), held_out=references[1])
    assert got["frechet_distance"] == frechet_to_reference(samples, references[0], Pixels())
    assert got["frechet_distance_held_out"] == frechet_to_reference(
        samples, references[1], Pixels()
    )
    # images learnt by heart are nearer to those that were learnt
    learnt = evaluate(training, references[0], Pixels(), held_out=references[1])
    assert learnt["frechet_distance"] < 1e-3 < learnt["frechet_distance_held_out"]
    assert "frechet_distance_held_out" not in evaluate(samples, references[0], Pixels())
    other = ReferenceStatistics(np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="same extractor"):
        evaluate(samples, references[0], Pixels(), held_out=other)


def test_few_images_bias_the_frechet_distance_and_leave_the_kernel_distance() -> None:
    """Equal Gaussians have the distance 0; with fewer images than features it is far from that."""
    dim = 200

    class Rows:
        name, digest = "rows", "00"

        def __init__(self) -> None:
            self.dim = dim

        def __call__(self, images) -> torch.Tensor:
            return torch.as_tensor(images)

    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((n, dim)).astype(np.float32) for n in (5000, 100, 400, 3000)]
    reference = reference_statistics(rows[0], Rows())
    frechet = [frechet_to_reference(images, reference, Rows()) for images in rows[1:]]
    kernel = [squared_mmd(images, reference.rows) for images in rows[1:]]
    assert frechet[0] > 3 * frechet[1] > 9 * frechet[2]
    assert all(abs(distance) < 0.01 for distance in kernel)
    assert [enough_images(len(images), dim) for images in rows[1:]] == [False, True, True]


def test_only_inceptions_distance_is_called_fid() -> None:
    assert score_names("inception-v3") == ("fid", "kid")
    for name in ("digits-classifier", "classifier-inception", "pixels", "inceptionish", None):
        assert score_names(name) == ("frechet_distance", "kernel_distance")


def test_a_reference_of_other_features_is_refused(digits: np.ndarray) -> None:
    pixels = reference_statistics(digits[:300], Pixels())
    with pytest.raises(ValueError, match=r"pixels.*digits-classifier.*same extractor"):
        evaluate(digits[:300], pixels, make_extractor("digits-classifier"))
    with pytest.raises(ValueError, match="3 features"):
        evaluate(digits[:300], ReferenceStatistics(np.zeros(3), np.eye(3)), Pixels())
    with pytest.raises(ValueError, match="at least 2"):
        evaluate(digits[:1], pixels, Pixels())
    with pytest.raises(ValueError, match="at least 2"):
        evaluate(iter([]), pixels, Pixels())


def test_a_reference_that_names_other_features_is_refused_without_a_digest() -> None:
    reference = ReferenceStatistics(np.zeros(64), np.eye(64), features="classifier-cats-01234567")
    with pytest.raises(ValueError, match="made with classifier-cats-01234567, the extractor is p"):
        check_reference(reference, Pixels())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_reference(replace(reference, features="pixels"), Pixels())


def test_a_reference_of_unknown_features_is_warned_about(digits: np.ndarray) -> None:
    """pytorch-fid's files hold mu and sigma alone, also of its 64 features."""
    bare = ReferenceStatistics(np.zeros(64), np.eye(64))
    for score in (evaluate, frechet_to_reference):
        with pytest.warns(UserWarning, match="do not say what computed their 64 features"):
            score(digits[:300], bare, Pixels())
    inception = Pixels()
    inception.name = "inception-v3"  # files without a word are its
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_to_reference(digits[:300], bare, inception)


def test_one_image_has_no_statistics(digits: np.ndarray) -> None:
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"reference: the number of images is {count}; need"):
            reference_statistics(digits[:count], Pixels())
