"""Sandwich rule: full, smallest and random middle widths in one step, their gradients summed.

A step of a run that is tuned for a strategy trains one width alone; all else is the same.

Source: Yu & Huang 2019, "Universally slimmable networks and improved training techniques", for the
rule and in-place distillation; DDSM (arXiv 2310.03337) for its use in a diffusion model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddsm_ext.diffusion.noise import generator
from ddsm_ext.diffusion.prediction import Prediction, mse_per_image, prediction_named
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.training.batches import Stream
from ddsm_ext.training.config import TrainConfig
from ddsm_ext.training.losses import NoisyBatch, Objective, image_channels
from ddsm_ext.training.optimizer import clipped_step, gradients_of
from ddsm_ext.training.timesteps import ErrorTable, Timesteps, Weighted, usual_timesteps
from ddsm_ext.training.tuning import Routing


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did."""

    losses: dict[float, float]  # width -> mean loss against the true target
    grad_norm: float  # of the summed gradients, before the clip
    applied: bool  # False: something was not finite and no weight was changed
    stop_wanted: bool  # a rank was asked to stop

    @property
    def figures(self) -> dict[str, float]:
        """What the log averages."""
        losses = self.losses
        return {
            "loss": sum(losses.values()) / len(losses),
            **{f"loss_w{width}": losses[width] for width in sorted(losses, reverse=True)},
            "grad_norm": self.grad_norm,
        }


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
    if config.middle_choice == "budget":
        chosen = _by_budget(middle, largest, smallest, config.middle_widths, stream)
    else:
        order = torch.randperm(len(middle), generator=stream, device="cpu").tolist()
        chosen = [middle[index] for index in order[: config.middle_widths]]
    return [largest, smallest, *chosen]


def _by_budget(
    middle: Sequence[float], largest: float, smallest: float, count: int, stream: torch.Generator
) -> list[float]:
    """The widths nearest in cost to random budgets, each once; a width w costs about w^2."""
    left = list(middle)
    chosen: list[float] = []
    while left and len(chosen) < count:
        share = float(torch.rand((), generator=stream, dtype=torch.float64, device="cpu"))
        budget = smallest**2 + share * (largest**2 - smallest**2)
        chosen.append(min(left, key=lambda width: abs(width**2 - budget)))
        left.remove(chosen[-1])
    return chosen


def draw(
    x0: Tensor, config: TrainConfig, timesteps: Timesteps, step: int, rank: int, index: int
) -> tuple[Tensor, Tensor]:
    """Timesteps [N] int64 and noise [N, C, H, W] of one (step, rank, draw), drawn on the CPU."""
    stream = generator(config.seed, Stream.NOISE, rank, step, index)
    t = timesteps.draw(len(x0), stream)  # [N]
    noise = torch.randn(
        x0.shape, generator=stream, dtype=torch.float32, device="cpu"
    )  # [N, C, H, W]
    return t.to(x0.device), noise.to(x0.device)


Conditions = tuple[Tensor | None, Tensor | None]  # labels [N], augmentation [N, A]


@dataclass(frozen=True)
class Pass:
    """A width's part of a step.

    Args:
        width: it.
        draw: number of its timesteps and noise, which it shares with passes of the same number.
        timesteps: where they are drawn from.
    """

    width: float
    draw: int
    timesteps: Timesteps


