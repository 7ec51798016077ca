"""The JSON files that a run keeps for its report, as typed documents; whoever writes one of them
makes the object here and saves it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from ddsm_ext.io.typed import (
    LARGEST,
    Amount,
    Count,
    Facts,
    Label,
    Positive,
    Row,
    Share,
    TypedDocument,
    Width,
    Within,
    read,
    read_key,
)
from ddsm_ext.settings import Refusal, shown

# What a score is of, in the order of a report: "strategy" is the run's own, "other" all else.
Kind = Literal["full", "strategy", "width", "reverse", "two segments", "other"]
KINDS: tuple[str, ...] = get_args(Kind)
_SEEDS = re.compile(r"(\d{1,19}(-\d{1,19})?(,(?=\d)|$))*")


@dataclass(frozen=True, kw_only=True)
class Score(Row):
    """A row of metrics.json: the scores of one strategy's samples of some seeds.

    Args:
        label: name of the strategy.
        kind: what it is.
        widths, cuts: of the strategy.
        seeds: of the samples, e.g. "0-99,200".
        frechet: Fréchet distance of the samples to the real images.
        images: how many samples; None where an earlier version did not say.
        macs_per_image, ms_per_image: cost of a sample; None where not known.
        kid, kid_std, precision, recall, inception_score: further scores, where they were taken.
        frechet_held_out, images_held_out: of images that no training saw, where there are such.
    """

    label: Label
    kind: Kind
    widths: tuple[Width, ...] = ()
    cuts: tuple[float, ...] = ()
    seeds: str = ""
    frechet: float
    kid: float | None = None
    kid_std: float | None = None
    precision: Share | None = None
    recall: Share | None = None
    images: Count | None = None
    inception_score: float | None = None
    frechet_held_out: float | None = None
    images_held_out: Count | None = None
    macs_per_image: Positive | None = None
    ms_per_image: Positive | None = None

    def __post_init__(self) -> None:
        if not _SEEDS.fullmatch(self.seeds):
            raise Refusal(f"seeds is {shown(self.seeds)}; need numbers and ranges such as 0-99,200")


@dataclass(frozen=True)
class SideBySide(Row):
    """Times an image of the full width and of the run's strategy."""

    full: Positive
    strategy: Positive


@dataclass(frozen=True)
class Timing(Row):
    """What was timed in turns, and how; see `run.scoring.interleaved_ms`."""

    ms_per_image: SideBySide
    images: Count | None = None
    batch_size: Count | None = None
    rounds: Count | None = None
    threads: Count | None = None
    device: Label | None = None


@dataclass(frozen=True)
class Metrics(TypedDocument):
    """metrics.json: the scores of a run.

    Args:
        features, reference, sampler: what the scores depend on, as their parts tell it.
        weights: digest of the network's weights; None where an earlier version did not say.
        rows: the scores.
        timing: of the run's strategy beside the full width; None where not taken.
    """

    what: ClassVar[str] = "file of scores"

    features: Facts = field(default_factory=dict)
    reference: Facts = field(default_factory=dict)
    sampler: Facts = field(default_factory=dict)
    weights: Label | None = None
    rows: tuple[Score, ...] = ()
    timing: Timing | None = None


@dataclass(frozen=True)
class Steps(TypedDocument):
    """search/steps.json: the steps of the run's sampler under its strategy, first to last.

    Args:
        timesteps, log_snr: noise level of each.
        widths: width of each.
        gains: what the sampler makes of the network's output at each; none from an earlier version.
        macs: width, as text -> MACs of a step.
    """

    what: ClassVar[str] = "file of a sampler's steps"

    timesteps: Annotated[tuple[float, ...], Within(1)]
    log_snr: tuple[float, ...]
    widths: tuple[Width, ...]
    gains: tuple[float, ...] = ()
    macs: dict[str, Positive] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("log_snr", "widths", *(["gains"] if self.gains else [])):
            if len(getattr(self, name)) != len(self.timesteps):
                raise Refusal(
                    f"{name} has {len(getattr(self, name))} values; need one a step, "
                    f"{len(self.timesteps)}"
                )


@dataclass(frozen=True)
class WidthCost(Row):
    """Cost of a step of one image at a width.

    Args:
        width: the width.
        macs: MACs.
        ms: measured time.
        realised_bound: most that time saved over MACs saved can be at this width; None at the full
            width, and from an earlier version.
    """

    width: Width
    macs: Positive
    ms: Positive
    realised_bound: float | None = None


@dataclass(frozen=True)
class DecodingCost(Row):
    """MACs and time of decoding an image of latents."""

    macs: Positive
    ms: Positive


@dataclass(frozen=True)
class Costs(TypedDocument):
    """search/costs.json: what a step costs at each width, and what comes beside the steps.

    Args:
        rows: of each width.
        batch_size, threads: how the times were taken.
        overhead_ms: of each time, the sampler's own work; None from an earlier version.
        decoding: of an image; None: the network makes pixels.
    """

    what: ClassVar[str] = "file of costs"

    rows: Annotated[tuple[WidthCost, ...], Within(1)]
    batch_size: Count
    threads: Count
    overhead_ms: Amount | None = None
    decoding: DecodingCost | None = None


@dataclass(frozen=True)
class Picture(Row):
    """A row of images of one strategy: its label, and the PNG file beside index.json."""

    label: Label
    file: Label

    def __post_init__(self) -> None:
        if not self.file.isprintable():
            raise Refusal(f"file is {shown(self.file)}; need the name of a PNG file")


@dataclass(frozen=True)
class Pictures(TypedDocument):
    """samples/compare/index.json: images of several strategies from the same seeds."""

    what: ClassVar[str] = "list of pictures"

    seeds: Label
    rows: tuple[Picture, ...]


@dataclass(frozen=True)
class Environment(TypedDocument):
    """env.json: where a run was made; see `machine.machine_info`."""

    what: ClassVar[str] = "description of a machine"

    machine: Label = ""
    cpu: Label = ""
    cores: Count | None = None
    system: Label = ""
    python: Label = ""
    versions: dict[str, Label] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    started: Label = ""


@dataclass(frozen=True)
class LogRow(Row):
    """A line of log.jsonl, which may hold more: the losses of the widths at a step of the training.

    Args:
        step: the step.
        losses: width -> loss, of the widths that were trained and had a finite one.
    """

    step: Count
    losses: dict[Width, Amount]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a row from a line: `loss_w0.5` is the loss of width 0.5.

        Raises:
            ValueError: step or a loss is no number, or a width is none.
        """
        losses = {}
        for key, loss in values.items():
            if key.startswith("loss_w") and loss is not None:  # None: it was not finite
                # a log may have many thousands of rows: what is right is seen at once
                right = type(loss) is float and 0.0 <= loss <= LARGEST
                losses[_width_of(key)] = loss if right else read(Amount, loss, key)
        return cls(read(Count, values.get("step"), "step"), losses)


@functools.lru_cache(maxsize=256)
def _width_of(key: str) -> float:
    """The width of a key such as "loss_w0.5"."""
    width: float = read_key(Width, key.removeprefix("loss_w"), key)
    return width


@dataclass(frozen=True)
class Command(Row):
    """A line of commands.jsonl: a command of this run."""

    partial: ClassVar[bool] = True

    command: str
