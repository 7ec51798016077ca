"""What holds for all samplers: their order, seeds, spacings, and what they say they evaluate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sampling.mixture import Recorder, draws, exploding, gauss, mixture, preserving
from sampling.toys import SHAPE, TinyNet
from torch import Tensor

from ddsm_ext.diffusion import (
    CLEAN,
    PREDICTIONS,
    DiffusionConfig,
    Level,
    NoiseSchedule,
    make_schedule,
)
from ddsm_ext.sampling import SAMPLERS, SamplerConfig, Strategy, evaluations, noise_levels, sample
from ddsm_ext.sampling.config import SPACINGS
from ddsm_ext.sampling.levels import configured, prediction_gains

SCHEDULES = {name: make_schedule(DiffusionConfig(schedule=name)) for name in ("linear", "edm")}
LINEAR = SCHEDULES["linear"]
# Kind, settings and the power of the step with which the error of the flow falls: a single step of
# order 1, where there are no outputs yet or at the end, makes an error of order 2 by itself.
ORDERS: list[tuple[str, dict[str, Any], int]] = [
    ("ddim", {}, 1),
    ("euler", {}, 1),
    ("euler_ancestral", {"eta": 0.0}, 1),
    ("heun", {}, 2),
    ("dpm_2", {}, 2),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2m", {"variant": "heun"}, 2),
    ("dpm_multistep", {"order": 1}, 1),
    ("dpm_multistep", {"order": 2, "form": "noise"}, 2),
    ("dpm_multistep", {"order": 3}, 2),
    ("dpm_multistep", {"order": 3, "form": "noise"}, 2),
    ("dpm_singlestep", {"order": 2}, 2),
    ("dpm_singlestep", {"order": 2, "form": "noise"}, 2),
    ("dpm_singlestep", {"order": 3}, 2),
    ("dpm_singlestep", {"order": 3, "form": "noise"}, 2),
    ("unipc", {"order": 2}, 2),
    ("unipc", {"order": 3}, 2),
    ("unipc", {"order": 2, "variant": "bh1"}, 2),
]


def flow_error(kind: str, settings: dict, steps: int, schedule: NoiseSchedule) -> float:
    """Distance from the end of the flow: for N(0.3, 0.5²) it keeps (x - alpha 0.3) / deviation."""
    ends = {"sigma_min": 0.5, "sigma_max": 2.0}
    sampler = SamplerConfig(kind, steps, spacing="log_snr", final="sigma_min", **ends, **settings)
    levels = noise_levels(schedule, sampler)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    here, there = levels[0], levels[-1]

    def deviation(level: Level) -> float:
        return math.sqrt(level.alpha**2 * 0.25 + level.variance)

    exact = there.alpha * 0.3 + deviation(there) / deviation(here) * (x - here.alpha * 0.3)
    found = configured(sampler, schedule)(Recorder(gauss), x, levels, None)
    return float((found - exact).abs().max())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("kind", "settings", "order"), ORDERS)
def test_the_error_falls_with_the_order(kind: str, settings: dict, order: int, name: str) -> None:
    few, many = (flow_error(kind, settings, steps, SCHEDULES[name]) for steps in (48, 96))
    assert few / many > 0.85 * 2**order


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_seed_is_an_image_in_any_batch(kind: str) -> None:
    churn = {"s_churn": 3.0} if "s_churn" in SAMPLERS[kind].options else {}
    sampler = SamplerConfig(kind, 9, **churn)
    strategy, seeds = Strategy((0.5, 1.0), (0.0,)), [7, 1, 2**40, -3]

    def draw(seeds: list[int], batch_size: int) -> Tensor:
        return sample(TinyNet(), LINEAR, strategy, seeds, SHAPE, sampler, batch_size=batch_size)

    whole = draw(seeds, 4)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 4
    for other in (draw(seeds, 1), draw(seeds, 3), draw(seeds[::-1], 4).flip(0)):
        assert (other - whole).abs().max().item() <= 1e-3


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_sampler_with_every_spacing_evaluates_what_it_says(kind: str, spacing: str) -> None:
    strategy = Strategy((0.5, 1.0), (-1.0,))
    for name, schedule in SCHEDULES.items():
        if name == "edm" and kind == "ddpm":
            continue
        for steps in (1, 2, 7):
            asked: list[tuple[float, float]] = []

            def net(x: Tensor, t: Tensor, width: float, asked: list = asked) -> Tensor:
                asked.append((float(t[0]), width))
                return torch.zeros_like(x)

            sampler = SamplerConfig(kind, steps, spacing=spacing)
            images = sample(net, schedule, strategy, [0, 1], SHAPE, sampler, parameterisation="v")
            assert images.isfinite().all()
            said = evaluations(schedule, sampler, strategy)
            assert [width for _, width in asked] == [e.width for e in said]
            assert [t for t, _ in asked] == pytest.approx([e.t for e in said], rel=1e-5)
            gains = prediction_gains(schedule, sampler, "v")
            assert len(gains) == len(said)
            assert gains[-1] != 0.0


def test_levels_that_do_not_preserve_the_variance_are_refused_by_ddpm() -> None:
    with pytest.raises(ValueError, match=r"ddpm: alpha² \+ sigma² is 6401 at t = 999; need 1"):
        evaluations(SCHEDULES["edm"], SamplerConfig("ddpm", 5))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("row", PREDICTIONS)
def test_exact_networks_of_every_parameterisation_give_the_data(row: str, name: str) -> None:
    """The network's output for pixels of N(0.3, 0.5²), from what it is given alone."""
    schedule, prediction = SCHEDULES[name], PREDICTIONS[row]
    levels = noise_levels(schedule, SamplerConfig("heun", 40, spacing="karras"))
    at = iter(levels[:1] + [level for level in levels[1:-1] for _ in range(2)])

    def net(x: Tensor, t: Tensor, width: float) -> Tensor:
        level = next(at)
        assert float(t[0]) == pytest.approx(prediction.time(level), rel=1e-6)
        noisy = x.double() / prediction.input_scale(level)
        a, b = prediction.x0_map(level)
        return (gauss(noisy, level) - a * noisy) / b

    sampler = SamplerConfig("heun", 40, spacing="karras", clip_denoised=False)
    images = sample(net, schedule, 1.0, range(64), SHAPE, sampler, parameterisation=row,
                    dtype=torch.float64)  # fmt: skip
    assert images.mean().item() == pytest.approx(0.3, abs=5 * 0.5 / math.sqrt(images.numel()))
    assert images.std().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("kind", [kind for kind in SAMPLERS if kind != "ddpm"])