@dataclass
class Sandwich:
    """A network with its optimiser, ready to take steps.

    Args:
        net: called as (x [N, C, H, W], t [N], width) -> [N, C, H, W], or [N, 2C, H, W] with
            learned variances; with labels as (x, t, width, y [N]); with `config.accumulate_grad`
            also by the keyword `accumulate_grad=True`.
        optimizer: over the network's parameters.
        parameterisation: what the network predicts and is given: a name in
            `diffusion.PREDICTIONS`, or a row such as `diffusion.prediction_of(config)`.
        rank: this process.
        world_size: processes in all; above 1 the gradients are averaged once a step.
        bucket_values: float32 values of one all-reduce, 25 MB as torch's DistributedDataParallel
            takes by default: what the averaging needs beside the gradients.
        teacher: a network in eval mode, without gradients, whose full width narrow ones are drawn
            to; None: the network's own full width in the same step.
        errors: running errors that `config.t_importance` draws by; None: t is uniform.
        routing: which steps train one width on its own noise levels; None: none does.
        null_label: label that stands for none, which `config.label_dropout` of the images get in
            place of their own; None: there is none, and all keep theirs.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: NoiseSchedule
    config: TrainConfig
    parameterisation: str | Prediction = "epsilon"
    rank: int = 0
    world_size: int = 1
    bucket_values: int = 25 * 2**20 // 4
    teacher: nn.Module | None = None
    errors: ErrorTable | None = None
    routing: Routing | None = None
    null_label: int | None = None
    _objective: Objective = field(init=False, repr=False)
    _usual: Timesteps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        row = prediction_named("Sandwich: parameterisation", self.parameterisation)
        self._objective = Objective(self.schedule, self.config, row)
        self._usual = usual_timesteps(self.schedule, self.config)

    def step(
        self,
        x0: Tensor,
        step: int,
        labels: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        stop_wanted: bool = False,
        on_applied: Callable[[], None] | None = None,
    ) -> StepResult:
        """One step: losses per width, one clip, one optimiser step.

        The losses and the gradient norm are checked first; unless all are finite on every rank,
        weights, optimiser, average and running errors stay as they are.

        Args:
            x0: images in [-1, 1], [N, C, H, W].
            step: 0-based step; decides widths, timesteps and noise.
            labels: class of each image [N] int64, for a network that takes them; None: it does not.
            augment: how the images were augmented [N, A], which the network is told; None: not.
            stop_wanted: whether this process was asked to stop.
            on_applied: called after the optimiser changed the weights.
        """
        config = self.config
        seed = generator(config.seed, Stream.MODULE, self.rank, step).initial_seed()
        torch.manual_seed(seed)
        self._clear_gradients()
        seen = None if self.errors is None else self.errors.none_seen()  # [2, W, B]
        conditions = (self._kept(labels, step), augment)
        losses = self._backward(x0, conditions, step, seen)
        values = torch.stack([*losses.values()]).double()  # [widths]
        values, stop_wanted, seen = self._average(
            values, gradients_of(self.net), stop_wanted, seen
        )
        loss_values, grad_norm, applied = clipped_step(
            self.net, self.optimizer, config, step, values
        )
        if applied:
            if self.errors is not None and seen is not None:
                self.errors.add(seen)
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

    def passes(self, step: int) -> list[Pass]:
        """What a step trains, the widest first."""
        config, usual = self.config, self._usual
        routed = None if self.routing is None else self.routing.at(step)
        if routed is not None:
            return [Pass(routed[0], 0, routed[1])]
        passes = []
        for index, width in enumerate(widths_of_step(config, step)):
            if self.errors is None or index == 0:
                passes.append(Pass(width, 0 if config.shared_noise else index, usual))
            else:
                own = Weighted(self.errors.probabilities(width, config.t_importance))
                passes.append(Pass(width, index, own))
        return passes

    def _kept(self, labels: Tensor | None, step: int) -> Tensor | None:
        """The labels [N] as all widths of a step see them: some are dropped."""
        if labels is None or self.null_label is None:
            return labels
        stream = generator(self.config.seed, Stream.LABEL, self.rank, step)
        draws = torch.rand(len(labels), generator=stream, dtype=torch.float64, device="cpu")  # [N]
        dropped = (draws < self.config.label_dropout).to(labels.device)
        return labels.masked_fill(dropped, self.null_label)

    def _backward(
        self, x0: Tensor, conditions: Conditions, step: int, seen: Tensor | None
    ) -> dict[float, Tensor]:
        """Loss of each width, detached; gradients are left summed in the parameters.

        What the narrow widths' errors were is added to `seen` [2, W, B], unless that is None.
        """
        losses: dict[float, Tensor] = {}
        batch: NoisyBatch | None = None
        for each in self.passes(step):
            if batch is None or each.draw != batch.draw:
                batch = self._noisy(x0, conditions, step, each)
            losses[each.width] = self._run(each.width, batch, seen)
        return losses

    def _noisy(self, x0: Tensor, conditions: Conditions, step: int, each: Pass) -> NoisyBatch:
        labels, augment = conditions
        t, noise = draw(x0, self.config, each.timesteps, step, self.rank, each.draw)
        factors, classes = each.timesteps.factors(t), () if labels is None else (labels,)
        return self._objective.noisy(each.draw, x0, t, noise, factors, classes, augment)

    def _run(self, width: float, batch: NoisyBatch, seen: Tensor | None) -> Tensor:
        """Forward and backward of a width, part by part; returns its loss, detached."""
        config, full = self.config, width == self.config.widths[0]
        taught = not full and (config.distill_weight > 0 or seen is not None)
        if taught and batch.teacher is None:
            batch.teacher = self._taught(batch)
        loss: Tensor | float = 0.0
        outputs = []
        for part in batch.parts(config.micro_batches):
            output = self._predict(part, width)  # [n, C or 2C, H, W]
            own = part.mean(self._objective.errors(part, output))
            total = own
            if taught:
                assert part.teacher is not None
                prediction = image_channels(output, part.x0.shape[1])
                distances = part.weights * mse_per_image(prediction, part.teacher)  # [n]
                if config.distill_weight:
                    total = own + config.distill_weight * part.mean(distances)
                    balance = 1.0 + config.distill_weight if config.distill_balanced else 1.0
                    total = total / balance
                if self.errors is not None and seen is not None:
                    self.errors.see(seen, width, part.t, distances)
            share = len(part) / len(batch)
            (config.weight_of(width) * share * total).backward()
            loss = loss + share * own.detach()
            if full:
                outputs.append(image_channels(output.detach(), part.x0.shape[1]))
        if full:
            live = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
            batch.teacher = live if self.teacher is None else None
        assert isinstance(loss, Tensor)
        return loss

    def _taught(self, batch: NoisyBatch) -> Tensor:
        """The prediction of the network that teaches, [N, C, H, W]."""
        assert self.teacher is not None
        full, channels, found = self.config.widths[0], batch.x0.shape[1], []
        for part in batch.parts(self.config.micro_batches):
            with self._autocast(part.x_t):
                # No weight of it wants a gradient, so none is recorded. Under no_grad the network
                # would compile its step for weights that an average changes in every step.
                output = part.run(self.teacher, full).detach()
            found.append(image_channels(output, channels))
        return torch.cat(found) if len(found) > 1 else found[0]

    def _predict(self, batch: NoisyBatch, width: float) -> Tensor:
        more = {"accumulate_grad": True} if self.config.accumulate_grad else {}
        with self._autocast(batch.x_t):
            return batch.run(self.net, width, **more)

    def _autocast(self, x_t: Tensor) -> torch.autocast:
        bf16 = self.config.autocast == "bf16"
        return torch.autocast(x_t.device.type, torch.bfloat16, enabled=bf16)

    def _average(
        self, losses: Tensor, gradients: Sequence[Tensor], stop_wanted: bool, seen: Tensor | None
    ) -> tuple[Tensor, bool, Tensor | None]:
        """Mean over the ranks of losses and gradients, bucket by bucket; any stop stops all.

        What the ranks saw, `seen` [2, W, B], is summed.
        """
        if self.world_size == 1:
            return losses, stop_wanted, seen
        more = losses.new_empty(0) if seen is None else seen.flatten().to(losses.device)
        head = torch.cat([losses, losses.new_tensor([stop_wanted]), more]).float()
        for bucket in _buckets([head, *gradients], self.bucket_values):
            flat = torch.cat([part.reshape(-1).float() for part in bucket])
            dist.all_reduce(flat)
            sums = flat.split([part.numel() for part in bucket])
            for part, total in zip(bucket, sums, strict=True):
                mean = total if part is head else total / self.world_size
                part.copy_(mean.view(part.shape))
        count = len(losses)
        if seen is not None:
            seen = head[count + 1 :].double().view(seen.shape).to(seen.device)
        return head[:count].double() / self.world_size, bool(head[count] > 0), seen


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
