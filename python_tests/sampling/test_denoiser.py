"""What samplers see of a network: labels, guidance, gradients and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sampling.toys import (
    SCHEDULE,
    SHAPE,
    SPREAD,
    GaussianData,
    TinyNet,
    full,
)
from torch import Tensor

from ddsm_ext.diffusion import DiffusionConfig, edm_prediction, make_schedule
from ddsm_ext.diffusion.level import Level
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.denoiser import Denoiser, Evaluation
from ddsm_ext.sampling.images import sample


def test_labels_reach_the_network_with_their_images() -> None:
    def net(x: Tensor, t: Tensor, width: float, y: Tensor) -> Tensor:
        assert y.dtype == torch.int64
        return (y / 10).view(-1, 1, 1, 1).expand_as(x)

    labels, settings = [3, 0, 7, 5, 1], full(5, kind="ddim", steps=3)
    for given in (labels, torch.tensor(labels, dtype=torch.int32)):
        images = sample(
            net, SCHEDULE, 1.0, *settings, parameterisation="x0", labels=given, batch_size=2
        )
        expected = torch.tensor(labels).div(10).view(-1, 1, 1, 1).expand(5, *SHAPE)
        torch.testing.assert_close(images, expected)


def test_the_second_half_of_twice_the_channels_is_a_variance() -> None:
    x = torch.rand(2, *SHAPE)

    def net(x: Tensor, t: Tensor, width: float) -> Tensor:
        return torch.cat([x / 2, x.tanh()], dim=1)

    denoise, level = Denoiser(net, parameterisation="x0"), SCHEDULE.level(300)
    assert torch.equal(denoise(x, level), x / 2)
    torch.testing.assert_close(denoise.variance_fraction(), (x.tanh() + 1) / 2)
    half = Denoiser(lambda x, t, width: x / 2, parameterisation="x0")
    half(x, level)
    with pytest.raises(ValueError, match="variance is 'learned', the network returned as many"):
        half.variance_fraction()
    settings = full(2, variance="learned", steps=4)
    sample(net, SCHEDULE, 1.0, *settings, parameterisation="x0")
    with pytest.raises(ValueError, match=r"returned shape \(2, 9, 8, 8\).*need a tensor \(2, 3,"):
        sample(lambda x, t, width: x.repeat(1, 3, 1, 1), SCHEDULE, 1.0, *settings)


def test_the_network_is_given_what_its_preconditioning_says() -> None:
    """Karras et al. 2022, table 1: x / sqrt(sigma² + sigma_data²), at ln(sigma) / 4."""
    seen: list[tuple[Tensor, Tensor]] = []

    def net(x: Tensor, t: Tensor, width: float) -> Tensor:
        seen.append((x, t))
        return torch.zeros_like(x)

    schedule = make_schedule(DiffusionConfig(schedule="edm"))
    for dtype in (torch.float32, torch.float64):
        x = 80 * torch.randn(2, *SHAPE, dtype=dtype)
        denoise, level = Denoiser(net, parameterisation=edm_prediction(0.7)), schedule.level(999)
        x0 = denoise(x, level)
        torch.testing.assert_close(seen[-1][0], x / math.sqrt(80**2 + 0.7**2))
        expected = torch.full((2,), math.log(80) / 4, dtype=dtype)
        torch.testing.assert_close(seen[-1][1], expected)
        torch.testing.assert_close(x0, x * 0.7**2 / (80**2 + 0.7**2))
    assert denoise.width_at(level) == 1.0


def test_a_callback_guides_by_a_gradient() -> None:
    """x0 moved along the gradient of log N(x0; target, 1): at a step of 1 it is the target."""
    target = torch.rand(SHAPE)

    def guide(evaluation: Evaluation, x: Tensor, x0: Tensor) -> Tensor | None:
        if evaluation.log_snr < 0.0:
            return None
        with torch.enable_grad():
            image = x0.detach().requires_grad_()
            log_density = -0.5 * (image - target).square().sum()
            (gradient,) = torch.autograd.grad(log_density, image)
        return x0 + gradient

    arguments = (TinyNet(), SCHEDULE, 1.0, *full(3, kind="ddim", steps=5))
    images = sample(*arguments, callback=guide, batch_size=2)
    torch.testing.assert_close(images, target.expand_as(images))
    watched = sample(*arguments, callback=lambda evaluation, x, x0: None)
    assert torch.equal(watched, sample(*arguments))


def test_a_sampler_may_take_the_gradient_of_its_denoiser() -> None:
    """By Tweedie's formula sigma² / alpha d x0 / d x is the variance of x0 given x; Gaussians'
    precisions add: 1 / spread² + alpha² / sigma²."""
    level = SCHEDULE.level(300)

    def method(denoise: Callable, x: Tensor, levels: list[Level], noise: Callable) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(denoise(x, level).sum(), x)
        return level.variance / level.alpha * gradient

    images = sample(GaussianData(SCHEDULE), SCHEDULE, 1.0, *full(2), method=method)
    expected = 1 / (1 / SPREAD**2 + level.alpha**2 / level.variance)
    torch.testing.assert_close(images, torch.full_like(images, expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (lambda x0: 1.0, "the callback returned float; need a tensor or None"),
        (lambda x0: x0[:1], r"the callback returned shape \(1, 3, 8, 8\); need \(2, 3, 8, 8\)"),
        (lambda x0: x0 / 0, r"callback's image is not finite in evaluation 1 \(t = 999\)"),
    ],
)
def test_a_callback_that_returns_no_image(returned: Callable, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        sample(
            TinyNet(), SCHEDULE, 1.0, *full(2, kind="ddim", steps=2),
            callback=lambda evaluation, x, x0: returned(x0),
        )  # fmt: skip


def test_a_denoiser_alone_passes_gradients_to_its_input() -> None:
    """d x0 / d x of the exact prediction: Cov[x0, x] / Var[x] = alpha spread² / Var[x]."""
    denoise, level = Denoiser(GaussianData(SCHEDULE)), SCHEDULE.level(300)
    x = torch.zeros(2, *SHAPE, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(denoise(x, level).sum(), x)
    expected = level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.variance)
    torch.testing.assert_close(gradient, torch.full_like(x, expected), rtol=1e-5, atol=0)
    twice = Denoiser(GaussianData(SCHEDULE), callback=lambda evaluation, x, x0: 2 * x0)
    (doubled,) = torch.autograd.grad(twice(x, level).sum(), x)
    torch.testing.assert_close(doubled, 2 * gradient)


def test_output_that_is_not_finite_is_refused_with_step_and_width() -> None:
    def net(x: Tensor, t: Tensor, width: float) -> Tensor:
        y = torch.zeros_like(x)
        if width == 0.5 and int(t[0]) < 700:
            y[-1, 0, 0, 0] = math.nan if len(x) > 1 else math.inf
        return y

    for seeds in (range(4), range(1)):
        with pytest.raises(
            ValueError, match=r"output is not finite in evaluation 2 \(t = 666\) at width 0\.5"
        ):
            sample(net, SCHEDULE, 0.5, seeds, SHAPE, SamplerConfig("ddim", 4))
    assert sample(net, SCHEDULE, 1.0, range(1), SHAPE, SamplerConfig("ddim", 4)).isfinite().all()
