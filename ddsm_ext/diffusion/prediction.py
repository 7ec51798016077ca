"""What the network predicts: epsilon, x0 or v, one row of a table each.

With x = alpha x0 + sigma epsilon and alpha² + sigma² = 1: v = alpha epsilon - sigma x0,
x0 = alpha x - sigma v, epsilon = sigma x + alpha v.

Source: Ho et al. 2020, eq. 4, 14 and 15; Salimans & Ho 2022, section 4 and appendix D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddsm_ext.diffusion.schedule import Level, NoiseSchedule, check_batch, per_image
from ddsm_ext.settings import Refusal, check_choice

Scales = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Prediction:
    """One meaning of the network's output p.

    Args:
        x0_map: level -> (a, b) with x0 = a x + b p.
        target: (x0, noise, scales) -> what p should be; scales() gives alpha and sigma
            [N, 1, 1, 1], computed where they are asked for.
        error_scale: SNR -> squared error of p that equals a squared error of 1 in x0, 1 / b².
    """

    x0_map: Callable[[Level], tuple[float, float]]
    target: Callable[[Tensor, Tensor, Scales], Tensor]
    error_scale: Callable[[Tensor], Tensor]


def _v(x0: Tensor, noise: Tensor, scales: Scales) -> Tensor:
    alpha, sigma = scales()
    return alpha * noise - sigma * x0


# The names are those of `diffusion.config.PARAMETERISATIONS`.
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Prediction(
        x0_map=lambda level: (1.0 / level.alpha, -level.sigma / level.alpha),
        target=lambda x0, noise, scales: noise,
        error_scale=lambda snr: snr,
    ),
    "x0": Prediction(
        x0_map=lambda level: (0.0, 1.0),
        target=lambda x0, noise, scales: x0,
        error_scale=torch.ones_like,
    ),
    "v": Prediction(
        x0_map=lambda level: (level.alpha, -level.sigma),
        target=_v,
        error_scale=lambda snr: snr + 1.0,
    ),
}


def prediction_named(what: str, name: str) -> Prediction:
    """Return the row of `PREDICTIONS`; `what` names the argument in the error."""
    return PREDICTIONS[check_choice(what, name, PREDICTIONS)]


def training_target(
    x0: Tensor, noise: Tensor, t: Tensor, schedule: NoiseSchedule, parameterisation: str
) -> Tensor:
    """Return what the network should output for x_t = add_noise(x0, noise, t).

    Args:
        x0: clean images [N, C, H, W].
        noise: the noise that was added, same shape.
        t: timestep of each image [N].
        parameterisation: "epsilon", "x0" or "v".

    Returns:
        [N, C, H, W]: `noise`, `x0`, or v = alpha noise - sigma x0.

    Raises:
        ValueError: a shape or the parameterisation's name does not fit.
    """
    row = prediction_named("training_target: parameterisation", parameterisation)
    check_batch("training_target", x0, noise, t)

    def scales() -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.signal_and_noise(t)  # [N], [N]
        return per_image(alpha, x0), per_image(sigma, x0)

    return row.target(x0, noise, scales).to(x0.dtype)


def mse_per_image(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over each image, [N] in float32 or wider.

    Args:
        prediction: [N, C, H, W].
        target: the same shape.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it).

    Source: Ho et al. 2020, eq. 14, with the mean over an image's elements.
    """
    if prediction.shape != target.shape:
        raise Refusal(
            f"mse_per_image: prediction has shape {tuple(prediction.shape)}, "
            f"target has {tuple(target.shape)}; need equal shapes"
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(dim=1)  # [N]
