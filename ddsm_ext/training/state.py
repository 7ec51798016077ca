"""Everything a resumed run needs, as flat tensors and JSON scalars; no code, no pickle."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddsm_ext.io.checkpoint import Checkpoint, load_checkpoint, newest_complete, save_checkpoint
from ddsm_ext.io.files import read_jsonl, to_json, write_atomic
from ddsm_ext.io.weights import copy_tensors
from ddsm_ext.settings import Refusal, completed
from ddsm_ext.training.config import TrainConfig
from ddsm_ext.training.timesteps import ErrorTable

# Settings that may differ between the parts of one run: they change no weight of a given step.
_FREE_SETTINGS = frozenset(
    ("workers", "log_every", "sample_every", "checkpoint_every", "keep", "max_bad_steps")
)
# These may differ where one continues the other: `TrainConfig.continues`.
_LENGTH_SETTINGS = frozenset(("steps", "extensions"))


class Ema:
    """Exponential moving average of a network's parameters; buffers are copied.

    theta_ema <- decay * theta_ema + (1 - decay) * theta after every step.

    Args:
        net: network whose present weights start the average.
    """

    def __init__(self, net: nn.Module) -> None:
        self.tensors = {name: t.detach().clone() for name, t in net.state_dict().items()}
        self._names = [name for name, p in net.named_parameters() if p.is_floating_point()]

    @torch.no_grad()
    def update(self, net: nn.Module, decay: float) -> None:
        """Move the average towards the network's weights.

        Args:
            net: the network that this average was made of.
            decay: weight of the old average, 0 to 1.
        """
        parameters = dict(net.named_parameters())
        averages = [self.tensors[name] for name in self._names]
        torch._foreach_lerp_(averages, [parameters[name] for name in self._names], 1.0 - decay)
        averaged = set(self._names)
        for name, tensor in net.state_dict().items():
            if name not in averaged:
                self.tensors[name].copy_(tensor)

    def as_network(self, net: nn.Module) -> nn.Module:
        """Return a copy of the network that holds the average itself, and so moves along with it.

        In eval mode, and no weight of it wants a gradient.

        Args:
            net: the network that this average was made of.
        """
        held = copy.deepcopy(net).eval().requires_grad_(False)
        tensors = held.state_dict()  # its own memory
        copy_tensors(self.tensors, tensors, "ema")
        self.tensors = dict(tensors)
        return held

    @contextlib.contextmanager
    def applied_to(self, net: nn.Module) -> Iterator[nn.Module]:
        """Put the average into the network, in eval mode; weights and mode return on leaving.

        Weights are copied in place, so that what is keyed by their storage stays valid.
        """
        own = {name: t.detach().clone() for name, t in net.state_dict().items()}
        was_training = net.training
        copy_tensors(self.tensors, net.state_dict(), "ema")
        net.eval()
        try:
            yield net
        finally:
            copy_tensors(own, net.state_dict(), "model")
            net.train(was_training)


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


@dataclass
class Snapshot:
    """Saves and restores one run: network, average, optimiser, running errors and figures."""

    run_dir: Path
    net: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    identity: dict[str, Any]  # data digest, timesteps, parameterisation: must agree on resume
    errors: ErrorTable | None = None  # what `t_importance` draws by

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of `state.step`; weights that are not finite are never written.

        Raises:
            ValueError: a weight or its average is not finite.
        """
        groups = {
            "model": self.net.state_dict(),
            "ema": self.ema.tensors,
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
            "identity": self.identity,
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
            on_damage: called with one sentence for a damaged checkpoint passed over; None warns.
            cut_log: whether this process, of all ranks, rewrites the log.

        Raises:
            ValueError: the checkpoint is of other data, settings or another network.
        """
        path = newest_complete(self.run_dir, on_damage=on_damage)
        if path is None:
            if cut_log:
                _cut_log(self.run_dir / "log.jsonl", 0)
            return TrainState()
        checkpoint = load_checkpoint(path)
        self._check_same_run(checkpoint)
        tensors = checkpoint.tensors
        copy_tensors(tensors["model"], self.net.state_dict(), "checkpoint: model")
        copy_tensors(tensors["ema"], self.ema.tensors, "checkpoint: ema")
        load_optimizer(self.net, self.optimizer, tensors["optim"])
        if self.errors is not None:
            totals = {"totals": self.errors.totals}
            copy_tensors(tensors["errors"], totals, "checkpoint: errors")
        if cut_log:
            _cut_log(self.run_dir / "log.jsonl", checkpoint.step)
        window = Window(**checkpoint.state["window"])
        return TrainState(checkpoint.step, checkpoint.state["bad_in_row"], window)

    def _check_same_run(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.state
        groups = ("model", "ema", "optim", *(() if self.errors is None else ("errors",)))
        for group in groups:
            if group not in checkpoint.tensors:
                raise Refusal(f"{checkpoint.path}: holds no {group}; need a training checkpoint")
        identity = saved.get("identity", {})
        for name in {**self.identity, **identity}:
            found, value = identity.get(name), self.identity.get(name)
            if found != value:
                raise Refusal(
                    f"{checkpoint.path}: was trained with {name} {found!r}, now it is {value!r}; "
                    "need the same to resume"
                )
        settings = completed(saved.get("train", {}), self.config)
        for name, value in self.config.to_dict().items():
            found = settings.get(name)
            if name not in _FREE_SETTINGS | _LENGTH_SETTINGS and found != value:
                raise Refusal(
                    f"{checkpoint.path}: was trained with {name}={found!r}, now it is {value!r}; "
                    "need the same to resume, or a new run"
                )
        self._check_length(checkpoint, TrainConfig.from_dict(settings))

    def _check_length(self, checkpoint: Checkpoint, before: TrainConfig) -> None:
        now = self.config
        if now.continues(before, checkpoint.step):
            return
        raise Refusal(
            f"{checkpoint.path}: was trained with steps={before.steps} and a rate that falls to "
            f"the last (lr_final {now.lr_final:g}), now steps is {now.steps}; need the same to "
            f"resume, or `--extend {now.steps}` (Run.extend), which records where the rate restarts"
        )


def _cut_log(path: Path, step: int) -> None:
    """Drop rows after `step`: a killed run may have logged beyond its last checkpoint."""
    if not path.exists():
        return
    rows = read_jsonl(path)
    kept = [row for row in rows if isinstance(row.get("step"), int) and row["step"] <= step]
    if len(kept) != len(rows):
        write_atomic(path, "".join(to_json(row) + "\n" for row in kept).encode())
