"""Guidance: what runs, at which width, on which label, and what becomes of the outputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import golden
from torch import Tensor

from ddsm_ext.diffusion import CLEAN, DiffusionConfig, make_schedule
from ddsm_ext.sampling import (
    Denoiser,
    SamplerConfig,
    Strategy,
    ddim,
    ddpm,
    evaluations,
    noise_levels,
    sample,
)
from ddsm_ext.sampling.guidance import Guidance
from ddsm_ext.sampling.levels import prediction_gains

SCHEDULE = make_schedule(DiffusionConfig(schedule="cosine"))
NULL = 3
LABELS = torch.tensor([0, 2])
X = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LEVEL = SCHEDULE.level(400)


class Net:
    """An output of its own for every width and label; notes what it was called with."""

    def __init__(self, variance: bool = False) -> None:
        self.calls: list[tuple[float, list[int] | None]] = []
        self.variance = variance

    def out(self, x: Tensor, width: float, y: Tensor | None) -> Tensor:
        shift = 0.0 if y is None else 0.1 * (y + 1.0)[:, None, None, None]
        return x.sin() * width + shift

    def __call__(self, x: Tensor, t: Tensor, width: float, y: Tensor | None = None) -> Tensor:
        assert t.shape == (len(x),)
        self.calls.append((width, None if y is None else y.tolist()))
        out = self.out(x, width, y)
        return torch.cat([out, 10.0 * out], 1) if self.variance else out


def x0_of(output: Tensor) -> Tensor:
    """The image of a predicted epsilon."""
    return (X - LEVEL.sigma * output) / LEVEL.alpha


def test_away_from_no_class_in_one_batch() -> None:
    """Ho & Salimans 2022, eq. 6: (1 + w) e(x, c) - w e(x), with 1 + w = 2.5."""
    net = Net()
    denoise = Denoiser(net, 0.5, labels=LABELS, guidance=Guidance(2.5, null_label=NULL))
    null = torch.full_like(LABELS, NULL)
    expected = 2.5 * net.out(X, 0.5, LABELS) - 1.5 * net.out(X, 0.5, null)
    torch.testing.assert_close(denoise(X, LEVEL), x0_of(expected))
    assert net.calls == [(0.5, [0, 2, NULL, NULL])]


@pytest.mark.parametrize("null", [NULL, None])
def test_a_weak_model_of_its_own_width(null: int | None) -> None:
    net = Net()
    guidance = Guidance(2.0, widths=Strategy.constant(0.25), null_label=null)
    denoise = Denoiser(net, 1.0, labels=LABELS, guidance=guidance)
    weak = LABELS if null is None else torch.full_like(LABELS, null)
    expected = 2.0 * net.out(X, 1.0, LABELS) - net.out(X, 0.25, weak)
    torch.testing.assert_close(denoise(X, LEVEL), x0_of(expected))
    assert net.calls == [(1.0, [0, 2]), (0.25, weak.tolist())]


def test_autoguidance_without_labels() -> None:
    net = Net()
    denoise = Denoiser(net, 1.0, guidance=Guidance(3.0, widths=Strategy.constant(0.5)))
    expected = 3.0 * net.out(X, 1.0, None) - 2.0 * net.out(X, 0.5, None)
    torch.testing.assert_close(denoise(X, LEVEL), x0_of(expected))
    assert net.calls == [(1.0, None), (0.5, None)]


@pytest.mark.parametrize("width", [0.5, 0.25])
def test_the_variance_is_the_strong_models(width: float) -> None:
    """Of a guided output of twice the channels the first half alone is guided."""
    net = Net(variance=True)
    guidance = Guidance(2.0, widths=Strategy.constant(width), null_label=NULL)
    denoise = Denoiser(net, 0.5, labels=LABELS, guidance=guidance)
    denoise(X, LEVEL)
    expected = (10.0 * net.out(X, 0.5, LABELS) + 1.0) / 2.0
    torch.testing.assert_close(denoise.variance_fraction(), expected)


@pytest.mark.parametrize(
    ("guidance", "runs"),
    [
        (Guidance(1.0, null_label=NULL), 1),  # nothing is added
        (Guidance(2.0, (LEVEL.log_snr, 9.0), null_label=NULL), 2),
        (Guidance(2.0, (-9.0, LEVEL.log_snr), null_label=NULL), 2),
        (Guidance(2.0, (LEVEL.log_snr + 0.01, 9.0), null_label=NULL), 1),
        (Guidance(2.0, widths=Strategy.constant(0.5)), 1),  # weak as the strong one
    ],
)
def test_where_the_weak_model_does_not_run(guidance: Guidance, runs: int) -> None:
    net = Net()
    found = Denoiser(net, 0.5, labels=LABELS, guidance=guidance)(X, LEVEL)
    assert sum(len(y or ()) for _, y in net.calls) == 2 * runs
    if runs == 1:
        torch.testing.assert_close(found, x0_of(net.out(X, 0.5, LABELS)))


def test_evaluations_tell_all_that_runs() -> None:
    strategy = Strategy((0.25, 1.0), (0.0,))
    settings: dict[str, Any] = {"kind": "heun", "steps": 6, "guidance": 2.0}
    plain = evaluations(SCHEDULE, SamplerConfig("heun", 6), strategy)
    assert len(plain) == 11
    both = evaluations(SCHEDULE, SamplerConfig(**settings), strategy)
    assert [e.widths for e in both] == [(e.width, e.width) for e in plain]
    some = SamplerConfig(**settings, guidance_interval=(-2.0, 2.0), guidance_widths=(0.25,))
    for e in evaluations(SCHEDULE, some, strategy):
        inside = -2.0 <= e.log_snr <= 2.0
        assert e.widths == ((e.width, 0.25) if inside else (e.width,))
    weak = SamplerConfig(**settings, guidance_weak="width", guidance_widths=(0.25,))
    for e in evaluations(SCHEDULE, weak, strategy):
        assert e.widths == ((1.0, 0.25) if e.width == 1.0 else (0.25,))


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "heun", "dpmpp_2m", "unipc", "euler_ancestral"])
def test_every_sampler_is_guided(kind: str) -> None:
    """As by a network that does itself what guidance makes of it."""
    net, settings = Net(), {"kind": kind, "steps": 5, "clip_denoised": False}

    def guided(x: Tensor, t: Tensor, width: float, y: Tensor) -> Tensor:
        return 2.0 * net.out(x, width, y) - net.out(x, width, torch.full_like(y, NULL))

    how: dict[str, Any] = {"labels": [0, 1, 2, 1], "dtype": torch.float64}
    common = (SCHEDULE, 0.5, range(4), (1, 4, 4))
    expected = sample(guided, *common, SamplerConfig(**settings), **how)
    sampler = SamplerConfig(**settings, guidance=2.0)
    found = sample(net, *common, sampler, null_label=NULL, batch_size=3, **how)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def stored(key: str) -> Tensor:
    return torch.from_numpy(golden("gd_process")[key])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_classifier_moves_the_mean_as_in_guided_diffusion(name: str) -> None:
    """Its classifier's gradient is a constant there; the last step has no variance here."""
    schedule = make_schedule(DiffusionConfig(schedule=name))
    x_t, output = stored(f"{name}/x_t"), stored("model_out")
    gradient, z = stored("classifier_grad"), stored("step_noise")
    for i, here in enumerate(stored("t").tolist()):
        if here == 0:
            continue
        own = slice(i, i + 1)
        denoise = Denoiser(
            lambda x, t, width, own=own: output[own],
            clip=True,
            classifier=lambda x, t, y, own=own: (x * gradient[own]).flatten(1).sum(1),
            moves_mean=True,
        )
        levels = [schedule.level(here), schedule.level(here - 1)]
        found = ddpm(denoise, x_t[own], levels, lambda own=own: z[own], variance="learned")
        expected = stored(f"{name}/guided/p_sample")[own]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_classifier_moves_the_image_as_in_guided_diffusion(name: str) -> None:
    schedule = make_schedule(DiffusionConfig(schedule=name))
    x_t, output, gradient = stored(f"{name}/x_t"), stored("model_out"), stored("classifier_grad")
    expected = stored(f"{name}/guided/condition_score_pred_xstart")
    for i, here in enumerate(stored("t").tolist()):
        own = slice(i, i + 1)
        denoise = Denoiser(
            lambda x, t, width, own=own: output[own],
            clip=True,
            classifier=lambda x, t, y, own=own: (x * gradient[own]).flatten(1).sum(1),
        )
        found = denoise(x_t[own], schedule.level(here))
        torch.testing.assert_close(found, expected[own], rtol=1e-9, atol=1e-9)
        assert denoise.gradient() is None


