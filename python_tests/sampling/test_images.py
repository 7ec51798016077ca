from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sampling.toys import (
    COSINE,
    MEAN,
    SCHEDULE,
    SHAPE,
    SPREAD,
    GaussianData,
    TinyNet,
    full,
    heun,
    kept,
)
from torch import Tensor, nn

from ddsm_ext.data.pixels import to_uint8
from ddsm_ext.diffusion.level import CLEAN, Level
from ddsm_ext.diffusion.noise import normal
from ddsm_ext.models import SlimmableNetwork, UNetConfig
from ddsm_ext.sampling.ancestral import ddim
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.denoiser import Evaluation
from ddsm_ext.sampling.images import sample
from ddsm_ext.sampling.method import Method
from ddsm_ext.sampling.strategy import Strategy


@pytest.mark.parametrize(
    ("parameterisation", "settings"),
    [
        ("epsilon", {"kind": "ddpm", "variance": "fixed_small"}),
        ("epsilon", {"kind": "ddpm", "variance": "fixed_large"}),
        ("epsilon", {"kind": "ddim", "eta": 0.5}),
        ("x0", {"kind": "ddpm", "variance": "fixed_small"}),
        ("v", {"kind": "ddim", "eta": 0.0}),
    ],
)
def test_exact_predictions_give_the_data_distribution(
    parameterisation: str, settings: dict
) -> None:
    net = GaussianData(SCHEDULE, parameterisation=parameterisation)
    images = sample(net, SCHEDULE, 1.0, *full(64, **settings), parameterisation=parameterisation)
    assert images.mean().item() == pytest.approx(MEAN, abs=5 * SPREAD / math.sqrt(images.numel()))
    # 12,288 pixels: 0.64 % standard error; the discretisation adds about as much.
    assert images.std().item() == pytest.approx(SPREAD, rel=0.04)


