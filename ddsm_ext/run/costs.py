"""What work costs on this machine: a step of each width; training, sampling, a search ahead.

A step's MACs are counted and its ms measured. What is still to be done is estimated from its MACs
and the time of a few forward passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import torch

from ddsm_ext._fixed_weights import fixed_weights
from ddsm_ext.bench.timing import interleaved
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.graph import count
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.machine import machine_info, memory_bytes
from ddsm_ext.models.families import preset
from ddsm_ext.run.compose import build_network
from ddsm_ext.run.config import RunConfig
from ddsm_ext.sampling.levels import evaluations
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.cost import CostTable
from ddsm_ext.search.sensitivity import LEVELS
from ddsm_ext.settings import Refusal
from ddsm_ext.training.config import TrainConfig
from ddsm_ext.training.timesteps import Uniform, usual_timesteps

# weights, gradients, two Adam moments and the average, all float32
TRAINING_COPIES = 5
# a backward pass computes two products of a forward's size, one for inputs and one for weights
TRAINING_PASSES = 3
# the strategies that a search scores cost about half the full width
SEARCHED_SHARE = 0.5
# rounds in which each width is timed, and those before them
TIMED_ROUNDS, WARMUP_ROUNDS = 9, 3
# of the largest network that an estimate makes and runs
TIMED_MACS, TIMED_WEIGHTS = 2e11, 5e8
# noise levels of a training by whose widths its work is estimated, where they are not timesteps
_DRAWN_LEVELS = 10_000


def macs_table(config: NetworkConfig, widths: Sequence[float]) -> CostTable:
    """Return the MACs of one image and step at each width, attention's products included."""
    return CostTable("macs", {float(w): float(count.macs(config, w)) for w in widths})


def conditions(
    *, batch: int, dtype: str, device: torch.device | str, network: str
) -> dict[str, Any]:
    """Return what a time measured now depends on: this machine, its torch and the arguments.

    Args:
        batch: images a step runs at once.
        dtype: name of the computation's type, e.g. "float32".
        device: where it is measured, e.g. "cpu" or "cuda:1".
        network: digest or text that names the network's configuration.
    """
    host, device = machine_info(), torch.device(device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "machine": host["machine"],
        "cpu": host["cpu"],
        "gpu": gpu,
        "device": device.type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "dtype": dtype,
        "network": network,
        "steps": "compiled",  # as the sampler runs them; earlier tables timed the modules
    }


