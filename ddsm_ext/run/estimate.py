"""What training, sampling or a search would take on this machine, before it is begun."""

from __future__ import annotations

from dataclasses import dataclass

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.graph import count
from ddsm_ext.run.config import RunConfig
from ddsm_ext.sampling.strategy import Strategy

# weights, gradients, two Adam moments and the average, all float32
TRAINING_COPIES = 5
# a backward pass computes two products of a forward's size, one for inputs and one for weights
TRAINING_PASSES = 3
# the strategies that a search scores cost about half the full width
SEARCHED_SHARE = 0.5


@dataclass(frozen=True)
class Estimate:
    """What a piece of work takes.

    Args:
        macs: multiply-accumulates of all of it.
        seconds: its time on this processor.
        n_bytes: memory of weights and of the activations of a batch.
        step_widths: width of each denoising step of an image; empty for training.
    """

    macs: float
    seconds: float
    n_bytes: float
    step_widths: tuple[float, ...] = ()


def ms_per_gmac(config: RunConfig) -> float:
    """Return the measured ms a thousand million MACs of this network take on this machine.

    The full width runs forward on a few images; a forward pass of any batch is of that order.
    """
    import torch

    from ddsm_ext.run.compose import build_network

    network = build_network(config, torch.device("cpu")).eval()
    model = config.model
    macs = count.macs(model, 1.0)
    batch = max(1, min(32, int(2e9 / macs)))
    x = torch.zeros(batch, model.image_channels, model.image_size, model.image_size)
    t = torch.zeros(batch, dtype=torch.int64)
    calls = {"step": lambda: network(x, t, 1.0)}
    with torch.inference_mode():
        times = interleaved(calls, rounds=3, warmup_rounds=0)
    return times["step"].min_ms / (macs * batch / 1e9)


def _estimate(
    config: RunConfig,
    macs: float,
    batch: int,
    step_widths: tuple[float, ...] = (),
    *,
    training: bool = False,
) -> Estimate:
    copies = TRAINING_COPIES if training else 1
    n_bytes = 4.0 * copies * count.parameter_count(config.model)
    n_bytes += count.activation_bytes(config.model, 1.0, batch, training=training)
    return Estimate(macs, macs / 1e9 * ms_per_gmac(config) / 1e3, n_bytes, step_widths)


def _step_widths(config: RunConfig, strategy: Strategy | float) -> tuple[float, ...]:
    from ddsm_ext.diffusion.schedule import make_schedule
    from ddsm_ext.sampling.levels import evaluations

    steps = evaluations(make_schedule(config.diffusion), config.sampler, strategy)
    return tuple(step.width for step in steps)


def estimate_training(config: RunConfig) -> Estimate:
    """Return what training to the last step takes."""
    train = config.train
    widths = sorted(train.widths)
    middle = [count.macs(config.model, w) for w in widths[1:-1]]
    step_macs: float = sum(count.macs(config.model, w) for w in {widths[0], widths[-1]})
    step_macs += min(train.middle_widths, len(middle)) * (sum(middle) / max(1, len(middle)))
    macs = TRAINING_PASSES * step_macs * train.batch_size * train.steps
    return _estimate(config, macs, train.batch_size, training=True)


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
    widths = _step_widths(config, strategy)
    macs = sum(count.macs(config.model, width) for width in widths)
    return _estimate(config, macs * images, batch, widths)


def estimate_search(config: RunConfig) -> Estimate:
    """Return what the scores of a search take at most."""
    widths = _step_widths(config, 1.0)
    scored = config.search.most_evaluations().get("full", 0)
    images = config.eval.search_images * scored
    macs = SEARCHED_SHARE * count.macs(config.model, 1.0) * len(widths) * images
    return _estimate(config, macs, config.eval.batch_size, widths)