@pytest.mark.parametrize("steps", [10, 1000])
def test_fixed_large_is_exact_for_unit_variance_at_any_step_count(steps: int) -> None:
    """For N(0, I) data p(x_{t-1} | x_t) has variance beta (Ho et al. 2020, section 3.2)."""
    store: list[Tensor] = []
    net = GaussianData(SCHEDULE, 0.0, 1.0)
    arguments = full(64, kind="ddpm", steps=steps)
    sample(net, SCHEDULE, 1.0, *arguments, callback=kept(store))
    for x_t in store[:: max(1, steps // 10)]:
        assert x_t.std().item() == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize(
    "settings", [{"kind": "ddpm"}, {"kind": "ddim"}, {"kind": "ddim", "eta": 1.0}]
)
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_a_single_image_is_found_in_any_number_of_steps(settings: dict, steps: int) -> None:
    net = GaussianData(SCHEDULE, 0.3, 0.0)
    images = sample(net, SCHEDULE, 1.0, *full(2, steps=steps, **settings))
    torch.testing.assert_close(images, torch.full_like(images, 0.3), rtol=0, atol=2e-4)


def end_of_flow(count: int) -> Tensor:
    """For Gaussian data the flow keeps (x - alpha mean) / sqrt(alpha² spread² + sigma²)."""
    x_start, level = normal(range(count), 0, SHAPE, dtype=torch.float64), SCHEDULE.level(999)
    spread = math.sqrt(level.alpha**2 * SPREAD**2 + level.variance)
    return MEAN + SPREAD * (x_start - level.alpha * MEAN) / spread


def test_ddim_follows_the_probability_flow() -> None:
    errors, solution = [], end_of_flow(16)
    for steps in (50, 200, 1000):
        images = sample(GaussianData(SCHEDULE), SCHEDULE, 1.0, *full(16, kind="ddim", steps=steps))
        errors.append((images - solution).abs().max().item())
    assert errors[2] < 0.01
    assert errors[0] > 2 * errors[1] > 4 * errors[2]  # converges with the step size


def test_a_method_of_the_callers_own_runs_with_everything_around_it() -> None:
    """Heun's method is nearer to the flow's exact end than DDIM with as many evaluations; levels
    lie between timesteps, evenly in log-SNR."""
    solution = end_of_flow(16)

    def net(x: Tensor, t: Tensor, width: float) -> Tensor:  # the exact predictions at any t
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in SCHEDULE.signal_and_noise(t))
        share = sigma / (alpha**2 * SPREAD**2 + sigma**2)
        return share * (x.double() - alpha * MEAN)

    def levels(count: int) -> list[Level]:
        low, high = SCHEDULE.log_snr(999), SCHEDULE.log_snr(0)
        wanted = torch.linspace(high, low, count, dtype=torch.float64)
        t = torch.searchsorted(-SCHEDULE.log_snrs, -wanted).clamp(1, 999)
        above, below = SCHEDULE.log_snrs[t - 1], SCHEDULE.log_snrs[t]
        between = (t - 1 + (above - wanted) / (above - below)).clamp(0, 999)
        return [*map(SCHEDULE.level, between.flip(0).tolist()), CLEAN]

    def error(method: Method, count: int) -> float:
        calls: list[tuple[int, int]] = []
        images = sample(
            net, SCHEDULE, 1.0, *full(16), method=method, levels=levels(count),
            dtype=torch.float64, batch_size=5, progress=lambda a, b: calls.append((a, b)),
        )  # fmt: skip
        evaluations = 2 * count - 1 if method is heun else count
        assert calls[-1] == (4 * evaluations, 4 * evaluations)
        return (images - solution).abs().max().item()

    assert error(heun, 40) < 0.3 * error(ddim, 79)
    assert error(heun, 40) < 0.3 * error(heun, 20)  # of second order: DDIM, of first, halves it


def test_the_network_is_told_timesteps_as_integers_where_they_are() -> None:
    seen: list[tuple[torch.dtype, float]] = []

    def net(x: Tensor, t: Tensor, width: float) -> Tensor:
        assert t.shape == x.shape[:1]
        seen.append((t.dtype, t[0].item()))
        return torch.zeros_like(x)

    levels = [*map(SCHEDULE.level, (946.42, 500.0, 0)), CLEAN]
    sample(net, SCHEDULE, 1.0, *full(3, kind="ddim"), levels=levels)
    assert [dtype for dtype, _ in seen] == [torch.float32, torch.int64, torch.int64]
    assert [t for _, t in seen] == pytest.approx([946.42, 500, 0])


def test_draws_of_noise_do_not_depend_on_how_many_are_computed_at_once() -> None:
    """The i-th draw is (stream 1, i) of each seed, also past those that were foreseen."""

    def method(denoise: Callable, x: Tensor, levels: list[Level], noise: Callable) -> Tensor:
        draws = [noise() for _ in range(3 if x.dim() else 2)]
        return torch.stack([x, *draws]).sum(0)

    images = sample(TinyNet(), SCHEDULE, 1.0, [4, 9], SHAPE, method=method, batch_size=2)
    expected = normal([4, 9], 0, SHAPE) + sum(normal([4, 9], i, SHAPE, stream=1) for i in range(3))
    torch.testing.assert_close(images, expected)


def test_ddim_with_eta_one_draws_the_images_of_ddpm() -> None:
    net = TinyNet()
    ddim = SamplerConfig("ddim", eta=1.0)
    ddpm = SamplerConfig("ddpm", variance="fixed_small")
    a, b = (sample(net, SCHEDULE, 0.5, range(4), SHAPE, s) for s in (ddim, ddpm))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", [SamplerConfig(steps=50), SamplerConfig("ddim", 20)])
def test_a_seed_is_an_image_in_any_batch_and_on_any_rank(sampler: SamplerConfig) -> None:
    net, strategy, seeds = TinyNet(), Strategy((0.5, 1.0), (0.0,)), [7, 1, 2**40, -3, 5, 6, 8, 9]

    def draw(seeds, batch_size: int) -> Tensor:
        return sample(net, SCHEDULE, strategy, seeds, SHAPE, sampler, batch_size=batch_size)

    whole = draw(seeds, 8)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 8
    ranks = torch.cat([draw(part, 3) for part in (seeds[:4], seeds[4:])])
    for other in (draw(seeds, 1), draw(seeds, 3), draw(seeds[::-1], 8).flip(0), ranks):
        assert (other - whole).abs().max().item() <= 1e-3
        assert (to_uint8(other) != to_uint8(whole)).float().mean().item() < 0.01


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_seed_is_an_image_with_a_real_network(batch_size: int) -> None:
    torch.manual_seed(0)
    config = UNetConfig(image_size=8, image_channels=1, ch=32, ch_mult=(1, 2), num_res_blocks=1)
    net = SlimmableNetwork(config)
    for parameter in net.parameters():  # the last layers start at zero: make them count
        nn.init.normal_(parameter, std=0.1)
    strategy, sampler = Strategy((0.5, 1.0), (0.0,)), SamplerConfig("ddim", 8, eta=0.5)

    def draw(batch_size: int) -> Tensor:
        return sample(net, SCHEDULE, strategy, range(4), (1, 8, 8), sampler, batch_size=batch_size)

    whole, other = draw(4), draw(batch_size)
    assert whole.std().item() > 0.1
    assert (other - whole).abs().max().item() <= 1e-3
    assert (to_uint8(other) != to_uint8(whole)).float().mean().item() < 0.01


def test_deterministic_ddim_uses_the_start_only_and_noise_differs_by_step() -> None:
    """With a zero prediction, x0 = x / alpha: DDIM keeps the start's direction, DDPM does not."""
    store: list[Tensor] = []
    zero = lambda x, t, width: torch.zeros_like(x)  # noqa: E731
    sample(zero, SCHEDULE, 1.0, *full(1, kind="ddim", steps=5), callback=kept(store))
    ratio = store[3] / store[0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio.mean().item()))
    torch.testing.assert_close(store[0], normal([0], 0, SHAPE))
    sample(zero, SCHEDULE, 1.0, *full(1, kind="ddpm", steps=5), callback=kept(store))
    assert (store[8] / store[5]).std().item() > 0.01


