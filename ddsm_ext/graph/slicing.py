"""How a width slims the channels of a network: rounding, groups, concats. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ddsm_ext.settings import Refusal
from ddsm_ext.width import active_channels, check_width

NORMS = ("channels_per_group", "fixed_groups")
CONCAT_SLICINGS = ("source", "prefix")

Role = Literal["fixed", "conv", "linear", "qkv"]
# Allocated channels of a convolution, and the role of what must have as many: "" stands for groups.
Pair = tuple[int, str]

# Steps in which the reference code rounds channels, by role (slimmable_ops.py).
_REFERENCE_MULTIPLES = {"conv": 8, "linear": 16, "qkv": 1}
_PARTNERS = {"linear": "the time embedding's projection", "qkv": "queries, keys and values"}


@dataclass(frozen=True)
class Slicing:
    """The rules by which a width slims a network.

    Args:
        groups: group count of every norm at full width; divides all channel counts of norms.
        norm: "channels_per_group" keeps the full width's channels a group at every width: each
            layer keeps the same k of `groups` slices; "fixed_groups" keeps the group count and
            rounds as the reference code does.
        concat: "source" takes one prefix of the weights for each source of a skip concatenation;
            "prefix" takes one prefix over both (the reference code's behaviour).
    """

    groups: int
    norm: str = "channels_per_group"
    concat: str = "source"

    def active(self, c_max: int, width: float, role: Role = "conv", head: int | None = None) -> int:
        """Active channels at `width` of a side with `c_max` channels.

        Args:
            c_max: allocated channels.
            width: 0 < width <= 1.
            role: "conv", "linear" or "qkv" (query, key and value of attention); "fixed" is never
                slimmed.
            head: channels of an attention head, of which whole ones are kept; None: one head.
        """
        if role == "fixed":
            return c_max
        if head is not None:
            return active_channels(c_max, width, head)
        if self.norm == "fixed_groups":
            return active_channels(c_max, width, _REFERENCE_MULTIPLES[role])
        return active_channels(self.groups, width, 1) * (c_max // self.groups)

    def group_count(self, c_max: int, c: int, groups: int = 0) -> int:
        """Groups of a norm over `c` active of `c_max` allocated channels.

        groups: the norm's own at full width, a multiple of the others'; 0: as many.
        """
        full = groups or self.groups
        return full if self.norm == "fixed_groups" else c * full // c_max

    def check_width(self, width: float, pairs: Sequence[Pair]) -> float:
        """Return `width` as a float after checking that a network with these counts can run at it.

        Args:
            width: 0 < width <= 1.
            pairs: allocated channels of convolutions and the role of what needs as many.

        Raises:
            TypeError, ValueError: one sentence with the width, the channels it gives, what is
                needed and near usable widths.
        """
        value = check_width(width)
        problem = self._problem(value, pairs)
        if problem is None:
            return value
        smallest = min(c_max for c_max, _ in pairs)
        usable = [i / smallest for i in range(1, smallest + 1)]
        usable = [near for near in usable if self._problem(near, pairs) is None]
        near = [v for v in usable if v < value][-1:] + [v for v in usable if v > value][:1]
        listed = ", ".join(f"{v:g}" for v in near)
        raise Refusal(f"width {value:g} {problem}; near usable widths: {listed or 'none'}")

    def _problem(self, width: float, pairs: Sequence[Pair]) -> str | None:
        if self.norm == "channels_per_group":
            return None  # k of `groups` slices exists for every width in (0, 1]
        for c_max, role in pairs:
            c = self.active(c_max, width)
            if not role and c % self.groups:
                return (
                    f"gives {c} of {c_max} channels; need a multiple of {self.groups} "
                    "(norm is fixed_groups)"
                )
            partner = self.active(c_max, width, role) if role else c  # type: ignore[arg-type]
            if partner != c:
                return (
                    f"gives {c} of {c_max} channels but {partner} for {_PARTNERS[role]}; "
                    "need equal counts (norm is fixed_groups)"
                )
        return None
