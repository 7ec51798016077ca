"""The text that `--dry-run` prints: what a command would do, and what that takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddsm_ext.cli.console import table
from ddsm_ext.graph import count
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.costs import (
    Estimate,
    estimate_sampling,
    estimate_scores,
    estimate_search,
    estimate_training,
)
from ddsm_ext.run.strategies import ScorePlan
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.cost import share_of_paper

if TYPE_CHECKING:
    from ddsm_ext.run.encoding import Encoding


def training_text(config: RunConfig) -> str:
    """Return what `ddsm train`, or `tune`, would do: configuration, sizes, estimate of its time."""
    train, takes = config.train, estimate_training(config)
    tuned = () if config.tune.strategy is None else ("tune",)
    return "\n".join(
        [
            _model(config, ("model", "diffusion", "data", "train", *tuned)),
            _memory(takes),
            f"{time_line(takes.seconds)}, for {train.steps} steps of {train.batch_size} images",
        ]
    )


def sampling_text(config: RunConfig, strategy: Strategy, images: int, batch: int) -> str:
    """Return what `ddsm sample` would do."""
    takes = estimate_sampling(config, strategy, images, batch)
    counts = sorted(Counter(takes.run_widths).items(), reverse=True)
    used = ", ".join(f"{number} at width {width:g}" for width, number in counts)
    return "\n".join(
        [
            _model(config, ("model", "diffusion", "sampler")),
            *_decoder(config, takes.macs / images),
            f"runs of the network: {len(takes.run_widths)} ({used})",
            f"million MACs an image: {takes.macs / images / 1e6:.5g}",
            _memory(takes),
            f"{time_line(takes.seconds)}, for {images} images",
        ]
    )


def search_text(config: RunConfig) -> str:
    """Return what `ddsm search` would do."""
    search, takes = config.search, estimate_search(config)
    runs, samples = len(takes.run_widths), search.most_scored_samples()
    if not config.scores_searched:
        scored = "scores no sample: the front of the sampler-weighted errors"
    else:
        scored = (
            f"about {samples:,} samples of {runs} runs scored: {samples * runs:,} network "
            f"evaluations, {share_of_paper(samples * runs)} of the DDSM paper's search"
        )
    return "\n".join(
        [
            _model(config, ("model", "diffusion", "sampler", "search", "eval")),
            f"method {search.method}: {scored}",
            *_decoder(config, estimate_sampling(config, 1.0, 1, 1).macs),
            _memory(takes),
            time_line(takes.seconds),
        ]
    )


def encoding_text(encoding: Encoding) -> str:
    """Return what `ddsm encode` would do."""
    manifest, n_bytes, seconds = encoding.estimate()
    images, codec = manifest.images, encoding.codec
    side, latent = images.config.image_size or 0, "x".join(map(str, manifest.shape))
    encode, decode = codec.macs(side)
    turned = ", and of the mirrored ones" if manifest.flips else ""
    settings = {"data": images.config.to_dict(), "codec": manifest.codec.to_dict()}
    return "\n".join(
        [
            json.dumps(settings, indent=2),
            f"{images.count:,} images of {images.config.channels}x{side}x{side}: latents of "
            f"{latent}{turned}",
            f"million MACs an image: {encode / 1e6:.5g} to encode, {decode / 1e6:.5g} to decode",
            f"disk: about {_size(n_bytes)}",
            time_line(seconds),
        ]
    )


def time_line(seconds: float) -> str:
    """The line that says how long work takes, e.g. `time: about 3 min on ...`."""
    if seconds < 90:
        text = f"{seconds:.0f} s"
    elif seconds < 5400:
        text = f"{seconds / 60:.0f} min"
    elif seconds < 172_800:
        text = f"{seconds / 3600:.0f} h"
    else:
        text = f"{seconds / 86_400:.0f} days"
    return f"time: about {text} on this processor"


def memory_line(n_bytes: float) -> str:
    """The line that says how much memory work takes."""
    return f"memory: about {_size(n_bytes)}"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _decoder(config: RunConfig, image_macs: float) -> list[str]:
    """The line that says what decoding costs, beside the MACs of an image; none of pixels."""
    macs = config.codec.decode_macs
    if not macs:
        return []
    steps, share = macs / count.macs(config.model, 1.0), macs / image_macs
    return [
        f"decoder: {macs / 1e6:.5g} million MACs an image, as {steps:.2g} steps of the full width; "
        f"{100 * share:.1f} % of an image's"
    ]


def _memory(takes: Estimate) -> str:
    return memory_line(takes.n_bytes)


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


def scoring_text(config: RunConfig, plan: ScorePlan) -> str:
    """Return what `ddsm eval` would do."""
    takes = estimate_scores(config, plan.named.values(), plan.images_each)
    return "\n".join(
        [
            _model(config, ("model", "diffusion", "sampler", "eval")),
            *_decoder(config, takes.macs / (plan.images_each * len(plan.named))),
            _samples(plan),
            f"strategies: {', '.join(plan.named)}",
            _memory(takes),
            time_line(takes.seconds),
        ]
    )


def scoring_line(config: RunConfig, plan: ScorePlan, *, timed: bool) -> str:
    """Return what `ddsm eval` says before it begins.

    Args:
        config: of the run.
        plan: what is scored.
        timed: whether to say how long it takes; this processor is what estimates are of.
    """
    if not timed:
        return _samples(plan)
    takes = estimate_scores(config, plan.named.values(), plan.images_each)
    return f"{_samples(plan)}; {time_line(takes.seconds)}"


def _samples(plan: ScorePlan) -> str:
    count = len(plan.named)
    each = f"{plan.ranges} x {len(plan.seeds):,} samples"
    return f"scoring {count} strategies by {each} each: {count * plan.images_each:,}"
