"""Everything a resumed run needs, as flat tensors and JSON scalars; no code, no pickle."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.io.checkpoint import Checkpoint, load_checkpoint, newest_complete, save_checkpoint
from ddsm_ext.io.files import parse_jsonl, read_bytes, to_json, write_atomic
from ddsm_ext.io.weights import copy_tensors
from ddsm_ext.settings import Refusal, completed, is_int, plain
from ddsm_ext.training.ema import Averages
from ddsm_ext.training.loop_config import LoopConfig
from ddsm_ext.training.timesteps import ErrorTable

# Settings that may differ between the parts of one run: they change no weight of a given step.
FREE_SETTINGS = frozenset(
    ("workers", "log_every", "sample_every", "checkpoint_every", "keep", "max_bad_steps")
)
# Settings that weights belong to, which checkpoints of earlier versions do not name
SETTINGS = ("model", "diffusion", "flips", "codec")
# These may differ where one continues the other: `LoopConfig.continues`.
_LENGTH_SETTINGS = frozenset(("steps", "extensions"))


@dataclass
class Window:
    """Sums since the last row of the log; saved, so that a resumed run logs the same rows."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float | None]:
        """Mean of each figure over the steps that had it; None where it is not finite."""
        means = {name: self.sums[name] / self.counts[name] for name in sorted(self.sums)}
        return {name: m if math.isfinite(m) else None for name, m in means.items()}


@dataclass
class TrainState:
    """Mutable state of a run beside the tensors."""

    step: int = 0  # steps done
    bad_in_row: int = 0  # non-finite steps up to now
    window: Window = field(default_factory=Window)


def optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`."""
    tensors = {}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = (
                value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
            )
    return tensors


def load_optimizer(
    net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` gave, in each parameter's device and memory layout.

    Raises:
        ValueError: a tensor belongs to no parameter or has another shape.
    """
    parameters = dict(net.named_parameters())
    states: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(".")
        parameter = parameters.get(name)
        if parameter is None or tensor.shape not in (parameter.shape, torch.Size([])):
            raise Refusal(
                f"checkpoint: optim {full_name!r} {list(tensor.shape)} fits no parameter of the "
                "network; need a checkpoint of this network"
            )
        own = torch.empty_like(parameter) if tensor.shape == parameter.shape else tensor.clone()
        states.setdefault(name, {})[key] = own.detach().to(parameter.device).copy_(tensor)
    for name, state in states.items():
        optimizer.state[parameters[name]] = state


def process_identity(schedule: NoiseSchedule, parameterisation: str) -> dict[str, Any]:
    """Return what a checkpoint says of the diffusion process that its weights were trained for."""
    return {**schedule.identity(), "parameterisation": parameterisation}


def check_identity(
    saved: Mapping[str, Any], now: Mapping[str, Any], where: str, anew: str = LoopConfig.anew
) -> None:
    """Refuse weights of other settings than those of now.

    Args:
        saved: what the checkpoint says that its weights were made by; it may say less than is asked
            (checkpoints of earlier versions) of the settings of model and diffusion.
        now: name -> plain value or settings.
        where: what errors call the checkpoint.
        anew: what they advise for other images.

    Raises:
        ValueError: one of them is another.
    """
    saved, wanted = completed(saved, now), plain(now)
    for name in {**wanted, **saved}:
        if name in SETTINGS and (name not in saved or name not in wanted):
            continue
        found, value = saved.get(name), wanted.get(name)
        if name == "betas" and found and np.allclose(found, wanted[name], 1e-9, 0):
            found = value  # a cosine may end in another digit on another machine
        if found == value:
            continue
        if name == "data":
            raise Refusal(
                f"{where}: was trained on other images (SHA-256 {str(found)[:12]}..., now "
                f"{str(value)[:12]}...); need the same ones, or {anew}"
            )
        if isinstance(found, dict) and isinstance(value, dict):
            key = next(k for k in {**found, **value} if found.get(k) != value.get(k))
            name, found, value = f"{name}.{key}", found.get(key), value.get(key)
        raise Refusal(
            f"{where}: was trained with {name} {found!r}, now it is {value!r}; need the same"
        )


@dataclass
class Snapshot:
    """Saves and restores one run: network, averages, optimiser, running errors and figures."""

    run_dir: Path
    net: nn.Module
    averages: Averages
    optimizer: torch.optim.Optimizer
    config: LoopConfig
    identity: dict[str, Any]  # data digest, settings of the weights: must agree on resume
    errors: ErrorTable | None = None  # what `t_importance` draws by

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of `state.step`; weights that are not finite are never written.

        Raises:
            ValueError: a weight or its average is not finite.
        """
        groups = {
            "model": self.net.state_dict(),
            **self.averages.tensors,
            "optim": optimizer_tensors(self.net, self.optimizer),
        }
        if self.errors is not None:
            groups["errors"] = {"totals": self.errors.totals}
        for group, tensors in groups.items():
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise Refusal(
                        f"train: {group} {name!r} is not finite at step {state.step}; need finite "
                        "weights, so no checkpoint was written and the last one is kept"
                    )
        about = {
            "train": self.config.to_dict(),
            "identity": plain(self.identity),
            "bad_in_row": state.bad_in_row,
            "window": asdict(state.window),
            "torch": torch.__version__,
        }
        save_checkpoint(self.run_dir, state.step, groups, about, self.config.keep)

    def restore(
        self, on_damage: Callable[[str], None] | None = None, *, cut_log: bool = True
    ) -> TrainState:
        """Load the newest complete checkpoint, if there is one, and cut the log back to it.

        Args:
            on_damage: called with one sentence for whatever damage is passed over, of a checkpoint
                or of the log; None warns.
            cut_log: whether this process, of all ranks, rewrites the log.

        Raises:
            ValueError: the checkpoint is of other data, settings or another network, or no
                checkpoint is whole though there are some.
            OSError: a checkpoint or the log is there and cannot be read.
        """
        path = newest_complete(self.run_dir, on_damage=on_damage)
        if path is None:
            if cut_log:
                _cut_log(self.run_dir / "log.jsonl", 0, on_damage)
            return TrainState()
        checkpoint = load_checkpoint(path)
        self._check_same_run(checkpoint)
        tensors = checkpoint.tensors
        copy_tensors(tensors["model"], self.net.state_dict(), "checkpoint: model")
        for name, average in self.averages.tensors.items():
            copy_tensors(tensors[name], average, f"checkpoint: {name}")
        load_optimizer(self.net, self.optimizer, tensors["optim"])
        if self.errors is not None:
            totals = {"totals": self.errors.totals}
            copy_tensors(tensors["errors"], totals, "checkpoint: errors")
        if cut_log:
            _cut_log(self.run_dir / "log.jsonl", checkpoint.step, on_damage)
        window = Window(**checkpoint.state["window"])
        return TrainState(checkpoint.step, checkpoint.state["bad_in_row"], window)

    def _check_same_run(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.state
        errors = () if self.errors is None else ("errors",)
        for group in ("model", *self.averages.tensors, "optim", *errors):
            if group not in checkpoint.tensors:
                raise Refusal(f"{checkpoint.path}: holds no {group}; need a training checkpoint")
        where = str(checkpoint.path)
        check_identity(saved.get("identity", {}), self.identity, where, self.config.anew)
        settings = completed(saved.get("train", {}), self.config)
        for name, value in self.config.to_dict().items():
            found = settings.get(name)
            if name not in FREE_SETTINGS | _LENGTH_SETTINGS and found != value:
                raise Refusal(
                    f"{checkpoint.path}: was trained with {name}={found!r}, now it is {value!r}; "
                    f"need the same to resume, or {self.config.anew}"
                )
        self._check_length(checkpoint, type(self.config).from_dict(settings))

    def _check_length(self, checkpoint: Checkpoint, before: LoopConfig) -> None:
        now = self.config
        if now.continues(before, checkpoint.step):
            return
        raise Refusal(
            f"{checkpoint.path}: was trained with steps={before.steps} and a rate that falls to "
            f"the last (lr_final {now.lr_final:g}), now steps is {now.steps}; need the same to "
            f"resume, or {now.longer.format(steps=now.steps)}"
        )


def _cut_log(path: Path, step: int, on_damage: Callable[[str], None] | None) -> None:
    """Drop rows after `step`: a killed run may have logged beyond its last checkpoint.

    A log is no state: what is damaged of it stops nothing, and is kept beside it as it was found.
    """
    if not path.exists():
        return
    content = read_bytes(path, "log")
    rows, damaged = parse_jsonl(content)
    kept = [row for row in rows if is_int(row.get("step"), 0) and row["step"] <= step]
    if damaged:
        name = hashlib.sha256(content).hexdigest()[:8]  # found again, it is not kept twice
        aside = write_atomic(path.with_name(f"{path.stem}.damaged-{name}{path.suffix}"), content)
        text = (
            f"{path}: {len(damaged)} lines are no JSON objects, the first is line {damaged[0]}; "
            f"going on with the other {len(kept)}, all is kept as {aside.name}"
        )
        warnings.warn(text, stacklevel=3) if on_damage is None else on_damage(text)
    if damaged or len(kept) != len(rows):
        write_atomic(path, "".join(to_json(row) + "\n" for row in kept).encode())
