"""Sandwich rule: full, smallest and random middle widths in one step, their gradients summed.

Source: Yu & Huang 2019, "Universally slimmable networks and improved training techniques", for the
rule and in-place distillation; DDSM (arXiv 2310.03337) for its use in a diffusion model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddsm_ext.diffusion.noise import generator
from ddsm_ext.diffusion.prediction import PREDICTIONS, mse_per_image, training_target
from ddsm_ext.diffusion.schedule import NoiseSchedule, add_noise
from ddsm_ext.settings import Refusal
from ddsm_ext.training.batches import Stream
from ddsm_ext.training.config import TrainConfig


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did."""

    losses: dict[float, float]  # width -> mean loss against the true target
    grad_norm: float  # of the summed gradients, before the clip
    applied: bool  # False: something was not finite and no weight was changed
    stop_wanted: bool  # a rank was asked to stop


def widths_of_step(config: TrainConfig, step: int) -> list[float]:
    """Widths of a step: the largest, the smallest, then random distinct ones between them.

    Args:
        config: widths and how many middle ones.
        step: 0-based; the choice is a function of (seed, step).
    """
    largest, *middle = config.widths
    if not middle:
        return [largest]
    smallest = middle.pop()
    stream = generator(config.seed, Stream.WIDTH, step)
    order = torch.randperm(len(middle), generator=stream, device="cpu").tolist()
    return [largest, smallest, *(middle[index] for index in order[: config.middle_widths])]


def draw(
    x0: Tensor, config: TrainConfig, timesteps: int, step: int, rank: int, index: int
) -> tuple[Tensor, Tensor]:
    """Timesteps [N] int64 and noise [N, C, H, W] of one (step, rank, draw), drawn on the CPU."""
    stream = generator(config.seed, Stream.NOISE, rank, step, index)
    t = torch.randint(timesteps, (len(x0),), generator=stream, device="cpu")  # [N]
    noise = torch.randn(
        x0.shape, generator=stream, dtype=torch.float32, device="cpu"
    )  # [N, C, H, W]
    return t.to(x0.device), noise.to(x0.device)


def loss_weights(
    t: Tensor, schedule: NoiseSchedule, config: TrainConfig, parameterisation: str
) -> Tensor:
    """Weight of each image's squared error, [N] float32.

    "min_snr" weights the error of x0 by min(SNR, gamma), whatever the network predicts.

    Source: Hang et al. 2023 (arXiv 2303.09556), "Min-SNR-gamma".
    """
    if config.loss_weighting == "uniform":
        return torch.ones(len(t), dtype=torch.float32, device=t.device)
    snr = schedule.log_snr(t).exp()  # [N]
    weight = snr.clamp(max=config.min_snr_gamma)
    return (weight / PREDICTIONS[parameterisation].error_scale(snr)).float()


