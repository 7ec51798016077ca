"""Errors of networks whose difference between widths is a formula."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from search.synthetic import WIDTHS, log_snrs

from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.sensitivity import Sensitivity, additive_quality, measure_sensitivity


def scaled_net(x, t, width):
    """Prediction width * t * x, so that the error of a width is ((1 - width) t)^2 mean(x^2)."""
    return width * t[:, None, None, None] * x


def add_noise(x0, noise, t):
    return x0 + noise * t[:, None, None, None]


def measure(**more):
    images = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    arguments = {
        "add_noise": add_noise,
        "timesteps": [3, 1, 2],
        "log_snrs": [-3.0, 1.0, 0.5],
        "widths": WIDTHS,
        "noise": lambda level: noise,
    }
    found = measure_sensitivity(scaled_net, images, **{**arguments, **more})
    return found, images.double(), noise.double()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_error_is_the_formula(batch_size):
    found, images, noise = measure(batch_size=batch_size)
    assert found.log_snrs == (-3.0, 0.5, 1.0)
    assert found.images == 10
    for row, t in enumerate((3, 2, 1)):
        power = float((images + noise * t).square().mean())
        expected = [((1 - w) * t) ** 2 * power for w in WIDTHS]
        assert found.errors[row] == pytest.approx(expected, rel=1e-6)
    assert (found.errors[:, 0] == 0).all()


def test_noise_of_each_level_and_progress():
    told, asked = [], []

    def noise(level):
        asked.append(level)
        return torch.zeros(10, 3, 4, 4)

    found, images, _ = measure(noise=noise, progress=lambda done, total: told.append((done, total)))
    assert asked == [0, 1, 2]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.errors[2, 2] == pytest.approx(0.25 * float(images.square().mean()), rel=1e-6)


def test_steps_lie_between_levels():
    table = Sensitivity((-2.0, 0.0, 4.0), (1.0, 0.5), np.array([[0, 8.0], [0, 4.0], [0, 2.0]]), 5)
    steps = table.for_steps([-9.0, -1.0, 0.0, 1.0, 9.0])
    assert steps[:, 1].tolist() == [8.0, 6.0, 4.0, 3.5, 2.0]
    assert table.for_steps([0.0], widths=[0.5]).tolist() == [[4.0]]
    with pytest.raises(ValueError, match=r"width 0\.25 was not measured"):
        table.for_steps([0.0], widths=[0.25])


def test_saved_and_loaded_bit_for_bit(tmp_path):
    path, where = tmp_path / "sensitivity.json", {"weights": "abc", "timesteps": [1, 2, 3]}
    found, _, _ = measure(conditions=where)
    found.save(path)
    again = Sensitivity.load(path)
    assert again.conditions == where
    assert again.log_snrs == found.log_snrs
    assert again.widths == found.widths
    assert (again.errors == found.errors).all()
    replace(found, widths=tuple(np.array(found.widths))).save(path)
    assert Sensitivity.load(path).widths == found.widths
    # files of earlier versions do not say what they depend on
    content = json.loads(path.read_text())
    del content["conditions"]
    path.write_text(json.dumps(content))
    assert Sensitivity.load(path).conditions == {}
    for text in ("{}", "[]", '{"version": 1, "images": 1, "log_snrs": [0], "errors": {"1": [-1]}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: "):
            Sensitivity.load(tmp_path / "bad.json")


def test_refusals():
    with pytest.raises(ValueError, match="3 timesteps, 2 log_snrs"):
        measure(log_snrs=[0.0, 1.0])
    with pytest.raises(ValueError, match="prediction at timestep 3 is not finite"):
        measure(noise=lambda level: torch.full((10, 3, 4, 4), float("nan")))
    with pytest.raises(ValueError, match="not ascending"):
        measure(log_snrs=[0.0, 0.0, 1.0])


def test_additive_quality_is_the_mean_error_of_the_widths():
    table = np.arange(40.0).reshape(10, 4)
    quality = additive_quality(table, WIDTHS, log_snrs(10))
    strategy = Strategy((0.25, 1.0), (0.0,))
    # rows 0-4 at column 3, rows 5-9 at column 0
    assert quality(strategy) == pytest.approx((3 + 7 + 11 + 15 + 19 + 20 + 24 + 28 + 32 + 36) / 10)
    with pytest.raises(ValueError, match=r"shape \[10, 4\]; need \[9, 4\]"):
        additive_quality(table, WIDTHS, log_snrs(9))


def test_additive_quality_takes_steps_in_sampling_order():
    # a sampler that runs from image to noise: rows belong to steps, not to sorted levels
    levels = log_snrs(10)[::-1]
    table = np.arange(40.0).reshape(10, 4)
    strategy = Strategy((0.25, 1.0), (0.0,))
    expected = sum(table[s, 3 if level < 0 else 0] for s, level in enumerate(levels)) / 10
    assert additive_quality(table, WIDTHS, levels)(strategy) == pytest.approx(expected)