def test_clipping_keeps_x0_inside() -> None:
    inside: list[float] = []

    def callback(evaluation: Evaluation, x_t: Tensor, x0: Tensor) -> None:
        inside.append(x0.abs().max().item())

    sampler = SamplerConfig("ddim", 10)
    sample(TinyNet(), SCHEDULE, 1.0, range(2), SHAPE, sampler, callback=callback)
    assert max(inside) <= 1.0
    free = SamplerConfig("ddim", 10, clip_denoised=False)
    images = sample(TinyNet(), SCHEDULE, 1.0, range(2), SHAPE, free, callback=callback)
    assert max(inside) > 1.0
    assert images.abs().max().item() > 1.0  # latents are not pixels: nothing else clips


def test_what_the_network_and_the_callbacks_see() -> None:
    calls: list[tuple] = []
    done: list[tuple[int, int]] = []
    seen: list[int] = []
    net = TinyNet().train()

    def recorder(x: Tensor, t: Tensor, width: float) -> Tensor:
        calls.append((x.shape[0], x.dtype, set(t.tolist()), t.dtype, width))
        assert x.is_contiguous(memory_format=torch.channels_last)
        return torch.zeros_like(x, memory_format=torch.contiguous_format)

    images = sample(
        recorder,
        SCHEDULE,
        Strategy((0.5, 1.0), (0.0,)),
        torch.arange(5),
        SHAPE,
        SamplerConfig("ddim", 4),
        batch_size=3,
        dtype=torch.bfloat16,
        progress=lambda a, b: done.append((a, b)),
        callback=lambda evaluation, x_t, x0: seen.append(evaluation.index),
    )
    assert [c[0] for c in calls] == [3, 3, 3, 3, 2, 2, 2, 2]
    assert {c[1] for c in calls} == {torch.bfloat16}
    assert [c[2] for c in calls[:4]] == [{999}, {666}, {333}, {0}]
    assert [c[4] for c in calls[:4]] == [0.5, 0.5, 0.5, 1.0]  # log-SNR is 0 at t = 258
    assert done == [(i, 8) for i in range(1, 9)]
    assert seen == [0, 1, 2, 3] * 2
    assert images.dtype == torch.float32
    assert not images.is_inference()
    sample(net, SCHEDULE, 1.0, [0], SHAPE, SamplerConfig("ddim", 2))
    assert all(module.training for module in net.modules())


