"""What the network predicts (epsilon, x0 or v) and the conversions between them.

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
        schedule: the noise schedule.
        parameterisation: "epsilon", "x0" or "v".

    Returns:
        [N, C, H, W]: `noise`, `x0`, or v = alpha noise - sigma x0.

    Raises:
        ValueError: a shape or the parameterisation's name does not fit.

    Source: Salimans & Ho 2022, section 4.
    """
    check_choice("training_target: parameterisation", parameterisation, PARAMETERISATIONS)
    check_batch("training_target", x0, t, noise=noise)
    if parameterisation == "epsilon":
        return noise
    if parameterisation == "x0":
        return x0
    alpha, sigma = _alpha_sigma(x0, t, schedule)
    return (alpha * noise - sigma * x0).to(x0.dtype)


def predict_x0(
    prediction: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, parameterisation: str
) -> Tensor:
    """Return the clean image that a prediction at (x_t, t) implies.

    Args:
        prediction: network output [N, C, H, W].
        x_t: network input, same shape.
        t: timestep of each image [N].
        schedule: the noise schedule.
        parameterisation: what `prediction` is: "epsilon", "x0" or "v".

    Returns:
        x0 [N, C, H, W], not clipped.

    Source: Ho et al. 2020, eq. 15; Salimans & Ho 2022, appendix D.
    """
    check_choice("predict_x0: parameterisation", parameterisation, PARAMETERISATIONS)
    check_batch("predict_x0", x_t, t, prediction=prediction)
    if parameterisation == "x0":
        return prediction
    alpha, sigma = _alpha_sigma(x_t, t, schedule)
    if parameterisation == "v":
        return (alpha * x_t - sigma * prediction).to(x_t.dtype)
    return ((x_t - sigma * prediction) / alpha).to(x_t.dtype)


def predict_epsilon(
    prediction: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, parameterisation: str
) -> Tensor:
    """Return the noise that a prediction at (x_t, t) implies; arguments as in `predict_x0`.

    Source: Song et al. 2021, eq. 9 solved for epsilon; Salimans & Ho 2022, appendix D.
    """
    check_choice("predict_epsilon: parameterisation", parameterisation, PARAMETERISATIONS)
    check_batch("predict_epsilon", x_t, t, prediction=prediction)
    if parameterisation == "epsilon":
        return prediction
    alpha, sigma = _alpha_sigma(x_t, t, schedule)
    if parameterisation == "v":
        return (sigma * x_t + alpha * prediction).to(x_t.dtype)
    return ((x_t - alpha * prediction) / sigma).to(x_t.dtype)


def predict_v(
    prediction: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, parameterisation: str
) -> Tensor:
    """Return v = alpha epsilon - sigma x0 implied by a prediction; arguments as in `predict_x0`.

    Source: Salimans & Ho 2022, section 4.
    """
    check_choice("predict_v: parameterisation", parameterisation, PARAMETERISATIONS)
    check_batch("predict_v", x_t, t, prediction=prediction)
    if parameterisation == "v":
        return prediction
    alpha, sigma = _alpha_sigma(x_t, t, schedule)
    if parameterisation == "epsilon":  # x0 = (x_t - sigma epsilon) / alpha put into v
        return ((prediction - sigma * x_t) / alpha).to(x_t.dtype)
    return ((alpha * x_t - prediction) / sigma).to(x_t.dtype)


def _alpha_sigma(x: Tensor, t: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    alpha, sigma = schedule.signal_and_noise(t)  # [N], [N]
    return per_image(alpha, x), per_image(sigma, x)  # [N, 1, 1, 1] each