def test_a_classifier_draws_samples_to_its_class() -> None:
    """Of N(0, 1) data and log p = -(x - a)^2 / 2 at the clean image samples lie nearer to a."""
    net = lambda x, t, width: x * SCHEDULE.signal_and_noise(t)[1][:, None, None, None]  # noqa: E731
    seen = []

    def classifier(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        seen.append((t.tolist(), labels))
        alpha, sigma = SCHEDULE.signal_and_noise(t)
        # p(y | x_t) of y = x0 + N(0, 1) at y = 2: x0 given x_t is N(alpha x_t, sigma²)
        mean, total = alpha[:, None, None, None] * x, 1.0 + sigma.square()
        return (-(mean - 2.0).square().flatten(1).sum(1) / (2.0 * total)).to(x.dtype)

    common = (SCHEDULE, 1.0, range(300), (1, 2, 2))
    settings = SamplerConfig("ddpm", 100, variance="fixed_small", clip_denoised=False)
    how: dict[str, Any] = {"dtype": torch.float64, "batch_size": 300}
    free = sample(net, *common, settings, **how)
    drawn = sample(net, *common, settings, classifier=classifier, **how)
    assert abs(free.mean().item()) < 0.1
    # the posterior of N(0, 1) and one observation of variance 1 at 2: N(1, 1/2)
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.1)
    assert drawn.var().item() == pytest.approx(0.5, abs=0.1)
    assert len(seen) == 100
    assert seen[0] == ([999] * 300, None)
    also = sample(net, *common, SamplerConfig("ddim", 100, clip_denoised=False),
                  classifier=classifier, **how)  # fmt: skip
    assert also.mean().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": -1.0}, "guidance is -1.0; need a number from 0 to 1000"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": 2.0, "guidance_weak": "nul"}, "did you mean null"),
        ({"guidance": 2.0, "guidance_interval": (1.0, 0.0)}, "the lower one first"),
        ({"guidance": 2.0, "guidance_interval": (1.0,)}, "need two log-SNRs"),
        ({"guidance_interval": (0.0, 1.0)}, "with guidance 1, which is none"),
        ({"guidance_widths": (0.5,)}, "with guidance 1, which is none"),
        ({"guidance": 2.0, "guidance_weak": "width"}, "need the width of the weak model"),
        ({"guidance": 2.0, "guidance_widths": (1.5,)}, "need 0 < width <= 1"),
        ({"guidance": 2.0, "guidance_widths": (0.5, 1.0)}, "one cut fewer"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        SamplerConfig(**settings)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_guided_is_refused() -> None:
    common = (Net(), SCHEDULE, 1.0, range(2), (1, 4, 4), SamplerConfig("ddim", 2, guidance=2.0))
    with pytest.raises(ValueError, match="the network has no label for no class"):
        sample(*common, labels=[0, 1])
    with pytest.raises(ValueError, match="there are no labels; need the class of each image"):
        sample(*common, null_label=NULL)
    with pytest.raises(ValueError, match="need a null label or widths of its own"):
        Guidance(2.0)
    for wrong, message in (
        (lambda x, t, y: x, r"shape \(2, 1, 4, 4\); need log probabilities \[2\]"),
        (lambda x, t, y: torch.zeros(2), "have a gradient by x"),
        (lambda x, t, y: None, "the classifier returned"),
    ):
        denoise = Denoiser(Net(), 1.0, classifier=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            denoise(X, LEVEL)


def test_levels_of_the_last_step() -> None:
    """Guidance leaves what a sampler does alone: the clean image is never evaluated."""
    levels = noise_levels(SCHEDULE, SamplerConfig("ddim", 3))
    assert levels[-1] is CLEAN
    net = Net()
    ddim(Denoiser(net, labels=LABELS, guidance=Guidance(2.0, null_label=NULL)), X, levels, None)  # type: ignore[arg-type]
    assert len(net.calls) == 3


def test_gains_have_the_scale_where_it_is_guided() -> None:
    plain = prediction_gains(SCHEDULE, SamplerConfig("ddim", 6), "v")
    settings = SamplerConfig("ddim", 6, guidance=4.0, guidance_interval=(-1.0, 1.0))
    inside = [len(e.widths) == 2 for e in evaluations(SCHEDULE, settings)]
    assert 0 < sum(inside) < 6
    expected = [gain * (4.0 if at else 1.0) for gain, at in zip(plain, inside, strict=True)]
    assert prediction_gains(SCHEDULE, settings, "v") == pytest.approx(expected)
