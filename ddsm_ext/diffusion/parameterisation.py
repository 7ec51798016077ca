"""What the network predicts: epsilon, x0 or v.

With alpha = sqrt(alpha-bar), sigma = sqrt(1 - alpha-bar) and x_t = alpha x0 + sigma epsilon:
v = alpha epsilon - sigma x0, x0 = alpha x_t - sigma v, epsilon = sigma x_t + alpha v.

Source: Ho et al. 2020, eq. 4 and 15; Salimans & Ho 2022, section 4 and appendix D.
"""

from __future__ import annotations

from torch import Tensor

from ddsm_ext.diffusion.config import PARAMETERISATIONS
from ddsm_ext.diffusion.process import check_batch, per_image
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.settings import check_choice


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

    Source: Salimans & Ho 2022, section 4.
    """
    check_choice("training_target: parameterisation", parameterisation, PARAMETERISATIONS)
    check_batch("training_target", x0, noise, t)
    if parameterisation == "epsilon":
        return noise
    if parameterisation == "x0":
        return x0
    alpha, sigma = schedule.signal_and_noise(t)  # [N], [N]
    return (per_image(alpha, x0) * noise - per_image(sigma, x0) * x0).to(x0.dtype)
