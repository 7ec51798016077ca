"""Precision, recall and Inception Score of sets whose scores can be told by hand."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from eval.test_torch_fidelity import needs_torch_fidelity

from ddsm_ext.eval import fidelity
from ddsm_ext.eval.fidelity import (
    inception_score,
    precision_recall,
    torch_fidelity_is_there,
)
from ddsm_ext.eval.metrics import evaluate, reference_statistics
from ddsm_ext.eval.statistics import load_statistics


def line(values: list[float]) -> np.ndarray:
    """Features that differ along one direction."""
    return np.outer(np.array(values), [1.0, 0.0]).astype(np.float32)


@needs_torch_fidelity
def test_precision_and_recall_of_points_on_a_line() -> None:
    """Third neighbours of 0.25, ..., 4.25 are 2 or 3 away, of those beyond 100 likewise."""
    real = line([float(x) for x in range(10)])
    samples = line([x + 0.25 for x in range(5)] + [x + 100.0 for x in range(5)])
    # Half of the samples are among the real points; those reach 4.25 + 3, so 8 and 9 are missed.
    assert precision_recall(samples, real) == {
        "precision": 0.5,
        "recall": pytest.approx(0.8),
    }
    assert precision_recall(real, real) == {"precision": 1.0, "recall": 1.0}


@needs_torch_fidelity
def test_equally_many_rows_are_compared() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    others = np.random.default_rng(1).standard_normal((20, 3)).astype(np.float32)
    assert precision_recall(rows, others) == precision_recall(rows[:20], others)
    assert precision_recall(others, rows) == precision_recall(others, rows[:20])


@needs_torch_fidelity
def test_the_inception_score_of_certain_and_of_uncertain_images() -> None:
    assert inception_score(torch.zeros(40, 7), seed=0) == pytest.approx(1.0)
    # Each tenth has one image: its own mean, so the score of a certain image is 1 as well.
    assert inception_score(50 * torch.eye(10), seed=0) == pytest.approx(1.0)
    # Two classes, certain, halves of each in a large part: the score is near 2.
    certain = 50 * torch.eye(2).repeat(5000, 1)
    assert inception_score(certain, seed=0) == pytest.approx(2.0, abs=0.01)


class Numbers:
    """Images are their own features."""

    name, dim, digest = "numbers", 2, "00"

    def __call__(self, images) -> torch.Tensor:
        return torch.as_tensor(images)


@needs_torch_fidelity
def test_scores_hold_precision_and_recall_where_there_are_rows_enough() -> None:
    real = line([float(x) for x in range(10)])
    samples = line([x + 0.25 for x in range(5)] + [x + 100.0 for x in range(5)])
    scores = evaluate(samples, reference_statistics(real, Numbers()), Numbers())
    assert (scores["precision"], scores["recall"]) == (0.5, pytest.approx(0.8))
    assert "inception_score" not in scores
    few = evaluate(samples[:3], reference_statistics(real, Numbers()), Numbers())
    assert few["precision"] is few["recall"] is None
    bare = reference_statistics(real, Numbers(), keep_rows=0)
    assert evaluate(samples, bare, Numbers())["precision"] is None


@needs_torch_fidelity
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_reference_file_of_another_float_type_is_scored(tmp_path, dtype) -> None:
    real = line([float(x) for x in range(10)])
    samples = line([x + 0.25 for x in range(5)] + [x + 100.0 for x in range(5)])
    file = tmp_path / "ref.npz"
    np.savez(file, mu=real.mean(0).astype(float), sigma=np.cov(real.T), rows=real.astype(dtype))
    scores = evaluate(samples, load_statistics(file), Numbers())
    assert (scores["precision"], scores["recall"]) == (0.5, pytest.approx(0.8))


class Classes(Numbers):
    """Numbers with two classes: the features are the logits."""

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return features


@needs_torch_fidelity
def test_an_inception_score_is_that_of_the_images_of_all_batches() -> None:
    certain = (50 * np.eye(2, dtype=np.float32))[np.arange(4000) % 2]
    reference = reference_statistics(certain, Classes())
    batches = [certain[i : i + 700] for i in range(0, 4000, 700)]
    scores = evaluate(batches, reference, Classes())
    assert scores["inception_score"] == pytest.approx(2.0, abs=0.05)
    assert evaluate(certain[:9], reference, Classes())["inception_score"] is None


@pytest.fixture
def asked_again():
    torch_fidelity_is_there.cache_clear()
    yield
    torch_fidelity_is_there.cache_clear()


@pytest.mark.usefixtures("asked_again")
def test_without_torch_fidelity_other_scores_remain(monkeypatch) -> None:
    monkeypatch.setattr(fidelity.importlib.util, "find_spec", lambda name: None)
    real = line([float(x) for x in range(10)])
    scores = evaluate(real + 1, reference_statistics(real, Numbers()), Numbers())
    assert scores["precision"] is scores["recall"] is None
    assert scores["frechet_distance"] == pytest.approx(2.0)  # moved by 1 in both directions


@needs_torch_fidelity
@pytest.mark.usefixtures("asked_again")
def test_a_torch_fidelity_that_does_not_import_is_told_once(monkeypatch, caplog) -> None:
    def broken(name: str) -> None:
        raise ImportError("its torchvision is another's")

    monkeypatch.setattr(fidelity.importlib, "import_module", broken)
    with caplog.at_level(logging.WARNING):
        assert not torch_fidelity_is_there()
        assert not torch_fidelity_is_there()
    assert len(caplog.records) == 1
    assert "are left out: torch_fidelity: it does not import (its torchvision" in caplog.text