def test_no_seeds_no_images() -> None:
    assert sample(TinyNet(), SCHEDULE, 1.0, [], SHAPE).shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"shape": (8, 8)}, ValueError, r"shape is \(8, 8\); need \(C, H, W\)"),
        ({"shape": (3, 0, 8)}, ValueError, r"shape is \(3, 0, 8\)"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"dtype": torch.int64}, ValueError, "dtype is torch.int64"),
        ({"dtype": "float32"}, ValueError, "dtype is float32; need a floating dtype"),
        ({"seeds": [0.5]}, TypeError, "need integers"),
        ({"strategy": 1.5}, ValueError, "need 0 < width <= 1"),
        ({"strategy": "x"}, TypeError, "need a Strategy or a width"),
        ({"parameterisation": "score"}, ValueError, "need one of 'epsilon', 'x0', 'v'"),
        ({"sampler": SamplerConfig(steps=2000)}, ValueError, "need steps <= 1000"),
        ({"net": lambda x, t, w: x[:, :1]}, ValueError, r"returned shape \(1, 1, 8, 8\)"),
        ({"labels": [1, 2]}, ValueError, r"labels is .*\(2,\); need \[1\] integers, one per seed"),
        ({"labels": [0.5]}, ValueError, r"labels is torch.float32"),
        ({"method": lambda d, x, v, n: None}, ValueError, "the sampler returned NoneType"),
        ({"method": lambda d, x, v, n: x.sum()}, ValueError, r"the sampler returned \(\)"),
        ({"method": lambda d, x, v, n: x / 0}, ValueError, "images are not finite"),
        ({"levels": []}, ValueError, "levels are none"),
        ({"levels": 3}, TypeError, r"levels is \[3\]; need Levels"),
        ({"levels": [500, 0]}, TypeError, r"levels is \[500, 0\]; need Levels"),
        ({"shape": 3}, ValueError, r"shape is 3; need \(C, H, W\)"),
        ({"shape": ("a", 4, 4)}, ValueError, r"shape is \('a', 4, 4\)"),
        ({"seeds": [2**63]}, ValueError, r"need -2\^63 <= seed"),
        ({"labels": ["a"]}, TypeError, r"labels is \['a'\]; need \[1\] integers"),
        ({"net": lambda x, t, w: None}, ValueError, "the network returned NoneType at width 1"),
    ],
)
def test_bad_arguments(settings: dict, error: type[Exception], text: str) -> None:
    arguments = {
        "net": TinyNet(),
        "schedule": SCHEDULE,
        "strategy": 1.0,
        "seeds": [0],
        "shape": SHAPE,
        "sampler": SamplerConfig("ddim", 2),
        **settings,
    }
    with pytest.raises(error, match=text):
        sample(**arguments)


def test_cosine_schedule_samples_too() -> None:
    net = GaussianData(COSINE)
    images = sample(net, COSINE, 1.0, *full(32, kind="ddim", steps=100))
    assert images.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert images.std().item() == pytest.approx(SPREAD, rel=0.1)


def test_what_is_made_of_each_batch_is_kept() -> None:
    """In the order of the seeds, outside of inference mode."""
    sizes = []

    def finish(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return to_uint8(images).flatten(1)[:, :5]

    settings = full(7, kind="ddim", steps=3)
    net = GaussianData(SCHEDULE)
    images = sample(net, SCHEDULE, 1.0, *settings, batch_size=3)
    found = sample(net, SCHEDULE, 1.0, *settings, batch_size=3, finish=finish)
    assert sizes == [3, 3, 1]
    assert torch.equal(found, to_uint8(images).flatten(1)[:, :5])
    assert not found.is_inference()
