"""`UNetConfig`: the slimmable U-Net's shape and slicing rules, and its presets. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddsm_ext.settings import Settings, did_you_mean
from ddsm_ext.width import active_channels, check_width

NORMS = ("channels_per_group", "fixed_groups")
CONCAT_SLICINGS = ("source", "prefix")

Role = Literal["fixed", "conv", "linear", "qkv"]

# Steps in which the reference code rounds channels, by kind of layer (slimmable_ops.py).
_REFERENCE_MULTIPLES = {"conv": 8, "linear": 16, "qkv": 1}


@dataclass(frozen=True)
class UNetConfig(Settings):
    """Shape of a slimmable DDPM U-Net and the rules by which a width slices it.

    Args:
        image_size: side of the square images in pixels, divisible by 2 ** (levels - 1).
        image_channels: channels of the images (1 for grey, 3 for RGB).
        ch: channels of the first level at full width.
        ch_mult: per level, its channels as a multiple of `ch`.
        attn: levels (0 is the full resolution) with self-attention after each residual block.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        dropout: dropout probability inside residual blocks.
        groups: group count of every GroupNorm at full width; divides the channels of each level.
        norm: "channels_per_group" keeps the full width's channels a group at every width;
            "fixed_groups" keeps the group count instead (the reference code's behaviour).
        concat_slicing: "source" takes one prefix of the weights for each source of a skip
            concatenation; "prefix" takes one prefix over both (the reference code's behaviour).
        widths: widths to train and search, descending; any other usable width runs too.
        head_channels: channels of an attention head; None means one head over all channels.
        time_table_rows: rows of a frozen time-embedding table, kept for bitwise agreement with a
            checkpoint that has one; 0 computes the embedding from t.

    Raises:
        TypeError, ValueError: a field has the wrong type or cannot work, in one sentence.
    """

    image_size: int
    image_channels: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    attn: tuple[int, ...] = (1,)
    num_res_blocks: int = 2
    dropout: float = 0.1
    groups: int = 32
    norm: str = "channels_per_group"
    concat_slicing: str = "source"
    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    head_channels: int | None = None
    time_table_rows: int = 0

    def __post_init__(self) -> None:
        for name in ("image_size", "image_channels", "ch", "num_res_blocks", "groups"):
            _check_int(name, getattr(self, name), 1)
        _check_int("time_table_rows", self.time_table_rows, 0)
        if self.head_channels is not None:
            _check_int("head_channels", self.head_channels, 1)
        for name, lowest in (("ch_mult", 1), ("attn", 0)):
            object.__setattr__(self, name, _int_tuple(name, getattr(self, name), lowest))
        self._check_choice("norm", NORMS)
        self._check_choice("concat_slicing", CONCAT_SLICINGS)
        self._check_structure()
        object.__setattr__(self, "widths", self._checked_widths())

    def _check_structure(self) -> None:
        if not self.ch_mult:
            raise ValueError("UNetConfig: ch_mult is empty; need one multiple a level")
        levels = len(self.ch_mult)
        if self.attn and max(self.attn) >= levels:
            raise ValueError(
                f"UNetConfig: attn names level {max(self.attn)}, ch_mult has {levels} levels; "
                f"need levels from 0 to {levels - 1}"
            )
        step = 2 ** (levels - 1)
        if self.image_size % step:
            raise ValueError(
                f"UNetConfig: image_size is {self.image_size} with {levels} levels; "
                f"need a multiple of {step}"
            )
        if self.ch % 2:
            raise ValueError(f"UNetConfig: ch is {self.ch}; need an even number")
        if self.ch % self.groups:
            raise ValueError(
                f"UNetConfig: ch is {self.ch}, groups is {self.groups}; "
                "need ch to be a multiple of groups"
            )
        dropout = self.dropout
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
            raise TypeError(f"UNetConfig: dropout is {dropout!r}; need a number")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"UNetConfig: dropout is {dropout}; need 0 <= dropout < 1")
        if self.head_channels is not None:
            for c_max in self.attention_channels():
                if c_max % self.head_channels:
                    raise ValueError(
                        f"UNetConfig: head_channels is {self.head_channels}, an attention layer "
                        f"has {c_max} channels; need a divisor of {c_max}"
                    )

    def _checked_widths(self) -> tuple[float, ...]:
        if isinstance(self.widths, (str, bytes)) or not hasattr(self.widths, "__iter__"):
            raise TypeError(f"UNetConfig: widths is {self.widths!r}; need a sequence of numbers")
        widths = tuple(self.check_width(width) for width in self.widths)
        if not widths:
            raise ValueError("UNetConfig: widths is empty; need at least one width")
        if len(set(widths)) < len(widths):
            raise ValueError(f"UNetConfig: widths {widths} repeats a width; need each one once")
        return tuple(sorted(widths, reverse=True))

    def attention_channels(self) -> tuple[int, ...]:
        """Full-width channels of each distinct attention layer, ascending."""
        levels = {*self.attn, len(self.ch_mult) - 1}  # the middle block always has attention
        return tuple(sorted({self.ch * self.ch_mult[level] for level in levels}))

    def active(self, c_max: int, width: float, role: Role = "conv") -> int:
        """Active channels at `width` of a layer side with `c_max` channels.

        With "channels_per_group" every layer keeps the same k of `groups` slices, so that concats
        always divide into groups of the full width's size; "fixed_groups" rounds as the reference.

        Args:
            c_max: allocated channels.
            width: 0 < width <= 1.
            role: "conv", "linear" or "qkv" (query, key and value of attention);
                "fixed" is never slimmed.
        """
        if role == "fixed":
            return c_max
        if role == "qkv" and self.head_channels is not None:
            return active_channels(c_max, width, self.head_channels)
        if self.norm == "fixed_groups":
            return active_channels(c_max, width, _REFERENCE_MULTIPLES[role])
        return active_channels(self.groups, width, 1) * (c_max // self.groups)

    def group_count(self, c_max: int, c: int) -> int:
        """Groups of a GroupNorm over `c` active of `c_max` allocated channels."""
        if self.norm == "fixed_groups":
            return self.groups
        return c * self.groups // c_max

    def check_width(self, width: float) -> float:
        """Return `width` as a float after checking that this network can run at it.

        Raises:
            TypeError, ValueError: one sentence with the width, the channels it gives, what is
                needed and near usable widths.
        """
        value = check_width(width)
        problem = self._width_problem(value)
        if problem is not None:
            near = ", ".join(f"{usable:g}" for usable in self._usable_near(value))
            raise ValueError(f"width {value:g} {problem}; near usable widths: {near or 'none'}")
        return value

    def _width_problem(self, width: float) -> str | None:
        if self.norm == "channels_per_group":
            return None  # k of `groups` slices exists for every width in (0, 1]
        for mult in sorted(set(self.ch_mult)):
            c_max = self.ch * mult
            c = self.active(c_max, width)
            if c % self.groups:
                return (
                    f"gives {c} of {c_max} channels; need a multiple of {self.groups} "
                    "(norm is fixed_groups)"
                )
            c_time = self.active(c_max, width, "linear")
            if c_time != c:
                return (
                    f"gives {c} of {c_max} channels but {c_time} for the time embedding's "
                    "projection; need equal counts (norm is fixed_groups)"
                )
        for c_max in self.attention_channels() if self.head_channels is None else ():
            c, c_qkv = self.active(c_max, width), self.active(c_max, width, "qkv")
            if c != c_qkv:
                return (
                    f"gives {c} of {c_max} channels but {c_qkv} for queries, keys and values; "
                    "need equal counts (norm is fixed_groups)"
                )
        return None

    def _usable_near(self, width: float) -> list[float]:
        candidates = [i / self.ch for i in range(1, self.ch + 1)]
        usable = [value for value in candidates if self._width_problem(value) is None]
        below = [value for value in usable if value < width][-1:]
        above = [value for value in usable if value > width][:1]
        return below + above


def _check_int(name: str, value: object, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"UNetConfig: {name} is {value!r}; need an integer >= {lowest}")
    if value < lowest:
        raise ValueError(f"UNetConfig: {name} is {value}; need an integer >= {lowest}")


def _int_tuple(name: str, values: object, lowest: int) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"UNetConfig: {name} is {values!r}; need a sequence of integers")
    for value in values:
        _check_int(name, value, lowest)
    return tuple(values)


PRESETS: dict[str, UNetConfig] = {
    # 8x8 grey digits of scikit-learn: small enough to train in minutes on two cores.
    "digits": UNetConfig(
        image_size=8, image_channels=1, ch=32, ch_mult=(1, 2), attn=(1,), num_res_blocks=1,
        dropout=0.0, groups=8,
    ),
    # DDPM's CIFAR-10 network, as the DDSM paper trains it: 35.87 M parameters.
    "cifar10": UNetConfig(image_size=32),
    # Their MACs are the paper's 24.94 and 41.03 G (49.88 and 82.06 GFLOPs) a step; the paper gives
    # no channel multiples, so the counts are the evidence for these shapes.
    "celeba64": UNetConfig(image_size=64, ch_mult=(1, 2, 2, 2, 4)),
    "imagenet64": UNetConfig(image_size=64, ch_mult=(1, 2, 2, 2, 4), num_res_blocks=4),
}  # fmt: skip


def preset(name: str) -> UNetConfig:
    """Return the config of a preset.

    Raises:
        ValueError: the name is unknown, with the nearest known one.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
