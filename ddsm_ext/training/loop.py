"""The training loop: steps, log, checkpoints, sample grids; the same call resumes a run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from ddsm_ext.data.dataset import ImageDataset
from ddsm_ext.data.images import save_png
from ddsm_ext.data.latent_dataset import LatentDataset
from ddsm_ext.data.pixels import from_data
from ddsm_ext.diffusion.noise import generator
from ddsm_ext.diffusion.prediction import Prediction, prediction_named
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.io.checkpoint import checkpoint_path
from ddsm_ext.io.files import append_jsonl
from ddsm_ext.io.lock import RunLock
from ddsm_ext.settings import Refusal
from ddsm_ext.training.augment import augment
from ddsm_ext.training.batches import Batch, StepBatches, Stream, check_labels, step_loader
from ddsm_ext.training.config import TrainConfig, TuneConfig
from ddsm_ext.training.ema import Averages
from ddsm_ext.training.sandwich import Sandwich, StepResult, make_optimizer
from ddsm_ext.training.state import Snapshot, TrainState, Window, process_identity
from ddsm_ext.training.teacher import check_teacher, teacher_of
from ddsm_ext.training.timesteps import ErrorTable, usual_timesteps
from ddsm_ext.training.tuning import Routing

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, Any]], None]
SampleGrid = Callable[[nn.Module, float], NDArray[np.uint8]]  # (net, width) -> [H, W, C]


class NonFiniteError(Refusal):
    """Training stopped because losses or gradients stayed inf or NaN; no weight took them up."""


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended."""

    step: int  # steps done, earlier calls included
    finished: bool  # all steps are done
    interrupted: bool  # a signal asked to stop; everything is saved
    checkpoint: Path  # newest checkpoint
    seconds: float  # of this call
    last_row: dict[str, Any]  # newest row of the log of this call; may be empty


