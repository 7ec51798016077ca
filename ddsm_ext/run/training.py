"""Composes a training: the network that it begins with, its teacher, longer and tuned runs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddsm_ext.data.images import image_grid
from ddsm_ext.diffusion.prediction import prediction_of
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.io.checkpoint import checkpoint_path, load_newest, newest_complete, step_of
from ddsm_ext.io.lock import RunLock
from ddsm_ext.run.compose import (
    Progress,
    Sampler,
    build_network,
    counter,
    decoder_of,
    load_network,
    weights_digest,
    weights_settings,
)
from ddsm_ext.run.config import RunConfig, changed, merge
from ddsm_ext.run.folder import change_config, config_of, find_resumable, root_of
from ddsm_ext.run.strategies import own_strategy
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal, is_int, plain
from ddsm_ext.training.config import TrainConfig, TuneConfig
from ddsm_ext.training.loop import train
from ddsm_ext.training.session import TrainResult
from ddsm_ext.training.state import check_identity

log = logging.getLogger(__name__)

TUNED = "-tune"  # ends the name of a tuned run
# Images of a grid of samples; decoded ones are larger, and each takes as much as some steps.
GRID_IMAGES, GRID_LATENTS = 64, 16


def train_run(
    folder: Path, config: RunConfig, device: torch.device, dataset: Any, progress: Progress | None
) -> TrainResult:
    """Train a run to its last step, or until Ctrl-C, which saves; the result says which."""
    decoder = decoder_of(config, device)  # what is missing of it is refused before any work
    seeds = list(range(GRID_LATENTS if config.codec.of_latents else GRID_IMAGES))

    def sample_grid(net: Any, width: float) -> NDArray[np.uint8]:
        sampler = Sampler(net, config, device, len(seeds), decoder=decoder)
        return image_grid(sampler.pictures(width, seeds).numpy().transpose(0, 2, 3, 1))

    told = counter(progress, "training", "step")

    def tell(done: int, total: int, row: dict[str, Any]) -> None:
        loss = row.get("loss")
        told(done, total, "" if loss is None else f"loss={loss:.4f}")

    taught = config.train.teacher == "origin" and config.train.distill_weight > 0
    tuned = config.tune.strategy is not None
    return train(
        first_network(folder, config, device),
        dataset,
        make_schedule(config.diffusion),
        config.train,
        folder,
        parameterisation=prediction_of(config.diffusion),
        device=device,
        sample_grid=sample_grid,
        progress=tell,
        tune=config.tune,
        settings=weights_settings(config),
        label_count=config.model.label_count,
        null_label=config.model.null_label,
        origin=origin_network(root_of(folder), config, device) if taught and tuned else None,
    )


def first_network(folder: Path, config: RunConfig, device: torch.device) -> Any:
    """Return the network that a run begins with; a whole checkpoint of it will take its place."""
    if _is_begun(folder):
        return build_network(config, device)
    return network_to_begin_with(root_of(folder), config, device)


def _is_begun(folder: Path) -> bool:
    """Whether a run has a whole checkpoint; the training that goes on says which are damaged."""
    return newest_complete(folder, on_damage=lambda _: None) is not None


def network_to_begin_with(root: Path, config: RunConfig, device: torch.device) -> Any:
    """Return the network that a new run under `root` begins with.

    Raises:
        FileNotFoundError: the run that it takes its weights from is not there.
        ValueError: that run holds other weights than were recorded, or another network's.
    """
    source = config.train.start_from
    if config.tune.strategy is not None:
        return origin_network(root, config, device)
    if source is None:
        return build_network(config, device)
    return load_network(Path(source), config, device)


def origin_network(root: Path, config: RunConfig, device: torch.device) -> Any:
    """Return the network that a tuned run began with: of the recorded step and weights.

    Raises:
        FileNotFoundError: the run or its checkpoint is gone.
        ValueError: it holds other weights than were recorded.
    """
    tune: TuneConfig = config.tune
    folder = root / str(tune.origin)
    if tune.origin_step is None or not checkpoint_path(folder, tune.origin_step).is_dir():
        raise FileNotFoundError(
            f"{folder}: has no checkpoint of step {tune.origin_step}; need it, as the run was "
            "tuned from it"
        )
    network = load_network(folder, config, device, step=tune.origin_step)
    found = weights_digest(network)
    if found != tune.origin_weights:
        raise Refusal(
            f"{folder}: the averaged weights of step {tune.origin_step} have the SHA-256 "
            f"{found[:12]}..., {str(tune.origin_weights)[:12]}... was recorded; need the same"
        )
    return network


def extended(folder: Path, steps: int, lr: float | None = None) -> RunConfig:
    """Return the configuration of a run with more steps; writes nothing.

    Args:
        folder: the run folder.
        steps: in all.
        lr: rate to go on with; see `TrainConfig.extended`.

    Raises:
        FileNotFoundError: the run has no whole checkpoint.
        ValueError: the run has as many steps already, or lr is refused.
    """
    config = config_of(folder)
    train: TrainConfig = config.train
    newest = newest_complete(folder)
    if newest is None:
        raise FileNotFoundError(f"{folder}: has no whole checkpoint; need a trained run to extend")
    if train.extensions and steps == train.steps and lr in (None, train.extensions[-1][2]):
        return config  # the same command again
    longer = train.extended(step_of(newest), steps, lr)
    return dataclasses.replace(config, train=longer)


def extend_run(folder: Path, dataset: Any, steps: int, lr: float | None = None) -> TrainConfig:
    """Give a run more steps, in its config.json, and return its training settings then.

    Raises:
        FileNotFoundError: the run has no whole checkpoint.
        ValueError: as of `extended`, or the images are not those that it was trained on.
    """
    with RunLock(folder):
        train: TrainConfig = extended(folder, steps, lr).train
        newest = load_newest(folder, ())
        assert newest is not None
        saved = newest.state.get("identity", {})
        if "data" in saved:  # else of weights from elsewhere
            now = {"data": dataset.digest}
            check_identity({"data": saved["data"]}, now, str(newest.path))
        change_config(folder, train=train.to_dict())
    return train


def as_extended(folder: Path, config: RunConfig) -> RunConfig:
    """Return a configuration with the steps that its run has been given since it was made."""
    saved = config_of(folder).train
    longer = {"steps": saved.steps, "extensions": saved.extensions}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **longer))


def find_run(root: str | Path, name: str, config: RunConfig, dataset: Any) -> Path | None:
    """Return the newest run that a configuration and its images continue, or None.

    One with fewer steps is given those of `config` where no learning rate depends on them.
    """
    folder = find_resumable(root, config, name=name)
    if folder is not None:
        return folder
    shorter = find_resumable(root, config, name=name, shorter=True)
    if shorter is None:
        return None
    steps = config.train.steps
    if not config.train.falls and _is_begun(shorter):
        extend_run(shorter, dataset, steps)
        return shorter
    log.info(
        "%s differs in train.steps alone; --extend %d of ddsm train or tune, beside the options "
        "that it was made with, or Run.extend, goes on with it; this is a new run",
        shorter,
        steps,
    )
    return None


def run_to_extend(root: str | Path, name: str, config: RunConfig) -> Path:
    """Return the newest run of a configuration, which is to have more steps.

    Args:
        root: folder of runs.
        name: of the run.
        config: that it was made with, features in full.

    Raises:
        ValueError: there is none.
    """
    folder = find_resumable(root, config, name=name)
    if folder is None:
        raise Refusal(
            f"extend: {root} holds no run {name!r} of these settings; need the options that it was "
            "made with"
        )
    return folder


def run_to_tune(newest: Path) -> Path:
    """Return the run that is tuned where none is named: the newest, or what that was tuned from.

    Once it has begun, a tuned run is the newest itself, and the same command has to continue it. A
    strategy of its own, from a search after the tuning, begins a second round.
    """
    tune: TuneConfig = config_of(newest).tune
    file = own_strategy(newest)
    if tune.strategy is None or (file.exists() and Strategy.load(file) != tune.strategy):
        return newest
    return root_of(newest) / str(tune.origin)


def tuned_name(origin: Path) -> str:
    """Return the name of a run that tunes `origin`, which may be a tuned one itself."""
    name = origin.resolve().name
    return (name.partition("-")[2] or name).removesuffix(TUNED) + TUNED


def tuned_config(
    origin: Path,
    config: RunConfig,
    strategy: Strategy,
    changes: Mapping[str, Any] | None = None,
    where: str = "changes",
) -> RunConfig:
    """Return the configuration of a run that tunes another for a strategy.

    It has the settings of `origin` but half of its steps and of its learning rate, which falls to
    0, and no teacher unless `train.distill_weight` is given; after a tuned run, those of that one.

    Args:
        origin: run folder whose newest weights are tuned.
        config: its configuration.
        strategy: width by noise level.
        changes: section -> key -> value laid over the result.
        where: what errors call them.

    Raises:
        FileNotFoundError: the run has no whole checkpoint yet.
        ValueError: a change concerns the network, the diffusion process, the strategy or the
            origin, or is refused.
    """
    changes = dict(changes or {})
    decided = {field.name for field in dataclasses.fields(TuneConfig)} - {"sandwich_share"}
    for key in decided.intersection(_keys(changes, "tune")):
        raise Refusal(f"{where}: tune.{key} is what the strategy and the run decide")
    for section in ("model", "diffusion"):
        if section in changes:
            raise Refusal(f"{where}: {section} belongs to the weights of {origin}; need none")
    changed(config, {"codec": _keys(changes, "codec")}, where)  # not the autoencoder, either
    newest = newest_complete(origin)
    if newest is None:
        raise FileNotFoundError(f"{origin}: has no whole checkpoint; need ddsm train first")
    step = step_of(newest)
    weights = weights_digest(load_network(origin, config, torch.device("cpu"), step=step))
    values = plain(config)
    values["train"] = _tuning(config, _keys(changes, "train").get("steps"))
    values["tune"] = {
        **values["tune"],
        "origin": origin.resolve().name,
        "origin_step": step,
        "origin_weights": weights,
        "widths": list(strategy.widths),
        "cuts": list(strategy.cuts),
    }
    return RunConfig.from_dict(merge(values, changes), where)


def _keys(changes: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """A section's changes; none where they are no mapping, which is refused later."""
    keys = changes.get(section)
    return keys if isinstance(keys, Mapping) else {}


def _tuning(config: RunConfig, wanted: Any) -> dict[str, Any]:
    """The section train of a tuned run; `wanted` are its steps, None: not given."""
    train: TrainConfig = config.train
    values = dataclasses.replace(train, extensions=()).to_dict()
    again = config.tune.strategy is not None
    steps = values["steps"] if again else max(1, values["steps"] // 2)
    warmup = train.warmup_steps
    if is_int(wanted) or not again:
        warmup = min(warmup, (wanted if is_int(wanted) else steps) // 10)
    values = {**values, "steps": steps, "warmup_steps": warmup}
    if again:
        return values
    return {
        **values,
        "start_from": None,
        "lr": 0.5 * train.lr,
        "lr_final": 0.0,
        # The strategy's widths soon are better than what they come from; on the digits
        # distillation was not worth its MACs from the start (docs/method.md).
        "distill_weight": 0.0,
        "teacher": "origin",
        "t_importance": 0.0,
    }