def measure_ms(
    run_step: Callable[[float], object],
    widths: Sequence[float],
    *,
    batch: int,
    conditions: Mapping[str, Any] | None = None,
    rounds: int = TIMED_ROUNDS,
    warmup_rounds: int = WARMUP_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> CostTable:
    """Measure the ms of one image and step at each width: median over interleaved rounds.

    Every round runs each width once, begun from another width each time, so that drift of clock
    speed or temperature touches all widths alike.

    Args:
        run_step: runs one step of `batch` images at a width and returns when it is finished (on a
            GPU it synchronises).
        widths: widths to measure.
        batch: images a call of `run_step` handles.
        conditions: where it is measured, from `conditions(...)`; None stores none.
        rounds: measured rounds, >= 1.
        warmup_rounds: rounds before them that are not measured.
        clock: time in seconds.
        progress: called with (rounds done, rounds in all); None for silence.

    Raises:
        ValueError: no widths, no rounds or no images.
    """
    if not widths or rounds < 1 or warmup_rounds < 0 or batch < 1:
        raise Refusal(
            f"measure_ms: {len(widths)} widths, {rounds} rounds, {warmup_rounds} to warm up, batch "
            f"{batch}; need at least 1 width, 1 round, 0 to warm up, batch 1"
        )
    with fixed_weights():  # as in sampling
        times = interleaved(
            {float(width): partial(run_step, width) for width in widths},
            rounds=rounds,
            warmup_rounds=warmup_rounds,
            min_sample_ms=0.0,
            clock=clock,
            progress=progress,
        )
    stamp = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    spread = {w: _spread([ms / batch for ms in t.rounds_ms]) for w, t in times.items()}
    costs = {width: values["median_ms"] for width, values in spread.items()}
    return CostTable("ms", costs, {**(conditions or {}), **stamp}, spread)


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {
        "min_ms": min(values),
        "median_ms": median,
        "iqr_ms": high - low,
        "rounds": len(values),
    }


@dataclass(frozen=True)
class Estimate:
    """What a piece of work takes.

    Args:
        macs: multiply-accumulates of all of it.
        seconds: its time on this processor.
        n_bytes: memory of weights and of the activations of a batch.
        run_widths: width of every run of the network for an image; empty for training.
    """

    macs: float
    seconds: float
    n_bytes: float
    run_widths: tuple[float, ...] = ()


def ms_per_gmac(config: RunConfig) -> float:
    """Return the measured ms a thousand million MACs of this network take on this machine.

    The full width runs forward on a few images; a forward pass of any batch is of that order. In
    place of a network that is too large to be run for a guess, the one of CIFAR-10 does.
    """
    model = config.model
    if count.macs(model, 1.0) > TIMED_MACS or count.parameter_count(model) > TIMED_WEIGHTS:
        model = preset("cifar10")
    network = build_network(replace(config, model=model), torch.device("cpu")).eval()
    macs = count.macs(model, 1.0)
    batch = max(1, min(32, int(2e9 / macs)))
    shape = (batch, model.image_channels, model.image_size, model.image_size)
    x = torch.zeros(shape, dtype=torch.float32, device="cpu")
    t = torch.zeros(batch, dtype=torch.int64, device="cpu")
    labels = (t,) if model.label_count else ()
    calls = {"step": lambda: network(x, t, 1.0, *labels)}
    with torch.inference_mode():
        times = interleaved(calls, rounds=3, warmup_rounds=0)
    return times["step"].min_ms / (macs * batch / 1e9)


def _estimate(
    config: RunConfig,
    macs: float,
    batch: int,
    run_widths: tuple[float, ...] = (),
    *,
    training: bool = False,
) -> Estimate:
    n_bytes = _bytes(config.model, batch, _copies(config) if training else 0)
    return Estimate(macs, macs / 1e9 * ms_per_gmac(config) / 1e3, n_bytes, run_widths)


def _copies(config: RunConfig) -> int:
    """How often a training holds the weights, or as much: also averages, and a teacher's."""
    train = config.train
    taught = train.distill_weight > 0 or train.t_importance > 0
    return TRAINING_COPIES + len(train.ema_lengths) + (taught and train.teacher == "origin")


def _bytes(network: NetworkConfig, batch: int, copies: int) -> float:
    """Memory of weights and of the activations of a batch; `copies` of a training, 0: none."""
    n_bytes = 4.0 * max(1, copies) * count.parameter_count(network)
    return n_bytes + count.activation_bytes(network, 1.0, batch, training=copies > 0)


def images_at_once(config: RunConfig, batch: int) -> int:
    """Return how many images of a batch the network runs on together: guided ones twice."""
    guidance = config.sampler.guidance_by(config.model.null_label)
    return batch * (2 if guidance is not None and guidance.widths is None else 1)


def _trained_at_once(train: TrainConfig) -> int:
    """Images of the largest part of a batch."""
    return -(-train.batch_size // train.micro_batches)


def check_training_memory(config: RunConfig, device: torch.device) -> None:
    """Refuse a training that this machine's memory cannot hold; see `check_memory`.

    Raises:
        ValueError: it is more than twice the machine's memory.
    """
    part, copies = _trained_at_once(config.train), _copies(config)
    check_memory(config.model, part, device, "train.batch_size", copies=copies)


def check_memory(
    network: NetworkConfig,
    batch: int,
    device: torch.device,
    what: str,
    *,
    copies: int = 0,
) -> None:
    """Refuse what this machine's memory cannot hold, before any of it is allocated.

    The estimate may be twice too high. A GPU says itself what it cannot hold; the weights are made
    in the machine's memory first.

    Args:
        network: what is run.
        batch: images that run together.
        device: where they run.
        what: the setting that says how many, for the error.
        copies: how often a training on them holds the weights; 0: there is none.

    Raises:
        ValueError: it is more than twice the machine's memory.
    """
    on_cpu = device.type == "cpu"
    needed = _bytes(network, batch if on_cpu else 0, copies if on_cpu else 0)
    if needed > 2 * memory_bytes():
        raise Refusal(
            f"{what} is {batch}, the network has {count.parameter_count(network):,} parameters and "
            f"images of {network.image_size} pixels: that takes about {needed / 1e9:,.0f} GB of "
            f"memory, there are {memory_bytes() / 1e9:,.0f}; need a smaller batch or network"
        )


def _run_widths(config: RunConfig, strategy: Strategy | float) -> tuple[float, ...]:
    """Width of every run of the network for an image."""
    steps = evaluations(make_schedule(config.diffusion), config.sampler, strategy)
    return tuple(width for step in steps for width in step.widths)


def estimate_training(config: RunConfig) -> Estimate:
    """Return what training, or tuning, to the last step takes."""
    train, strategy = config.train, config.tune.strategy
    step_macs = _sandwich_macs(config)
    if strategy is not None:
        share = config.tune.sandwich_share
        step_macs = share * step_macs + (1.0 - share) * _routed_macs(config, strategy)
    macs = step_macs * train.batch_size * train.steps
    return _estimate(config, macs, _trained_at_once(train), training=True)


def _teacher_macs(config: RunConfig) -> float:
    """MACs of an image that a network of its own, other than the live one, teaches."""
    train = config.train
    taught = train.distill_weight > 0 or train.t_importance > 0
    return count.macs(config.model, train.widths[0]) if taught and train.teacher != "live" else 0


def _sandwich_macs(config: RunConfig) -> float:
    """MACs of an image in a step of the sandwich rule."""
    train = config.train
    widths = sorted(train.widths)
    middle = [count.macs(config.model, w) for w in widths[1:-1]]
    narrow = min(train.middle_widths, len(middle)) + min(1, len(widths) - 1)
    macs: float = sum(count.macs(config.model, w) for w in {widths[0], widths[-1]})
    macs += min(train.middle_widths, len(middle)) * (sum(middle) / max(1, len(middle)))
    draws = narrow if train.t_importance or not train.shared_noise else min(1, narrow)
    return TRAINING_PASSES * macs + draws * _teacher_macs(config)


def _routed_macs(config: RunConfig, strategy: Strategy) -> float:
    """MACs of an image in a step of the width that a strategy gives its noise level."""
    schedule = make_schedule(config.diffusion)
    usual, log_snrs = usual_timesteps(schedule, config.train), schedule.log_snrs
    if not isinstance(usual, Uniform):
        log_snrs = schedule.log_snr(usual.draw(_DRAWN_LEVELS, torch.Generator().manual_seed(0)))
    widths = strategy.widths_for(log_snrs.tolist())
    full, teacher = config.train.widths[0], _teacher_macs(config)
    each = {
        w: TRAINING_PASSES * count.macs(config.model, w) + (teacher if w < full else 0)
        for w in set(widths)
    }
    return sum(each[w] for w in widths) / len(widths)


def estimate_sampling(
    config: RunConfig, strategy: Strategy | float, images: int, batch: int
) -> Estimate:
    """Return what making images with a strategy takes.

    Args:
        config: of the run.
        strategy: widths of the steps.
        images: how many.
        batch: images that run together.
    """
    widths = _run_widths(config, strategy)
    macs = sum(count.macs(config.model, width) for width in widths) + config.codec.decode_macs
    return _estimate(config, macs * images, images_at_once(config, batch), widths)


def estimate_search(config: RunConfig) -> Estimate:
    """Return about what a search takes: its scores, and before them each width's error and time."""
    widths, batch = _run_widths(config, 1.0), config.eval.batch_size
    full = count.macs(config.model, 1.0)
    samples = config.search.most_scored_samples() if config.scores_searched else 0
    scores = (SEARCHED_SHARE * full * len(widths) + config.codec.decode_macs) * samples
    each = sum(count.macs(config.model, width) for width in config.search.widths)
    errors = each * LEVELS * config.eval.sensitivity_images
    times = each * (TIMED_ROUNDS + WARMUP_ROUNDS) * batch
    at_once = images_at_once(config, batch)
    return _estimate(config, scores + errors + times, at_once, widths)


def estimate_scores(config: RunConfig, strategies: Iterable[Strategy], images: int) -> Estimate:
    """Return about what scores of some strategies take: their samples, without the features.

    Args:
        config: of the run.
        strategies: widths of the steps, of each.
        images: samples of each.
    """
    macs = sum(
        sum(count.macs(config.model, width) for width in _run_widths(config, strategy))
        + config.codec.decode_macs
        for strategy in strategies
    )
    return _estimate(config, macs * images, images_at_once(config, config.eval.batch_size))
