from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden import golden
from sampling.mixture import mixture

from ddsm_ext.diffusion import (
    PREDICTIONS,
    DiffusionConfig,
    Level,
    NoiseSchedule,
    add_noise,
    edm_prediction,
    make_schedule,
    mse_per_image,
    network_input,
    prediction_of,
    training_target,
)
from ddsm_ext.diffusion.config import PARAMETERISATIONS

SCHEDULES = {name: make_schedule(DiffusionConfig(schedule=name)) for name in ("cosine", "edm")}
SCHEDULE = SCHEDULES["cosine"]
T = torch.tensor([0.0, 1.0, 333.3, 700.0, 998.0], dtype=torch.float64)


def batch(
    schedule: NoiseSchedule = SCHEDULE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    return x0, noise, add_noise(x0, noise, T, schedule)


def test_the_names_that_a_configuration_takes() -> None:
    assert tuple(PREDICTIONS) == PARAMETERISATIONS


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["cosine", "edm"])
def test_the_map_to_x0_undoes_noise_and_target(name: str, schedule: str) -> None:
    levels = SCHEDULES[schedule]
    x0, noise, x_t = batch(levels)
    target = training_target(x0, noise, T, levels, name)
    for i, t in enumerate(T.tolist()):
        a, b = PREDICTIONS[name].x0_map(levels.level(t))
        torch.testing.assert_close(a * x_t[i] + b * target[i], x0[i], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_batch_is_given_what_each_level_says(name: str) -> None:
    for levels in SCHEDULES.values():
        x_t = batch(levels)[2]
        images, times = network_input(x_t, T, levels, name)
        row = PREDICTIONS[name]
        for i, t in enumerate(T.tolist()):
            level = levels.level(t)
            torch.testing.assert_close(images[i], row.input_scale(level) * x_t[i])
            assert times[i].item() == pytest.approx(row.time(level), rel=1e-6)


@pytest.mark.parametrize("name", ["epsilon", "x0", "v"])
def test_nothing_is_scaled_where_levels_preserve_the_variance(name: str) -> None:
    x_t, t = batch()[2], T.long()
    images, times = network_input(x_t, t, SCHEDULE, name)
    assert images is x_t
    assert times is t
    exploding = network_input(x_t, t, SCHEDULES["edm"], name)[0]
    sigma = torch.tensor([SCHEDULES["edm"].level(int(i)).sigma for i in t], dtype=torch.float64)
    expected = x_t / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(exploding, expected)


def exploding_level(sigma: float) -> Level:
    return Level(math.nan, -2 * math.log(sigma), 0.0, sigma**2)


def preserving_level(sigma: float) -> Level:
    """The same noise, of an image that is scaled by alpha = 1 / sqrt(1 + sigma²)."""
    total = 1 + sigma**2
    return Level(math.nan, -2 * math.log(sigma), -0.5 * math.log(total), sigma**2 / total)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 1.0, 80.0])
def test_preconditioning_is_that_of_the_paper(sigma: float) -> None:
    """Karras et al. 2022, table 1: c_skip, c_out, c_in, c_noise."""
    data = 0.7
    total = sigma**2 + data**2
    expected = {
        "edm": (data**2 / total, sigma * data / math.sqrt(total), 1 / math.sqrt(total),
                math.log(sigma) / 4),
        "ve": (1, sigma, 1, math.log(sigma / 2)),
        "vp": (1, -sigma, 1 / math.sqrt(sigma**2 + 1), None),
        "iddpm": (1, -sigma, 1 / math.sqrt(sigma**2 + 1), None),
    }  # fmt: skip
    for name, (skip, out, scale, noise) in expected.items():
        row = edm_prediction(data) if name == "edm" else PREDICTIONS[name]
        level = exploding_level(sigma)
        found = (*row.x0_map(level), row.input_scale(level))
        assert found == pytest.approx((skip, out, scale), rel=1e-12)
        assert noise is None or row.time(level) == pytest.approx(noise, rel=1e-12)
        # An image scaled by alpha is taken to the scale of the paper: x / alpha.
        level = preserving_level(sigma)
        found = (*row.x0_map(level), row.input_scale(level))
        expected_scaled = (skip / level.alpha, out, scale / level.alpha)
        assert found == pytest.approx(expected_scaled, rel=1e-12)
        assert row.time(level) == pytest.approx(row.time(exploding_level(sigma)), rel=1e-9)


def test_flow_is_the_velocity_of_the_straight_line() -> None:
    """x = (1 - s) x0 + s epsilon, d x / d s = epsilon - x0; the network's time is 1000 s."""
    s, x0, epsilon = 0.3, 0.4, -1.1
    level = Level(300, 2 * math.log((1 - s) / s), math.log(1 - s), s**2)
    a, b = PREDICTIONS["flow"].x0_map(level)
    assert a * ((1 - s) * x0 + s * epsilon) + b * (epsilon - x0) == pytest.approx(x0, rel=1e-12)
    assert PREDICTIONS["flow"].input_scale(level) == 1.0
    assert PREDICTIONS["flow"].time(level) == pytest.approx(300, rel=1e-12)