class StopRequest:
    """Context in which the first SIGINT or SIGTERM sets `wanted` and the second one aborts.

    Outside the main thread, where Python sets no handlers, it never wants to stop.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.wanted:
            raise KeyboardInterrupt(f"second {name}")
        self.wanted = True
        log.warning("%s: finishing the step and saving; once more aborts", name)


@dataclass
class _Run:
    """One call of `train`."""

    net: nn.Module
    config: TrainConfig
    run_dir: Path
    device: torch.device
    sandwich: Sandwich
    snapshot: Snapshot
    sample_grid: SampleGrid | None
    rank: int
    state: TrainState
    flips: bool  # whether images may be mirrored
    board: Any = None  # TensorBoard writer
    last_row: dict[str, Any] = field(default_factory=dict)
    row_started: float = 0.0
    row_steps: int = 0

    def take_step(self, batch: Batch, stop_wanted: bool) -> StepResult:
        """One step on a batch; raises after too many non-finite ones."""
        state, step = self.state, self.state.step
        images, told = from_data(batch.images, self.device), None
        if self.config.augment:
            stream = generator(self.config.seed, Stream.AUGMENT, self.rank, step)
            images, told = augment(images, self.config.augment, stream, flips=self.flips)
        result = self.sandwich.step(
            images,
            step,
            None if batch.labels is None else batch.labels.to(self.device),
            augment=told,
            stop_wanted=stop_wanted,
            on_applied=lambda: self.snapshot.averages.update(self.net, step),
        )
        state.step += 1
        if result.applied:
            state.bad_in_row = 0
            state.window.add(_figures(result))
        else:
            state.bad_in_row += 1
            state.window.skipped += 1
            if state.bad_in_row >= self.config.max_bad_steps:
                self.write_row()
                raise NonFiniteError(self._bad_message(result))
        self.row_steps += 1
        return result

    def _bad_message(self, result: StepResult) -> str:
        state = self.state
        losses = ", ".join(f"{width:g}: {loss:.3g}" for width, loss in result.losses.items())
        return (
            f"train: gradient norm {result.grad_norm:.3g} and losses {{{losses}}} at step "
            f"{state.step - 1}, not finite in {state.bad_in_row} steps in a row; need finite ones "
            "(a lower lr, a longer warm-up or autocast='none'); no weight was changed by them and "
            "the last checkpoint is kept"
        )

    def write_row(self) -> None:
        """Append the means since the last row to log.jsonl, and to TensorBoard if it is there."""
        state, now = self.state, time.perf_counter()
        world_size = self.sandwich.world_size
        images = self.row_steps * self.config.batch_size * world_size
        row = {
            "step": state.step,
            **state.window.means(),
            "lr": self.config.lr_at(max(0, state.step - 1)),
            "images_per_s": round(images / max(1e-9, now - self.row_started), 2),
            "skipped": state.window.skipped,
        }
        state.window, self.row_started, self.row_steps = Window(), now, 0
        self.last_row = row
        if self.rank == 0:
            with RunLock(self.run_dir):  # a folder that was moved gets no row
                append_jsonl(self.run_dir / "log.jsonl", row)
        if self.board is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, state.step)

    def save(self) -> Path:
        """Checkpoint by rank 0; the others wait for it."""
        if self.rank == 0:
            self.snapshot.save(self.state)
        if self.sandwich.world_size > 1:
            dist.barrier()
        return checkpoint_path(self.run_dir, self.state.step)

    def draw_samples(self, stop: StopRequest) -> None:
        """One grid per width from the averaged weights, unless it is there; a wanted stop is first.

        Every rank draws its share of the widths: one alone would keep the others waiting until
        their collective times out.
        """
        state, config = self.state, self.config
        last = state.step >= config.steps
        if self.sample_grid is None or not (last or _due(state.step, config.sample_every)):
            return
        files = {
            width: self.run_dir / "samples" / f"step-{state.step:06d}-w{width}.png"
            for width in config.widths[self.rank :: self.sandwich.world_size]
        }
        missing = [width for width, file in files.items() if not file.exists()]
        if not missing:
            return
        with self.snapshot.averages.ema.applied_to(self.net), torch.no_grad():
            for width in missing:
                if stop.wanted:
                    return
                save_png(files[width], self.sample_grid(self.net, width))


def _figures(result: StepResult) -> dict[str, float]:
    losses = result.losses
    return {
        "loss": sum(losses.values()) / len(losses),
        **{f"loss_w{width}": losses[width] for width in sorted(losses, reverse=True)},
        "grad_norm": result.grad_norm,
    }


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


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
        averages = Averages(net, config)
        teacher = teacher_of(config, net, averages.ema, origin)
        sandwich = _sandwich(net, schedule, config, row, tune, teacher, null_label)
        kept = (net, averages, sandwich.optimizer, config, identity, sandwich.errors)
        snapshot = Snapshot(run_dir, *kept)
        state = snapshot.restore(on_damage, cut_log=rank == 0)
        parts = (sandwich, snapshot, sample_grid, rank, state, dataset.flips)
        run = _Run(net, config, run_dir, device, *parts)
        ranks, labelled = (rank, world_size), label_count > 0
        if config.augment:  # which mirrors them itself, and says so to the network
            dataset = dataclasses.replace(dataset, flips=False)
        batches = StepBatches(dataset, config.batch_size, config.seed, *ranks, labelled)
        with StopRequest() as stop, _tensorboard(run):
            checkpoint, interrupted = _loop(run, batches, stop, progress if rank == 0 else None)
        finished = state.step >= config.steps
        seconds = time.perf_counter() - started
        return TrainResult(state.step, finished, interrupted, checkpoint, seconds, run.last_row)


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


def _loop(
    run: _Run, batches: StepBatches, stop: StopRequest, progress: Progress | None
) -> tuple[Path, bool]:
    """Steps until done or stopped; returns the newest checkpoint and whether it was stopped."""
    config, state = run.config, run.state
    checkpoint = checkpoint_path(run.run_dir, state.step)
    run.row_started = time.perf_counter()
    if state.step:  # killed between the checkpoint and its pictures
        run.draw_samples(stop)
    if state.step >= config.steps:
        return checkpoint, stop.wanted
    for batch in step_loader(batches, state.step, config.steps, config.workers):
        result = run.take_step(batch, stop.wanted)
        last = state.step >= config.steps
        if _due(state.step, config.log_every) or last:
            run.write_row()
        if progress is not None:
            progress(state.step, config.steps, run.last_row)
        if _due(state.step, config.checkpoint_every) or last or result.stop_wanted:
            checkpoint = run.save()
        if result.stop_wanted:
            return checkpoint, True
        run.draw_samples(stop)
    return checkpoint, stop.wanted


def _ranks() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextlib.contextmanager
def _tensorboard(run: _Run) -> Iterator[None]:
    """TensorBoard writer for the time of training, where the package is installed."""
    if run.rank != 0 or importlib.util.find_spec("tensorboard") is None:
        yield
        return
    from torch.utils.tensorboard import SummaryWriter

    folder = run.run_dir / "tensorboard"
    run.board = SummaryWriter(str(folder), purge_step=run.state.step + 1)
    try:
        yield
    finally:
        run.board.close()
