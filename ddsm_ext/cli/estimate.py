"""What a command would need: the text that `--dry-run` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.cli.config import RunConfig
from ddsm_ext.cli.console import table
from ddsm_ext.graph import count
from ddsm_ext.sampling.strategy import Strategy

# weights, gradients, two Adam moments and the average, all float32
TRAINING_COPIES = 5
# a backward pass computes two products of a forward's size, one for inputs and one for weights
TRAINING_PASSES = 3


def ms_per_gmac(config: RunConfig) -> float:
    """Return the measured ms a thousand million MACs of this network take on this machine.

    The full width runs forward on a few images; a forward pass of any batch is of that order.
    """
    import torch

    from ddsm_ext.cli.compose import build_network

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


def duration(seconds: float) -> str:
    """Return a time as text, e.g. `about 3 min`."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"about {seconds / 3600:.0f} h"
    return f"about {seconds / 86_400:.0f} days"


def size(n_bytes: float) -> str:
    """Return a number of bytes as text in MB or GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def describe_model(config: RunConfig, sections: Sequence[str]) -> str:
    """Return configuration, parameters and MACs per width as text."""
    values = {name: section for name, section in config.to_dict().items() if name in sections}
    full = count.macs(config.model, 1.0)
    rows = []
    for width in config.model.widths:
        macs = count.macs(config.model, width)
        rows.append((f"{width:g}", f"{macs / 1e6:.4g}", f"{100 * macs / full:.1f} %"))
    return "\n".join(
        [
            json.dumps(values, indent=2),
            f"parameters: {count.parameter_count(config.model):,}",
            "million MACs an image and step (multiply-accumulates; FLOPs are twice that):",
            table(("width", "MMACs", "of the full width"), rows),
        ]
    )


def describe_training(config: RunConfig) -> str:
    """Return what `ddsm train` would do: configuration, sizes and an estimate of its time."""
    train = config.train
    widths = sorted(train.widths)
    middle = [count.macs(config.model, w) for w in widths[1:-1]]
    step_macs = sum(count.macs(config.model, w) for w in {widths[0], widths[-1]})
    step_macs += min(train.middle_widths, len(middle)) * (sum(middle) / max(1, len(middle)))
    total = TRAINING_PASSES * step_macs * train.batch_size * train.steps
    memory = 4.0 * TRAINING_COPIES * count.parameter_count(config.model)
    memory += count.activation_bytes(config.model, 1.0, train.batch_size, training=True)
    seconds = total / 1e9 * ms_per_gmac(config) / 1e3
    return "\n".join(
        [
            describe_model(config, ("model", "diffusion", "data", "train")),
            f"memory: about {size(memory)}",
            f"time: {duration(seconds)} on this processor, for {train.steps} steps of "
            f"{train.batch_size} images",
        ]
    )


def describe_sampling(config: RunConfig, strategy: Strategy, images: int, batch: int) -> str:
    """Return what `ddsm sample` would do."""
    from ddsm_ext.diffusion.schedule import make_schedule
    from ddsm_ext.sampling.plan import plan_steps

    steps = plan_steps(make_schedule(config.diffusion), strategy, config.sampler)
    macs = sum(count.macs(config.model, step.width) for step in steps)
    counts = {step.width: 0 for step in steps}
    for step in steps:
        counts[step.width] += 1
    used = ", ".join(f"{counts[w]} at width {w:g}" for w in sorted(counts, reverse=True))
    memory = 4.0 * count.parameter_count(config.model)
    memory += count.activation_bytes(config.model, 1.0, batch, training=False)
    seconds = macs * images / 1e9 * ms_per_gmac(config) / 1e3
    return "\n".join(
        [
            describe_model(config, ("model", "diffusion", "sampler")),
            f"steps: {len(steps)} ({used})",
            f"million MACs an image: {macs / 1e6:.5g}",
            f"memory: about {size(memory)}",
            f"time: {duration(seconds)} on this processor, for {images} images",
        ]
    )


def describe_search(config: RunConfig) -> str:
    """Return what `ddsm search` would do."""
    from ddsm_ext.diffusion.schedule import make_schedule
    from ddsm_ext.sampling.plan import plan_steps

    search = config.search
    steps = len(plan_steps(make_schedule(config.diffusion), 1.0, config.sampler))
    full = search.full_per_generation * search.generations + search.full_final
    full += search.refine_generations * (search.refine_population or search.population // 2)
    # the strategies that are scored cost about half the full width
    macs = 0.5 * count.macs(config.model, 1.0) * steps * config.eval.search_images * full
    seconds = macs / 1e9 * ms_per_gmac(config) / 1e3
    memory = 4.0 * count.parameter_count(config.model)
    memory += count.activation_bytes(config.model, 1.0, config.eval.batch_size, training=False)
    return "\n".join(
        [
            describe_model(config, ("model", "diffusion", "sampler", "search", "eval")),
            f"candidates: {search.population} x {search.generations} generations; up to {full} "
            f"of them scored with {config.eval.search_images} images of {steps} steps",
            f"memory: about {size(memory)}",
            f"time: {duration(seconds)} on this processor",
        ]
    )