@dataclass
class Sandwich:
    """A network with its optimiser, ready to take steps.

    Args:
        net: called as (x [N, C, H, W], t [N], width) -> [N, C, H, W]; with
            `config.accumulate_grad` also by the keyword `accumulate_grad=True`.
        optimizer: over the network's parameters.
        parameterisation: what the network predicts: "epsilon", "x0" or "v".
        rank: this process.
        world_size: processes in all; above 1 the gradients are averaged once a step.
        bucket_values: float32 values of one all-reduce, 25 MB as torch's DistributedDataParallel
            takes by default: what the averaging needs beside the gradients.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: NoiseSchedule
    config: TrainConfig
    parameterisation: str = "epsilon"
    rank: int = 0
    world_size: int = 1
    bucket_values: int = 25 * 2**20 // 4

    def step(
        self,
        x0: Tensor,
        step: int,
        *,
        stop_wanted: bool = False,
        on_applied: Callable[[], None] | None = None,
    ) -> StepResult:
        """One sandwich step: losses per width, one clip, one optimiser step.

        The losses and the gradient norm are checked first; unless all are finite on every rank,
        weights, optimiser and average stay as they are.

        Args:
            x0: images in [-1, 1], [N, C, H, W].
            step: 0-based step; decides widths, timesteps and noise.
            stop_wanted: whether this process was asked to stop.
            on_applied: called after the optimiser changed the weights.
        """
        config = self.config
        seed = generator(config.seed, Stream.MODULE, self.rank, step).initial_seed()
        torch.manual_seed(seed)
        self._clear_gradients()
        losses = self._backward(x0, step)
        values = torch.stack([*losses.values()]).double()  # [widths]
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        values, stop_wanted = self._average(values, gradients, stop_wanted)
        norm = torch.nn.utils.get_total_norm(gradients)
        *loss_values, grad_norm = [*values.tolist(), norm.item()]
        applied = all(math.isfinite(value) for value in (*loss_values, grad_norm))
        if applied:
            if config.grad_clip is not None:
                torch.nn.utils.clip_grads_with_norm_(self.net.parameters(), config.grad_clip, norm)
            self._apply(step)
            if on_applied is not None:
                on_applied()
        by_width = dict(zip(losses, loss_values, strict=True))
        return StepResult(by_width, grad_norm, applied, stop_wanted)

    def _clear_gradients(self) -> None:
        """Zero gradients; kernels that add into `p.grad` need it to exist."""
        self.optimizer.zero_grad(set_to_none=not self.config.accumulate_grad)
        if self.config.accumulate_grad:
            for parameter in self.net.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def _backward(self, x0: Tensor, step: int) -> dict[float, Tensor]:
        """Loss of each width, detached; gradients are left summed in the parameters."""
        config, schedule = self.config, self.schedule
        losses: dict[float, Tensor] = {}
        teacher: Tensor | None = None
        for index, width in enumerate(widths_of_step(config, step)):
            if index == 0 or not config.shared_noise:
                t, noise = draw(x0, config, schedule.timesteps, step, self.rank, index)
                x_t = add_noise(x0, noise, t, schedule)  # [N, C, H, W]
                target = training_target(x0, noise, t, schedule, self.parameterisation)
                weights = loss_weights(t, schedule, config, self.parameterisation)  # [N]
            prediction = self._predict(x_t, t, width)  # [N, C, H, W]
            loss = (weights * mse_per_image(prediction, target)).mean()
            total = loss
            if config.distill_weight:
                if teacher is None:
                    teacher = prediction.detach()
                else:
                    distance = (weights * mse_per_image(prediction, teacher)).mean()
                    total = loss + config.distill_weight * distance
            total.backward()
            losses[width] = loss.detach()
        return losses

    def _predict(self, x_t: Tensor, t: Tensor, width: float) -> Tensor:
        bf16 = self.config.autocast == "bf16"
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=bf16):
            if self.config.accumulate_grad:
                return self.net(x_t, t, width, accumulate_grad=True)
            return self.net(x_t, t, width)

    def _average(
        self, losses: Tensor, gradients: Sequence[Tensor], stop_wanted: bool
    ) -> tuple[Tensor, bool]:
        """Mean over the ranks of losses and gradients, bucket by bucket; any stop stops all."""
        if self.world_size == 1:
            return losses, stop_wanted
        head = torch.cat([losses, losses.new_tensor([stop_wanted])]).float()
        for bucket in _buckets([head, *gradients], self.bucket_values):
            flat = torch.cat([part.reshape(-1).float() for part in bucket])
            dist.all_reduce(flat)
            sums = flat.split([part.numel() for part in bucket])
            for part, total in zip(bucket, sums, strict=True):
                mean = total if part is head else total / self.world_size
                part.copy_(mean.view(part.shape))
        return head[:-1].double() / self.world_size, bool(head[-1] > 0)

    def _apply(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(step)
            for parameter in group["params"]:
                # The fused kernel walks both memories side by side: they need one layout.
                gradient = parameter.grad
                if gradient is not None and gradient.stride() != parameter.stride():
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)
        self.optimizer.step()


def _buckets(tensors: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Tensors in order, at most so many values at a time, or one tensor that alone has more."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        if bucket and held + tensor.numel() > most:
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.numel()
    yield bucket


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over all parameters, with the fused kernel."""
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    parameters = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise Refusal("train: the network has no parameters; need at least one to train")
    return kind(
        parameters,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )
