"""What a command would need: the text that `--dry-run` prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from tabulate import tabulate

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.graph import count
from ddsm_ext.run.config import RunConfig
from ddsm_ext.sampling.strategy import Strategy

# weights, gradients, two Adam moments and the average, all float32
TRAINING_COPIES = 5
# a backward pass computes two products of a forward's size, one for inputs and one for weights
TRAINING_PASSES = 3


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned columns, the first to the left, the others to the right."""
    sides = ["left", *["right"] * (len(head) - 1)]
    return tabulate(rows, head, "plain", colalign=sides, disable_numparse=True)


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


def _time(config: RunConfig, macs: float) -> str:
    """The line that says how long so many MACs take, e.g. `time: about 3 min on ...`."""
    seconds = macs / 1e9 * ms_per_gmac(config) / 1e3
    if seconds < 90:
        text = f"{seconds:.0f} s"
    elif seconds < 5400:
        text = f"{seconds / 60:.0f} min"
    elif seconds < 172_800:
        text = f"{seconds / 3600:.0f} h"
    else:
        text = f"{seconds / 86_400:.0f} days"
    return f"time: about {text} on this processor"


def _memory(config: RunConfig, batch: int, *, training: bool = False) -> str:
    """The line that says what weights and activations of a batch take."""
    copies = TRAINING_COPIES if training else 1
    n_bytes = 4.0 * copies * count.parameter_count(config.model)
    n_bytes += count.activation_bytes(config.model, 1.0, batch, training=training)
    text = f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
    return f"memory: about {text}"


def _model(config: RunConfig, sections: Sequence[str]) -> str:
    """Sections of the configuration, parameters and MACs per width."""
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
    macs = TRAINING_PASSES * step_macs * train.batch_size * train.steps
    return "\n".join(
        [
            _model(config, ("model", "diffusion", "data", "train")),
            _memory(config, train.batch_size, training=True),
            f"{_time(config, macs)}, for {train.steps} steps of {train.batch_size} images",
        ]
    )


def describe_sampling(config: RunConfig, strategy: Strategy, images: int, batch: int) -> str:
    """Return what `ddsm sample` would do."""
    from ddsm_ext.diffusion.schedule import make_schedule
    from ddsm_ext.sampling.levels import evaluations

    steps = evaluations(make_schedule(config.diffusion), config.sampler, strategy)
    macs = sum(count.macs(config.model, step.width) for step in steps)
    counts = sorted(Counter(step.width for step in steps).items(), reverse=True)
    used = ", ".join(f"{number} at width {width:g}" for width, number in counts)
    return "\n".join(
        [
            _model(config, ("model", "diffusion", "sampler")),
            f"steps: {len(steps)} ({used})",
            f"million MACs an image: {macs / 1e6:.5g}",
            _memory(config, batch),
            f"{_time(config, macs * images)}, for {images} images",
        ]
    )


def describe_search(config: RunConfig) -> str:
    """Return what `ddsm search` would do."""
    from ddsm_ext.diffusion.schedule import make_schedule
    from ddsm_ext.sampling.levels import evaluations

    search = config.search
    steps = len(evaluations(make_schedule(config.diffusion), config.sampler))
    full = search.most_evaluations().get("full", 0)
    # the strategies that are scored cost about half the full width
    macs = 0.5 * count.macs(config.model, 1.0) * steps * config.eval.search_images * full
    return "\n".join(
        [
            _model(config, ("model", "diffusion", "sampler", "search", "eval")),
            f"candidates: {search.population} x {search.generations} generations; up to {full} "
            f"of them scored with {config.eval.search_images} images of {steps} steps",
            _memory(config, config.eval.batch_size),
            _time(config, macs),
        ]
    )
