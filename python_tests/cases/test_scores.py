"""Cases of scores that mean nothing, or less than they seem to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases.made import Said, folder

from ddsm_ext.eval.distances import frechet_distance

Ddsm = Callable[..., Said]
SCORE = ["eval", "--strategy", "1"]


def test_statistics_of_other_features(trained: Path, ddsm: Ddsm) -> None:
    """S01: mseitzer/pytorch-fid --dims 64; toshas/torch-fidelity#15. As many features, others."""
    np.savez("st.npz", mu=np.zeros(64), sigma=np.eye(64))
    said = ddsm(*SCORE, "--set", "eval.reference=st.npz")
    assert "warning: the reference statistics do not say what computed their 64" in said.err


def test_fewer_images_than_features(trained: Path, ddsm: Ddsm) -> None:
    """S02: mseitzer/pytorch-fid#78, bioinf-jku/TTUR#5. 8 samples, 24 real images, 64 features."""
    said = ddsm(*SCORE, "--set", "eval.images=8")
    assert said.code == 0
    assert "warning: the Fréchet distance of 8 images to 24 real images with 64 feat" in said.err


def test_one_image(trained: Path, ddsm: Ddsm) -> None:
    """S03: the kind of mseitzer/pytorch-fid#78."""
    said = ddsm("eval", "--images", str(folder("one", 1)))
    assert said.code == 2
    assert said.err.splitlines()[-1] == "ddsm: one: holds 1 image; need at least 2 to score"


def test_a_covariance_that_is_none() -> None:
    """S04: numpy.linalg.eigvalsh(-I) are all -1."""
    with pytest.raises(ValueError, match="eigenvalue"):
        frechet_distance(np.zeros(4), -np.eye(4), np.zeros(4), np.eye(4))
