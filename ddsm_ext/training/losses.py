"""What an image of a training step counts: targets, weights of noise levels, learned variances."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.diffusion.prediction import (
    Prediction,
    mse_per_image,
    network_input,
    training_target,
)
from ddsm_ext.diffusion.schedule import NoiseSchedule, add_noise, per_image
from ddsm_ext.diffusion.variational import variational_terms
from ddsm_ext.settings import Refusal
from ddsm_ext.training.config import TrainConfig

# Weight of a squared error of x0 by signal-to-noise ratio [N]; "uniform" is 1 of the prediction's
# own error. The names are those of `training.config.LOSS_WEIGHTINGS`.
WEIGHTINGS: dict[str, Callable[[Tensor, TrainConfig], Tensor]] = {
    # Hang et al. 2023 (arXiv 2303.09556)
    "min_snr": lambda snr, config: snr.clamp(max=config.min_snr_gamma),
    # Crowson et al. 2024 (arXiv 2401.11605), section 3.3
    "min_snr_soft": lambda snr, config: 1.0 / (1.0 / snr + 1.0 / config.min_snr_gamma),
    # Choi et al. 2022 (arXiv 2204.00227), eq. 8: of epsilon 1 / (k + SNR)^gamma
    "p2": lambda snr, config: snr / (config.p2_k + snr) ** config.p2_gamma,
    # Karras et al. 2022, table 1: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
    "edm": lambda snr, config: snr + config.edm_sigma_data**-2,
}


def loss_weights(
    t: Tensor, schedule: NoiseSchedule, config: TrainConfig, row: Prediction
) -> Tensor:
    """Weight of each image's squared error, [N] float32.

    Args:
        t: timestep of each image [N].
        schedule: log-SNR of each timestep.
        config: which weighting; all but "uniform" weigh the error of x0, whatever is predicted.
        row: what is predicted.
    """
    if config.loss_weighting == "uniform":
        return torch.ones(len(t), dtype=torch.float32, device=t.device)
    snr = schedule.log_snr(t).exp()  # [N]
    return (WEIGHTINGS[config.loss_weighting](snr, config) / row.error_scale(snr)).float()


@dataclass
class NoisyBatch:
    """Images with noise, as some passes of a step see them.

    Args:
        draw: number of the timesteps and noise.
        x0: images [N, C, H, W].
        t: [N], int64 or between two timesteps.
        x_t: noisy images [N, C, H, W].
        images, times: what the network is given of these, [N, C, H, W] and [N].
        target: what the network should predict, [N, C, H, W].
        weights: of each image's squared error, [N].
        factors: what keeps the mean that of uniform t, [N]; None: 1.
        labels: the classes [N], which the network is given last; (): it takes none.
        augment: how the images were augmented, [N, A], which it is told by that name; None: not.
        teacher: the full width's prediction [N, C, H, W]; None: not asked for yet.
    """

    draw: int
    x0: Tensor
    t: Tensor
    x_t: Tensor
    images: Tensor
    times: Tensor
    target: Tensor
    weights: Tensor
    factors: Tensor | None
    labels: tuple[Tensor, ...] = ()
    augment: Tensor | None = None
    teacher: Tensor | None = None

    def run(self, net: Callable[..., Tensor], width: float, **more: bool) -> Tensor:
        """Return a network's output, [N, C or 2C, H, W]."""
        told = {} if self.augment is None else {"augment": self.augment}
        return net(self.images, self.times, width, *self.labels, **told, **more)

    def __len__(self) -> int:
        return len(self.x0)

    def parts(self, count: int) -> Iterator[NoisyBatch]:
        """Yield it in `count` parts of about equal size, itself where that is 1."""
        if count == 1:
            yield self
            return
        sizes = [len(part) for part in self.t.tensor_split(count)]
        start = 0
        for size in sizes:
            yield self._rows(slice(start, start + size))
            start += size

    def _rows(self, rows: slice) -> NoisyBatch:
        changes: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                changes[each.name] = value[rows]
        labels = tuple(labels[rows] for labels in self.labels)
        return dataclasses.replace(self, **changes, labels=labels)

    def mean(self, errors: Tensor) -> Tensor:
        """Mean of the errors [N] as the loss counts them."""
        return (errors if self.factors is None else errors * self.factors).mean()


@dataclass(frozen=True)
class Objective:
    """The loss of a network's output.

    Args:
        schedule: noise levels.
        config: weights of the levels, and of learned variances.
        row: what the network predicts.
    """

    schedule: NoiseSchedule
    config: TrainConfig
    row: Prediction

    def noisy(
        self,
        draw: int,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        factors: Tensor | None,
        labels: tuple[Tensor, ...] = (),
        augment: Tensor | None = None,
    ) -> NoisyBatch:
        """Return a batch with noise; arguments as `NoisyBatch` has them."""
        schedule, row = self.schedule, self.row
        x_t = add_noise(x0, noise, t, schedule)
        images, times = network_input(x_t, t, schedule, row)
        target = training_target(x0, noise, t, schedule, row)
        weights = loss_weights(t, schedule, self.config, row)
        given = (images, times, target, weights, factors, labels, augment)
        return NoisyBatch(draw, x0, t, x_t, *given)

    def errors(self, batch: NoisyBatch, output: Tensor) -> Tensor:
        """Return each image's weighted error, [N].

        Of a network with learned variances, [N, 2C, H, W], the term of the variational bound comes
        on top, in which the prediction is taken as it is.

        Raises:
            ValueError: the output has other channels, or such a network has no betas.

        Source: Nichol & Dhariwal 2021, eq. 16.
        """
        channels = batch.x0.shape[1]
        prediction = image_channels(output, channels)
        errors = batch.weights * mse_per_image(prediction, batch.target)
        if output.shape[1] == channels:
            return errors
        fraction = 0.5 * (output[:, channels:].to(errors.dtype) + 1.0)
        x0 = self._x0(batch, prediction.detach().to(errors.dtype))
        terms = variational_terms(batch.x0, batch.x_t, batch.t, x0, fraction, self.schedule)
        return errors + self.config.variance_weight * self.schedule.timesteps * terms

    def _x0(self, batch: NoisyBatch, prediction: Tensor) -> Tensor:
        """The images that predictions stand for, [N, C, H, W]."""
        alpha, sigma = self.schedule.signal_and_noise(batch.t)  # [N], [N]
        u, w = self.row.mixture(alpha, sigma)
        of_x, of_p = -w / (u * sigma - w * alpha), sigma / (u * sigma - w * alpha)
        return per_image(of_x, prediction) * batch.x_t + per_image(of_p, prediction) * prediction


def image_channels(output: Tensor, channels: int) -> Tensor:
    """Return the prediction in a network's output: all channels, or the first half.

    Raises:
        ValueError: it has neither as many channels as the images, nor twice as many.
    """
    if output.shape[1] not in (channels, 2 * channels):
        raise Refusal(
            f"train: the network returned {output.shape[1]} channels for images of {channels}; "
            f"need {channels}, or {2 * channels} with learned variances"
        )
    return output[:, :channels]
