"""Losses against reference code: weights of noise levels, EDM's preconditioned losses, iDDPM's."""

from __future__ import annotations

import math

import pytest
import torch
from golden import golden
from sampling.mixture import mixture
from torch import Tensor

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.level import Level
from ddsm_ext.diffusion.prediction import PREDICTIONS, network_input, prediction_of
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.diffusion.variational import variational_terms
from ddsm_ext.training.config import TrainConfig
from ddsm_ext.training.losses import Objective, image_channels, loss_weights
from ddsm_ext.training.timesteps import LogNormal

SCHEDULE = make_schedule(DiffusionConfig())
EDM = DiffusionConfig(schedule="edm", parameterisation="edm")


def tensors(name: str, prefix: str = "") -> dict[str, Tensor]:
    found = golden(name).items()
    return {
        key.removeprefix(prefix): torch.from_numpy(value)
        for key, value in found
        if key.startswith(prefix) and value.dtype.kind in "iuf" and value.ndim
    }


def test_min_snr_weights() -> None:
    """min(SNR, 5) / SNR for epsilon; 1 where the noise dominates, 5 / SNR where it does not."""
    config = TrainConfig(loss_weighting="min_snr")
    t = torch.tensor([0, 300, 999])
    ab = SCHEDULE.signal_and_noise(t)[0].square()
    snr = ab / (1 - ab)
    rows = ("epsilon", "x0", "v")
    found = {p: loss_weights(t, SCHEDULE, config, PREDICTIONS[p]) for p in rows}
    for index, ratio in enumerate(snr.tolist()):
        assert found["epsilon"][index].item() == pytest.approx(min(ratio, 5) / ratio, rel=1e-5)
        assert found["x0"][index].item() == pytest.approx(min(ratio, 5), rel=1e-5)
        assert found["v"][index].item() == pytest.approx(min(ratio, 5) / (ratio + 1), rel=1e-5)
    assert loss_weights(t, SCHEDULE, TrainConfig(), PREDICTIONS["v"]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("changes", "row", "key"),
    [
        ({"loss_weighting": "p2", "p2_gamma": 0.0}, "epsilon", "p2/{}/gamma0_k1"),
        ({"loss_weighting": "p2", "p2_gamma": 0.5}, "epsilon", "p2/{}/gamma0.5_k1"),
        ({"loss_weighting": "p2"}, "epsilon", "p2/{}/gamma1_k1"),
        ({"loss_weighting": "min_snr"}, "epsilon", "min_snr/{}/epsilon/min_snr_5"),
        ({"loss_weighting": "min_snr", "min_snr_gamma": 1.0}, "epsilon",
         "min_snr/{}/epsilon/min_snr_1"),
        ({"loss_weighting": "min_snr"}, "x0", "min_snr/{}/start_x/min_snr_5"),
        ({"loss_weighting": "min_snr"}, "v", "min_snr/{}/velocity/vmin_snr_5"),
        ({}, "v", "min_snr/{}/velocity/constant"),
    ],
)  # fmt: skip
def test_weights_and_losses_of_the_papers_codes(
    schedule: str, changes: dict[str, float], row: str, key: str
) -> None:
    data = tensors("losses_ema")
    levels = make_schedule(DiffusionConfig(schedule=schedule))
    objective = Objective(levels, TrainConfig(**changes), PREDICTIONS[row])  # type: ignore[arg-type]
    batch = objective.noisy(0, data["x0"], data["t"], data["noise"], None, ())
    key = key.format(schedule)
    torch.testing.assert_close(batch.weights.double(), data[f"{key}/weight"], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        objective.errors(batch, data["prediction"]), data[f"{key}/loss"], rtol=1e-6, atol=0
    )


def test_soft_min_snr() -> None:
    """k-diffusion weighs its preconditioned output; gamma is 1 / sigma_data^2 there."""
    data = tensors("losses_ema", "k_diffusion/")
    schedule = make_schedule(EDM)
    t = schedule.timesteps_at(-2.0 * data["sigma"].log())
    config = TrainConfig(loss_weighting="min_snr_soft", min_snr_gamma=4.0)
    found = loss_weights(t, schedule, config, prediction_of(EDM)).double()
    torch.testing.assert_close(found, data["_weighting_soft_min_snr"], rtol=1e-6, atol=0)


def edm_levels(name: str, data: dict[str, Tensor]) -> Tensor:
    """log sigma of EDM's three losses at its random numbers (Karras et al. 2022, table 1)."""
    if name == "edm":
        return 1.2 * data["rnd_normal"] - 1.2
    if name == "ve":
        return math.log(0.02) + data["rnd_uniform"] * math.log(100 / 0.02)
    t = 1 + data["rnd_uniform"] * (1e-5 - 1)
    return 0.5 * torch.expm1(0.5 * 19.9 * t**2 + 0.1 * t).log()


