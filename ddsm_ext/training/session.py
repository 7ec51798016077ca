"""One call of a training: steps, log, checkpoints, pictures; the same call resumes a run."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from ddsm_ext.data.images import save_png
from ddsm_ext.io.checkpoint import checkpoint_path
from ddsm_ext.io.files import append_jsonl
from ddsm_ext.io.lock import RunLock
from ddsm_ext.settings import Refusal
from ddsm_ext.training.batches import Batch, StepBatches, step_loader
from ddsm_ext.training.loop_config import LoopConfig
from ddsm_ext.training.state import Snapshot, TrainState, Window

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, Any]], None]
Picture = Callable[[nn.Module], NDArray[np.uint8]]  # network -> [H, W, C]


class NonFiniteError(Refusal):
    """Training stopped because losses or gradients stayed inf or NaN; no weight took them up."""


class StepDone(Protocol):
    """What a step did."""

    @property
    def figures(self) -> Mapping[str, float]:
        """What the log averages: losses and the gradient norm."""

    @property
    def applied(self) -> bool:
        """Whether weights changed; they do not where a figure is not finite."""

    @property
    def stop_wanted(self) -> bool:
        """Whether a rank was asked to stop."""


@dataclass(frozen=True)
class TrainResult:
    """How a call of a training ended."""

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
class Session:
    """What a training does around its steps.

    Args:
        net: what is trained.
        config: how many steps, and what is written when.
        run_dir: run folder, whose lock the caller holds; gets log.jsonl, checkpoints/ and samples/.
        snapshot: saves what a resumed run needs.
        state: where the run stands; one that was killed goes on from there.
        take: called with (batch, step, whether a stop is wanted); takes the step.
        pictures: name -> makes samples/step-000500-<name>.png with the averaged weights.
        rank: this process.
        world_size: processes in all.
        started: when the call began, of `time.perf_counter`.
    """

    net: nn.Module
    config: LoopConfig
    run_dir: Path
    snapshot: Snapshot
    state: TrainState
    take: Callable[[Batch, int, bool], StepDone]
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    rank: int = 0
    world_size: int = 1
    started: float = field(default_factory=time.perf_counter)
    _board: Any = field(default=None, init=False)  # TensorBoard writer
    _last_row: dict[str, Any] = field(default_factory=dict, init=False)
    _row_started: float = field(default=0.0, init=False)
    _row_steps: int = field(default=0, init=False)

    def run(self, batches: StepBatches, progress: Progress | None = None) -> TrainResult:
        """Take steps until all are done or a signal wants to stop.

        Args:
            batches: of each step by its number.
            progress: called after every step with (steps done, of all, newest log row).

        Raises:
            NonFiniteError: figures were not finite `config.max_bad_steps` times in a row.
        """
        with StopRequest() as stop, self._tensorboard():
            checkpoint, interrupted = self._loop(batches, stop, progress)
        finished = self.state.step >= self.config.steps
        seconds = time.perf_counter() - self.started
        step, row = self.state.step, self._last_row
        return TrainResult(step, finished, interrupted, checkpoint, seconds, row)

    def _loop(
        self, batches: StepBatches, stop: StopRequest, progress: Progress | None
    ) -> tuple[Path, bool]:
        """Steps until done or stopped; returns the newest checkpoint and whether it was stopped."""
        config, state = self.config, self.state
        checkpoint = checkpoint_path(self.run_dir, state.step)
        self._row_started = time.perf_counter()
        if state.step:  # killed between the checkpoint and its pictures
            self._draw(stop)
        if state.step >= config.steps:
            return checkpoint, stop.wanted
        for batch in step_loader(batches, state.step, config.steps, config.workers):
            done = self._step(batch, stop.wanted)
            last = state.step >= config.steps
            if _due(state.step, config.log_every) or last:
                self._write_row()
            if progress is not None:
                progress(state.step, config.steps, self._last_row)
            if _due(state.step, config.checkpoint_every) or last or done.stop_wanted:
                checkpoint = self._save()
            if done.stop_wanted:
                return checkpoint, True
            self._draw(stop)
        return checkpoint, stop.wanted

    def _step(self, batch: Batch, stop_wanted: bool) -> StepDone:
        """One step on a batch; raises after too many non-finite ones."""
        state = self.state
        done = self.take(batch, state.step, stop_wanted)
        state.step += 1
        if done.applied:
            state.bad_in_row = 0
            state.window.add(done.figures)
        else:
            state.bad_in_row += 1
            state.window.skipped += 1
            if state.bad_in_row >= self.config.max_bad_steps:
                self._write_row()
                raise NonFiniteError(self._bad_message(done))
        self._row_steps += 1
        return done

    def _bad_message(self, done: StepDone) -> str:
        state = self.state
        figures = ", ".join(f"{name}: {value:.3g}" for name, value in done.figures.items())
        return (
            f"train: {{{figures}}} at step {state.step - 1}, not finite in {state.bad_in_row} "
            "steps in a row; need finite losses and gradients (a lower lr, a longer warm-up or "
            "autocast='none'); no weight was changed by them and the last checkpoint is kept"
        )

    def _write_row(self) -> None:
        """Append the means since the last row to log.jsonl, and to TensorBoard if it is there."""
        state, now = self.state, time.perf_counter()
        images = self._row_steps * self.config.batch_size * self.world_size
        row = {
            "step": state.step,
            **state.window.means(),
            "lr": self.config.lr_at(max(0, state.step - 1)),
            "images_per_s": round(images / max(1e-9, now - self._row_started), 2),
            "skipped": state.window.skipped,
        }
        state.window, self._row_started, self._row_steps = Window(), now, 0
        self._last_row = row
        if self.rank == 0:
            with RunLock(self.run_dir):  # a folder that was moved gets no row
                append_jsonl(self.run_dir / "log.jsonl", row)
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, state.step)

    def _save(self) -> Path:
        """Checkpoint by rank 0; the others wait for it."""
        if self.rank == 0:
            self.snapshot.save(self.state)
        if self.world_size > 1:
            dist.barrier()
        return checkpoint_path(self.run_dir, self.state.step)

    def _draw(self, stop: StopRequest) -> None:
        """The pictures of the step, unless they are there; a wanted stop is first.

        Every rank draws its share: one alone would keep the others waiting until their collective
        times out.
        """
        step, config = self.state.step, self.config
        if not (step >= config.steps or _due(step, config.sample_every)):
            return
        files = {
            name: self.run_dir / "samples" / f"step-{step:06d}-{name}.png"
            for name in list(self.pictures)[self.rank :: self.world_size]
        }
        missing = [name for name, file in files.items() if not file.exists()]
        if not missing:
            return
        with self.snapshot.averages.ema.applied_to(self.net), torch.no_grad():
            for name in missing:
                if stop.wanted:
                    return
                save_png(files[name], self.pictures[name](self.net))

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[None]:
        """TensorBoard writer for the time of training, where the package is installed."""
        if self.rank != 0 or importlib.util.find_spec("tensorboard") is None:
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = self.run_dir / "tensorboard"
        self._board = SummaryWriter(str(folder), purge_step=self.state.step + 1)
        try:
            yield
        finally:
            self._board.close()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