def test_times_equal_those_of_the_reference() -> None:
    data = golden("edm_samplers")
    for key in ("vp", "iddpm"):
        row = PREDICTIONS[key]
        found = [row.time(exploding_level(float(sigma))) for sigma in data["iddpm/sigma"]]
        np.testing.assert_allclose(found, data[f"{key}/c_noise"], rtol=1e-12)
        t, schedule = torch.arange(0, 1000, 99), SCHEDULES["edm"]
        x = torch.zeros(len(t), 1, 1, 1)
        expected = [row.time(schedule.level(int(i))) for i in t]
        np.testing.assert_allclose(network_input(x, t, schedule, row)[1], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["edm", "vp", "ve"])
def test_losses_equal_those_of_the_reference(name: str) -> None:
    """The reference weights the image's error as the output's plain error does by itself."""
    data = golden("edm_samplers")
    u = data["loss/rnd_uniform"]
    sigmas = {
        "edm": np.exp(1.2 * data["loss/rnd_normal"] - 1.2),
        "vp": np.sqrt(np.exp(9.95 * (1 + u * (1e-5 - 1)) ** 2 + 0.1 * (1 + u * (1e-5 - 1))) - 1),
        "ve": 0.02 * 5000.0**u,
    }[name]
    row, losses = PREDICTIONS[name], []
    for y, n, sigma in zip(data["loss/y"], data["loss/n"], sigmas, strict=True):
        level = exploding_level(float(sigma))
        x = y + sigma * n
        a, b = row.x0_map(level)
        output = (float(mixture(torch.tensor(x), level)) - a * x) / b
        of_image, of_noise = row.mixture(level.alpha, level.sigma)
        losses.append((output - of_image * y - of_noise * n) ** 2)
    np.testing.assert_allclose(losses, data[f"loss/{name}"], rtol=1e-9)


def test_the_row_of_a_configuration() -> None:
    config = DiffusionConfig(schedule="edm", parameterisation="edm", sigma_data=0.7)
    level = exploding_level(0.3)
    assert prediction_of(config).x0_map(level) == edm_prediction(0.7).x0_map(level)
    assert prediction_of(DiffusionConfig(parameterisation="v")) is PREDICTIONS["v"]


def test_a_level_without_signal() -> None:
    noise_alone = Level(999, -math.inf, -math.inf, 1.0)
    for name in ("x0", "v", "flow"):
        assert all(map(math.isfinite, PREDICTIONS[name].x0_map(noise_alone)))
    with pytest.raises(ValueError, match=r"'epsilon': alpha is 0 at t = 999; need alpha > 0"):
        PREDICTIONS["epsilon"].x0_map(noise_alone)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_error_scale_is_the_error_that_an_error_of_one_in_x0_makes(name: str) -> None:
    for t in T.tolist():
        level = SCHEDULE.level(t)
        _, b = PREDICTIONS[name].x0_map(level)
        scale = PREDICTIONS[name].error_scale(
            torch.tensor(level.log_snr, dtype=torch.float64).exp()
        )
        assert scale.item() == pytest.approx(1 / b**2, rel=1e-9)


def test_v_is_the_derivative_by_angle() -> None:
    """v = d x / d phi where alpha = cos(phi), sigma = sin(phi) (Salimans & Ho 2022, app. D)."""
    x0, noise, _ = batch()
    v = training_target(x0, noise, T, SCHEDULE, "v")
    step = 1e-6
    for i, t in enumerate(T.tolist()):
        phi = math.atan(math.exp(-0.5 * SCHEDULE.log_snr(t)))  # tan(phi) = sigma / alpha
        ahead = math.cos(phi + step) * x0[i] + math.sin(phi + step) * noise[i]
        behind = math.cos(phi - step) * x0[i] + math.sin(phi - step) * noise[i]
        torch.testing.assert_close(v[i], (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def test_bad_arguments() -> None:
    x0, noise, _ = batch()
    with pytest.raises(ValueError, match="did you mean epsilon"):
        training_target(x0, noise, T, SCHEDULE, "epsilom")
    with pytest.raises(ValueError, match=r"noise has shape \(4, 2, 3, 3\)"):
        training_target(x0, noise[:4], T, SCHEDULE, "v")
    with pytest.raises(ValueError, match="t has shape"):
        training_target(x0, noise, T[:2], SCHEDULE, "v")


def test_loss_equals_numpy_per_image() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3, 5, 5)).astype(np.float32)
    expected = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    loss = mse_per_image(torch.from_numpy(a), torch.from_numpy(b))
    assert loss.shape == (4,)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)


def test_half_precision_accumulates_in_float32() -> None:
    ones = torch.ones(2, 1, 64, 64, dtype=torch.bfloat16)
    loss = mse_per_image(ones * 3, ones)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [4.0, 4.0]


def test_shapes_of_a_loss_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\), target has \(1, 1, 4, 4\)"):
        mse_per_image(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))