@pytest.mark.parametrize("name", ["edm", "vp", "ve"])
def test_losses_of_edm(name: str) -> None:
    """Of the exact denoiser D, whose output as a network is (D - c_skip x) / c_out."""
    data = tensors("edm_samplers", "loss/")
    sigma = edm_levels(name, data).exp()
    settings = DiffusionConfig(
        schedule="edm", parameterisation=name, sigma_min=1e-5, sigma_max=1e5, timesteps=50
    )
    schedule, row = make_schedule(settings), prediction_of(settings)
    t = schedule.timesteps_at(-2.0 * sigma.log())
    y, n = (data[key][:, None, None, None] for key in ("y", "n"))
    objective = Objective(schedule, TrainConfig(), row)
    batch = objective.noisy(0, y, t, n, None, ())
    torch.testing.assert_close(batch.x_t.flatten(), data["y"] + sigma * data["n"])
    outputs = []
    for x, s in zip(batch.x_t.flatten(), sigma.tolist(), strict=True):
        level = Level(0.0, -2.0 * math.log(s), 0.0, s**2)
        a, b = row.x0_map(level)
        outputs.append((mixture(x, level) - a * x) / b)
    output = torch.stack(outputs)[:, None, None, None]
    torch.testing.assert_close(objective.errors(batch, output), data[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_the_loss_of_learned_variances(schedule: str, rescaled: bool) -> None:
    """guided-diffusion adds vb, or vb T / 1000, which for T = 1000 is the same."""
    data = tensors("gd_process")
    objective = Objective(
        make_schedule(DiffusionConfig(schedule=schedule)), TrainConfig(), PREDICTIONS["epsilon"]
    )
    batch = objective.noisy(0, data["x0"], data["t"], data["noise"], None, ())
    torch.testing.assert_close(batch.x_t, data[f"{schedule}/x_t"])
    key = f"{schedule}/losses_rescaled{int(rescaled)}"
    found = objective.errors(batch, data["model_out"])
    torch.testing.assert_close(found, data[f"{key}/loss"], rtol=1e-7, atol=0)
    plain = objective.errors(batch, data["model_out"][:, :3])
    torch.testing.assert_close(plain, data[f"{key}/mse"], rtol=1e-9, atol=0)


def test_the_variance_alone_is_trained_by_the_bound() -> None:
    objective = Objective(SCHEDULE, TrainConfig(), PREDICTIONS["epsilon"])
    x0 = torch.rand(3, 1, 4, 4) * 2 - 1
    noise = torch.randn(3, 1, 4, 4)
    batch = objective.noisy(0, x0, torch.tensor([0, 40, 900]), noise, None, ())
    output = torch.randn(3, 2, 4, 4, requires_grad=True)
    (whole,) = torch.autograd.grad(objective.errors(batch, output).sum(), output)
    image = output.detach()[:, :1].requires_grad_()
    (own,) = torch.autograd.grad(objective.errors(batch, image).sum(), image)
    assert torch.equal(whole[:, :1], own)
    assert bool((whole[:, 1:] != 0).any())


def test_a_process_without_betas_has_no_bound() -> None:
    schedule = make_schedule(EDM)
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="of a ExplodingSchedule; need whole timesteps"):
        variational_terms(x, x, torch.tensor([3]), x, x, schedule)
    with pytest.raises(ValueError, match=r"t is torch.float64 of a PreservingSchedule"):
        variational_terms(x, x, torch.tensor([3.5]).double(), x, x, SCHEDULE)


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="returned 3 channels for images of 1; need 1, or 2"):
        image_channels(torch.zeros(1, 3, 2, 2), 1)


def test_log_normal_noise_levels() -> None:
    """Mean and deviation of log sigma, and the ends of the schedule for what lies beyond."""
    schedule = make_schedule(EDM)
    t = LogNormal(schedule, -1.2, 1.2).draw(20_000, torch.Generator().manual_seed(0))
    log_sigma = schedule.signal_and_noise(t)[1].log()
    assert abs(log_sigma.mean().item() + 1.2) < 0.05
    assert abs(log_sigma.std().item() - 1.2) < 0.05
    _, times = network_input(torch.zeros(20_000, 1, 1, 1), t, schedule, prediction_of(EDM))
    torch.testing.assert_close(times.double(), log_sigma / 4, rtol=1e-5, atol=1e-6)
    wide = LogNormal(schedule, 0.0, 50.0).draw(100, torch.Generator().manual_seed(0))
    assert (wide.min().item(), wide.max().item()) == (0.0, 999.0)