def test_images_do_not_depend_on_the_scale_of_levels(kind: str) -> None:
    """x at alpha and sigma is alpha times x at 1 and sigma / alpha."""
    row, generator = SAMPLERS[kind], torch.Generator().manual_seed(0)
    scaled = noise_levels(LINEAR, SamplerConfig(kind, 12, spacing="karras"))
    z = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    churn = {"s_churn": 3.0} if "s_churn" in row.options else {}
    ends = []
    for scale in (preserving, exploding):
        levels = [*(scale(level.log_snr) for level in scaled[:-1]), CLEAN]
        options = {**churn, "level_at": scale} if row.between else {}
        x = levels[0].sigma * z[0]
        ends.append(row.method(Recorder(), x, levels, draws(z[1:]), **options))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["dpmpp_2m", "dpm_multistep", "unipc"])
def test_multistep_samplers_restart_where_the_width_changes(kind: str) -> None:
    """There the step is DDIM's: alpha' x0 + sigma' epsilon (Song et al. 2021, eq. 12)."""
    levels = [LINEAR.level(t) for t in range(900, 0, -50)]
    change = 7
    strategy = Strategy((0.5, 1.0), ((levels[change - 1].log_snr + levels[change].log_snr) / 2,))
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)

    def differences(restart: bool) -> list[float]:
        denoise = Recorder(strategy=strategy)
        options = {"order": 3} if kind != "dpmpp_2m" else {}
        SAMPLERS[kind].method(
            denoise, z, [*levels, CLEAN], None, restart_on_width_change=restart, **options
        )
        found = []
        for i, x in enumerate(denoise.seen[:-1]):
            here, there = levels[i], levels[i + 1]
            x0 = mixture(x, here)
            epsilon = (x - here.alpha * x0) / here.sigma
            straight = there.alpha * x0 + there.sigma * epsilon
            found.append(float((denoise.seen[i + 1] - straight).abs().max()))
        return found

    without, restarted = differences(False), differences(True)
    assert restarted[:change] == without[:change]
    assert restarted[change] < 1e-12
    assert without[change] > 1e-6
    assert restarted[change + 1] > 1e-6  # two outputs of one width again


def test_unipc_of_one_step_to_the_clean_image_is_its_prediction() -> None:
    level, x = LINEAR.level(500), torch.linspace(-1, 1, 4, dtype=torch.float64)
    for kind in ("unipc", "dpmpp_2m", "dpm_singlestep", "heun", "dpm_2"):
        row = SAMPLERS[kind]
        options = {"level_at": LINEAR.level_at} if row.between else {}
        found = row.method(Recorder(), x, [level, CLEAN], None, **options)
        torch.testing.assert_close(found, mixture(x, level), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["heun", "dpm_2", "dpmpp_2s_ancestral", "unipc", "dpm_singlestep"])
def test_levels_without_signal_are_refused_where_a_method_divides_by_it(kind: str) -> None:
    start, row = Level(999, -math.inf, -math.inf, 1.0), SAMPLERS[kind]
    options = {"level_at": LINEAR.level_at} if row.between else {}
    x = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"{kind}: alpha is 0 at t = 999; need alpha > 0"):
        row.method(Recorder(), x, [start, LINEAR.level(500), CLEAN], lambda: x, **options)


def test_unipc_with_bh1_has_to_end_noisy() -> None:
    with pytest.raises(ValueError, match="variant is 'bh1' and sigma ends at 0; need final"):
        evaluations(LINEAR, SamplerConfig("unipc", 5, variant="bh1"))
    ends_noisy = SamplerConfig("unipc", 5, variant="bh1", final="sigma_min")
    assert len(evaluations(LINEAR, ends_noisy)) == 5


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("dpm_multistep", {"order": 4}, "dpm_multistep: order is 4; need 1 <= order <= 3"),
        ("dpm_singlestep", {"order": 0}, "dpm_singlestep: order is 0; need 1 <= order <= 3"),
        ("unipc", {"order": 2.0}, r"unipc: order is 2\.0; need 1 <= order <= 3"),
        ("dpm_multistep", {"form": "x0"}, "form is 'x0'; need one of 'data', 'noise'"),
        ("dpm_singlestep", {"form": "eps"}, "form is 'eps'; need one of 'data', 'noise'"),
        ("dpmpp_2m", {"variant": "bh1"}, "variant is 'bh1'; need one of 'midpoint', 'heun'"),
        ("unipc", {"variant": "heun"}, "variant is 'heun'; need one of 'bh2', 'bh1'"),
        ("ddpm", {"variance": "large"}, "variance is 'large'; need one of 'fixed_large'"),
    ],
)
def test_options_that_no_formula_is_for(kind: str, options: dict, text: str) -> None:
    x = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=text):
        SAMPLERS[kind].method(Recorder(), x, [LINEAR.level(9), CLEAN], lambda: x, **options)
