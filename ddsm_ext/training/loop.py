"""Training of a diffusion model: the sandwich rule in the loop that every training runs in."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from ddsm_ext.data.dataset import ImageDataset
from ddsm_ext.data.latent_dataset import LatentDataset
from ddsm_ext.data.pixels import from_data
from ddsm_ext.diffusion.noise import generator
from ddsm_ext.diffusion.prediction import Prediction, prediction_named
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.io.lock import RunLock
from ddsm_ext.training.augment import augment
from ddsm_ext.training.batches import Batch, StepBatches, Stream, check_labels
from ddsm_ext.training.config import TrainConfig, TuneConfig
from ddsm_ext.training.ema import Averages
from ddsm_ext.training.optimizer import make_optimizer
from ddsm_ext.training.sandwich import Sandwich, StepResult
from ddsm_ext.training.session import Picture, Progress, Session, TrainResult
from ddsm_ext.training.state import Snapshot, process_identity
from ddsm_ext.training.teacher import check_teacher, teacher_of
from ddsm_ext.training.timesteps import ErrorTable, usual_timesteps
from ddsm_ext.training.tuning import Routing

SampleGrid = Callable[[nn.Module, float], NDArray[np.uint8]]  # (net, width) -> [H, W, C]


@dataclass(frozen=True)
class _Step:
    """Takes the steps of a diffusion model's training."""

    sandwich: Sandwich
    averages: Averages
    device: torch.device
    flips: bool  # whether images may be mirrored

    def __call__(self, batch: Batch, step: int, stop_wanted: bool) -> StepResult:
        sandwich, config = self.sandwich, self.sandwich.config
        images, told = from_data(batch.images, self.device), None
        if config.augment:
            stream = generator(config.seed, Stream.AUGMENT, sandwich.rank, step)
            images, told = augment(images, config.augment, stream, flips=self.flips)
        return sandwich.step(
            images,
            step,
            None if batch.labels is None else batch.labels.to(self.device),
            augment=told,
            stop_wanted=stop_wanted,
            on_applied=lambda: self.averages.update(sandwich.net, step),
        )


def train(
    net: nn.Module,
    dataset: ImageDataset | LatentDataset,
    schedule: NoiseSchedule,
    config: TrainConfig,
    run_dir: str | Path,
    *,
    parameterisation: str | Prediction = "epsilon",
    device: torch.device | str = "cpu",
    sample_grid: SampleGrid | None = None,
    on_damage: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    tune: TuneConfig | None = None,
    origin: nn.Module | None = None,
    settings: Mapping[str, Any] | None = None,
    label_count: int = 0,
    null_label: int | None = None,
) -> TrainResult:
    """Train a slimmable network by the sandwich rule until `config.steps` steps are done.

    With a strategy in `tune` most steps train one width on the noise levels that it serves there.

    The run resumes from its newest complete checkpoint; weights, average, optimiser and log then
    equal those of an uninterrupted run bit for bit. Under torchrun every rank calls this with an
    initialised process group. The global random generator of torch is reseeded every step.

    Args:
        net: called as (x [N, C, H, W], t [N], width) -> [N, C, H, W], with labels as
            (x, t, width, y [N] int64); moved to `device`.
        dataset: images or latents, and their classes where the network takes labels.
        run_dir: run folder; gets log.jsonl, checkpoints/ and samples/.
        parameterisation: what the network predicts and is given, as `Sandwich` has it.
        device: where to train.
        sample_grid: (net, width) -> samples [H, W, 1 or 3], from fixed seeds; None draws none.
        on_damage: called with one sentence for a damaged checkpoint passed over; None warns.
        progress: called on rank 0 after every step with (steps done, of all, newest log row).
        tune: the strategy to tune for; None, or one without a strategy, tunes for none.
        origin: the network before it was tuned, on the same device, which the teacher "origin"
            is; it is frozen.
        settings: of "model" and "diffusion" that the weights belong to; kept in every checkpoint,
            which is loaded with the same ones only. None keeps no more than betas and
            parameterisation.
        label_count: classes that the network knows; 0: it takes no labels.
        null_label: see `Sandwich`.

    Returns:
        Where and why training ended.

    Raises:
        NonFiniteError: losses or gradients were not finite `config.max_bad_steps` times in a row.
        ValueError: the run's checkpoint belongs to other data, settings or another network; none
            of its checkpoints is whole; another process writes into the run; there is no such
            teacher; or the data have not the classes that the network takes.
    """
    check_teacher(config, tune, origin)
    check_labels(dataset, label_count)
    row = prediction_named("train: parameterisation", parameterisation)
    started = time.perf_counter()
    rank, world_size = _ranks()
    run_dir, device = Path(run_dir), torch.device(device)
    with RunLock(run_dir) if rank == 0 else contextlib.nullcontext():
        net.to(device).train()
        if world_size > 1:
            for tensor in net.state_dict().values():
                dist.broadcast(tensor, 0)
        identity = {
            "data": dataset.digest,
            "flips": dataset.flips,
            **process_identity(schedule, row.name),
            "world_size": world_size,
            **(settings or {}),
            **({} if tune is None or tune.strategy is None else {"tune": tune.to_dict()}),
        }
        averages = Averages(net, config, config.ema_lengths)
        teacher = teacher_of(config, net, averages.ema, origin)
        sandwich = _sandwich(net, schedule, config, row, tune, teacher, null_label)
        kept = (net, averages, sandwich.optimizer, config, identity, sandwich.errors)
        snapshot = Snapshot(run_dir, *kept)
        state = snapshot.restore(on_damage, cut_log=rank == 0)
        take = _Step(sandwich, averages, device, dataset.flips)
        session = Session(
            net, config, run_dir, snapshot, state, take, _pictures(sample_grid, config),
            rank, world_size, started,
        )  # fmt: skip
        ranks, labelled = (rank, world_size), label_count > 0
        if config.augment:  # which mirrors them itself, and says so to the network
            dataset = dataclasses.replace(dataset, flips=False)
        batches = StepBatches(dataset, config.batch_size, config.seed, *ranks, labelled)
        return session.run(batches, progress if rank == 0 else None)


def _pictures(sample_grid: SampleGrid | None, config: TrainConfig) -> dict[str, Picture]:
    """A grid per width."""
    if sample_grid is None:
        return {}

    def of(width: float) -> Picture:
        return lambda net: sample_grid(net, width)

    return {f"w{width}": of(width) for width in config.widths}


def _sandwich(
    net: nn.Module,
    schedule: NoiseSchedule,
    config: TrainConfig,
    row: Prediction,
    tune: TuneConfig | None,
    teacher: nn.Module | None,
    null_label: int | None,
) -> Sandwich:
    """What takes the steps, with all that these need."""
    rank, world_size = _ranks()
    strategy = None if tune is None else tune.strategy
    routing = None
    if tune is not None and strategy is not None:
        usual = usual_timesteps(schedule, config)
        routing = Routing(strategy, tune.sandwich_share, schedule, config.seed, usual)
    return Sandwich(
        net,
        make_optimizer(net, config),
        schedule,
        config,
        row,
        rank,
        world_size,
        teacher=teacher,
        errors=ErrorTable(config.widths[1:], schedule.timesteps) if config.t_importance else None,
        routing=routing,
        null_label=null_label,
    )


def _ranks() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
