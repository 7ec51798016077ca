"""Training of a KL autoencoder, whose latents a diffusion model is trained on.

Source: Rombach et al. 2022 (arXiv 2112.10752), appendix G.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddsm_ext.data.dataset import ImageDataset
from ddsm_ext.data.pixels import from_uint8
from ddsm_ext.diffusion.noise import generator
from ddsm_ext.io.lock import RunLock
from ddsm_ext.io.weights import copy_tensors
from ddsm_ext.training.autoencoder_config import AutoencoderConfig
from ddsm_ext.training.batches import Batch, StepBatches, Stream
from ddsm_ext.training.ema import Averages
from ddsm_ext.training.optimizer import clipped_step, make_optimizer
from ddsm_ext.training.session import Picture, Progress, Session, TrainResult
from ddsm_ext.training.state import Snapshot


def moments(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance of the latents of images.

    Args:
        net: diffusers' AutoencoderKL, or what encodes as it.
        images: in [-1, 1], [N, C, H, W].

    Returns:
        float32 [N, c, h, w] each.
    """
    posterior = cast(Any, net).encode(images).latent_dist
    return posterior.mean.float(), posterior.logvar.float()


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, e^logvar) | N(0, 1)), summed over each image's latents.

    Args:
        mean: [N, c, h, w].
        logvar: [N, c, h, w].

    Returns:
        [N].
    """
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)


@dataclass(frozen=True)
class _Done:
    """What a step did."""

    figures: dict[str, float]  # loss, its two parts, and the norm of the gradients before the clip
    applied: bool  # False: something was not finite and no weight was changed
    stop_wanted: bool


@dataclass(frozen=True)
class AutoencoderSteps:
    """Takes the steps of an autoencoder's training.

    The loss of an image is |x - x'|_1 + kl_weight * KL, by the number of its values.

    Args:
        net: diffusers' AutoencoderKL, on `device`.
        optimizer: over its parameters.
        averages: of its weights.
        config: of its training.
        device: where to compute.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    averages: Averages
    config: AutoencoderConfig
    device: torch.device

    def __call__(self, batch: Batch, step: int, stop_wanted: bool) -> _Done:
        """One step: loss, clip, optimiser, average; nothing changes where one is not finite."""
        x = from_uint8(batch.images, self.device)  # [N, C, H, W]
        x = x.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        bf16 = self.config.autocast == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            mean, logvar = moments(self.net, x)  # [N, c, h, w]
            z = mean + (0.5 * logvar).exp() * self._noise(mean, step)
            decoded = cast(Any, self.net).decode(z).sample.float()  # [N, C, H, W]
        error = (decoded - x).abs().mean()
        kl = divergence(mean, logvar).mean() / x[0].numel()
        loss = error + self.config.kl_weight * kl
        loss.backward()
        parts = torch.stack([loss, error, kl]).detach()
        values, norm, applied = clipped_step(self.net, self.optimizer, self.config, step, parts)
        if applied:
            self.averages.update(self.net, step)
        figures = dict(zip(("loss", "l1", "kl"), values, strict=True))
        return _Done({**figures, "grad_norm": norm}, applied, stop_wanted)

    def _noise(self, mean: Tensor, step: int) -> Tensor:
        """Standard normal, drawn on the CPU, of the shape of the latents [N, c, h, w]."""
        stream = generator(self.config.seed, Stream.NOISE, 0, step)
        noise = torch.randn(mean.shape, generator=stream, dtype=torch.float32, device="cpu")
        return noise.to(self.device)


def train_autoencoder(
    net: nn.Module,
    dataset: ImageDataset,
    config: AutoencoderConfig,
    run_dir: str | Path,
    *,
    device: torch.device | str = "cpu",
    pictures: Mapping[str, Picture] | None = None,
    on_damage: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a KL autoencoder until `config.steps` steps are done; then it holds their average.

    The run resumes from its newest complete checkpoint; weights, average, optimiser and log then
    equal those of an uninterrupted run bit for bit.

    Args:
        net: diffusers' AutoencoderKL, or what encodes and decodes as it; moved to `device`.
        dataset: images uint8 [N, C, H, W].
        run_dir: run folder; gets log.jsonl, checkpoints/ and samples/.
        device: where to train.
        pictures: as of `Session`.
        on_damage: called with one sentence for a damaged checkpoint passed over; None warns.
        progress: called after every step with (steps done, of all, newest log row).

    Raises:
        NonFiniteError: losses or gradients were not finite `config.max_bad_steps` times in a row.
        ValueError: the run's checkpoint belongs to other data, settings or another network; none
            of its checkpoints is whole; or another process writes into the run.
    """
    run_dir, device = Path(run_dir), torch.device(device)
    with RunLock(run_dir):
        net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        averages, optimizer = Averages(net, config), make_optimizer(net, config)
        identity = {"data": dataset.digest, "flips": dataset.flips}
        snapshot = Snapshot(run_dir, net, averages, optimizer, config, identity)
        state = snapshot.restore(on_damage)
        steps = AutoencoderSteps(net, optimizer, averages, config, device)
        session = Session(net, config, run_dir, snapshot, state, steps, pictures or {})
        result = session.run(StepBatches(dataset, config.batch_size, config.seed), progress)
        copy_tensors(averages.ema.tensors, net.state_dict(), "ema")
    net.eval()
    return result
