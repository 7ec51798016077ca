"""Errors of networks whose difference between widths is a formula."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from search.synthetic import WIDTHS

from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.sampling import SamplerConfig, evaluations
from ddsm_ext.sampling.levels import prediction_gains
from ddsm_ext.search.budget import solve_budget
from ddsm_ext.search.sensitivity import Sensitivity, measure_sensitivity


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
    del content["conditions"], content["digest"]
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


def test_an_error_counts_by_the_square_of_its_gain():
    table = Sensitivity((-2.0, 0.0, 4.0), (1.0, 0.5), np.array([[0, 8.0], [0, 4.0], [0, 2.0]]), 5)
    weighted = table.for_steps([-2.0, 0.0, 1.0], gains=[0.5, -3.0, 0.0])
    assert weighted.tolist() == [[0.0, 0.25 * 8.0], [0.0, 9.0 * 4.0], [0.0, 0.0]]
    for gains in ([1.0, 2.0], [1.0] * 4):
        with pytest.raises(ValueError, match=f"{len(gains)} gains; need one a step, 3"):
            table.for_steps([-2.0, 0.0, 1.0], gains=gains)


def test_permuted_gains_give_another_strategy():
    # the same error everywhere: the steps with the largest gains get the full width
    table = Sensitivity((0.0, 1.0, 2.0, 3.0), (1.0, 0.5), np.array([[0.0, 1.0]] * 4), 5)
    costs = np.array([2.0, 1.0])
    for gains in ([4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 3.0, 2.0]):
        weighted = table.for_steps([0.0, 1.0, 2.0, 3.0], gains=gains)
        found = solve_budget(weighted, costs, 6.0, segments=4)
        assert [2 - w for w in found.choice] == [2 if g >= 3 else 1 for g in gains]
        # against every one of the 2^4 strategies
        within = [c for c in itertools.product((0, 1), repeat=4) if costs[list(c)].sum() <= 6.0]
        best = min(sum(g * g * w for g, w in zip(gains, c, strict=True)) for c in within)
        assert found.error == pytest.approx(best)


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_an_error_that_the_sampler_hardly_uses_buys_no_width(kind):
    # A network of v that errs in the last, least noisy step alone: there v changes the image by
    # sigma, 0.01 of it, a hundredth of what the same error does elsewhere.
    schedule = make_schedule(DiffusionConfig())
    sampler = SamplerConfig(kind, 10)
    steps = evaluations(schedule, sampler)
    levels = [step.log_snr for step in steps]
    errors = np.array([[0.0, 0.001]] * 9 + [[0.0, 0.1]])
    order = np.argsort(levels)
    measured = Sensitivity(tuple(np.array(levels)[order]), (1.0, 0.5), errors[order], 5)
    costs, budget = np.array([2.0, 1.0]), 15.0  # half of the steps may be full
    plain = solve_budget(measured.for_steps(levels), costs, budget, 10)
    gains = prediction_gains(schedule, sampler, "v")
    weighted = solve_budget(measured.for_steps(levels, gains=gains), costs, budget, 10)
    assert plain.choice[-1] == 0
    assert weighted.choice[-1] == 1
    assert sum(w == 0 for w in weighted.choice) == 5
