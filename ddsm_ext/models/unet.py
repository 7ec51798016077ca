"""The slimmable DDPM U-Net: its configuration, its description, its presets. No torch.

Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (the network); Yang et al. 2024,
"Denoising Diffusion Step-aware Models" (the slimming).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.graph import Graph
from ddsm_ext.graph.node import Node, Resampling
from ddsm_ext.graph.slicing import CONCAT_SLICINGS, NORMS, Slicing
from ddsm_ext.settings import LARGEST_IMAGE, is_int

# DDPM starts the last layer of every residual branch and of the network almost at zero.
LAST_LAYER_GAIN = 1e-5


class UShapeConfig(NetworkConfig):
    """Base of the configs of U-Nets: `u_shape` says what they are.

    Attributes:
        ch: channels of the first level at full width.
        ch_mult: per level, its channels as a multiple of `ch`.
        attn: levels (0 is the full resolution) with self-attention after each residual block.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        dropout: dropout probability inside residual blocks.
        head_channels: channels of an attention head; None: the family says what a head is.
    """

    ch: int
    ch_mult: tuple[int, ...]
    attn: tuple[int, ...]
    num_res_blocks: int
    dropout: float
    head_channels: int | None

    def _check_u_shape(self) -> None:
        self._check_int("image_size", 1, LARGEST_IMAGE)
        self._check_int("num_res_blocks", 1, 32)
        for name in ("image_channels", "ch", "groups"):
            self._check_int(name, 1)
        self._check_ints("ch_mult", 1)
        self._check_ints("attn", 0)
        self._check("ch", self.ch % 2 == 0, "an even number")
        number = isinstance(self.dropout, int | float) and not isinstance(self.dropout, bool)
        self._check_type("dropout", number, "a number")
        self._check("dropout", 0.0 <= self.dropout < 1.0, "0 <= dropout < 1")
        levels, most = len(self.ch_mult), LARGEST_IMAGE.bit_length()
        self._check("ch_mult", 0 < levels <= most, f"one multiple a level, of at most {most}")
        step = 2 ** (levels - 1)
        in_levels = f"levels from 0 to {levels - 1}, as many as ch_mult has"
        fits = len(self.attn) <= levels and max(self.attn, default=0) < levels
        self._check("attn", fits, in_levels)
        in_steps = f"a multiple of {step} for {levels} levels"
        self._check("image_size", self.image_size % step == 0, in_steps)
        self._check_int("head_channels", 1, optional=True)
        if self.head_channels is not None:
            for c_max in sorted(self._attention_channels()):
                divisor = f"a divisor of the {c_max} channels of an attention layer"
                self._check("head_channels", c_max % self.head_channels == 0, divisor)

    def _attention_channels(self) -> set[int]:
        """Channels of the layers with attention, which the middle block has, too."""
        return {self.ch * self.ch_mult[level] for level in (*self.attn, -1)}

    def _check_ints(self, name: str, least: int) -> None:
        """A tuple or list of integers, which becomes a tuple."""
        values = getattr(self, name)
        self._check_type(name, isinstance(values, tuple | list), "a sequence of integers")
        need = f"integers >= {least}"
        self._check_type(name, all(map(is_int, values)), need)
        self._check(name, all(v >= least for v in values), need)
        object.__setattr__(self, name, tuple(values))


@dataclass(frozen=True)
class UNetConfig(UShapeConfig):
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
        family: "unet", by which a file of settings tells it from other families.

    Raises:
        TypeError, ValueError: a field has the wrong type or cannot work, in one sentence.
    """

    layer_order = ("norm1", "conv1", "time", "norm2", "conv2", "shortcut", "attention")

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
    family: str = "unet"

    def __post_init__(self) -> None:
        self._check_u_shape()
        self._check_int("time_table_rows", 0, 10**6)
        self._check_choice("norm", NORMS)
        self._check_choice("concat_slicing", CONCAT_SLICINGS)
        self._check_choice("family", ("unet",))
        self._check("ch", self.ch % self.groups == 0, f"a multiple of groups, {self.groups}")
        super().__post_init__()

    @property
    def slicing(self) -> Slicing:
        """How a width slims it."""
        return Slicing(self.groups, self.norm, self.concat_slicing)

    def describe(self) -> Graph:
        """Return the network."""
        g = Graph(self.image_size)
        x, t = g.input("x", self.image_channels, image=True), g.input("t")
        time = g.sinusoid("time_embedding.table", t, self.ch, table_rows=self.time_table_rows)
        time = g.linear("time_embedding.linear1", time, 4 * self.ch, silu=True)
        # Each block's projection starts with SiLU: applied here once instead of in every block.
        time = g.linear("time_embedding.linear2", time, 4 * self.ch, silu=True)

        def residual(name: str, x: tuple[Node, ...], c: int, attention: bool) -> Node:
            return self._residual(g, name, x, time, c, attention=attention)

        def resample(name: str, h: Node, resample: Resampling) -> Node:
            up = resample == "up"
            return g.conv(f"{name}.conv", h, h.out.c_max,
                          stride=1 if up else 2, resample=resample if up else None)  # fmt: skip

        channels = [self.ch * mult for mult in self.ch_mult]
        h = g.conv("head", x, self.ch)
        h = u_shape(h, channels, self.num_res_blocks, self.attn, residual, resample)
        h = g.norm("tail.norm", h, silu=True)
        g.conv("tail.conv", h, self.image_channels, role="fixed", gain=LAST_LAYER_GAIN)
        return g

    def _residual(
        self,
        g: Graph,
        name: str,
        x: tuple[Node, ...],
        time: Node,
        c_out: int,
        *,
        attention: bool = False,
    ) -> Node:
        """h = conv2(drop(silu(norm2(conv1(silu(norm1(x))) + time)))) + shortcut(x), attention."""
        h = g.norm(f"{name}.norm1", x, silu=True)
        h = g.conv(f"{name}.conv1", h, c_out, shift=g.linear(f"{name}.time", time, c_out))
        h = g.dropout(f"{name}.dropout", g.norm(f"{name}.norm2", h, silu=True), self.dropout)
        shortcut = x[0]
        if len(x) > 1 or x[0].out.c_max != c_out:
            shortcut = g.conv(f"{name}.shortcut", x, c_out, 1)
        h = g.conv(f"{name}.conv2", h, c_out, residual=shortcut, gain=LAST_LAYER_GAIN)
        if attention:
            h = self_attention(g, f"{name}.attention", h, self.head_channels)
        return h


def u_shape(
    h: Node,
    channels: Sequence[int],
    blocks: int,
    attn: Collection[int],
    residual: Callable[[str, tuple[Node, ...], int, bool], Node],
    resample: Callable[[str, Node, Resampling], Node],
    *,
    attn_up: Collection[int] | None = None,
    attn_up_last: bool = False,
    attn_middle: bool = True,
) -> Node:
    """Append the blocks of a U-Net: down, `middle`, and up, where each joins a result of the way.

    Args:
        h: what the first block reads, and the last one joins.
        channels: of each level.
        blocks: residual blocks a level on the way down; one more on the way up.
        attn: levels with attention.
        residual: appends a block: (name, input or concat of two, channels, attention).
        resample: appends what leads to the next level: (name, input, direction).
        attn_up: levels with attention on the way up; None: as on the way down.
        attn_up_last: on the way up only the last block of a level has attention.
        attn_middle: the middle has attention.
    """
    skips, last, attn_up = [h], len(channels) - 1, attn if attn_up is None else attn_up
    for level, c in enumerate(channels):
        if level:
            h = resample(f"down.{len(skips) - 1}", h, "down")
            skips.append(h)
        for _ in range(blocks):
            h = residual(f"down.{len(skips) - 1}", (h,), c, level in attn)
            skips.append(h)
    h = residual("middle.0", (h,), channels[last], attn_middle)
    h = residual("middle.1", (h,), channels[last], False)
    index = 0
    for level in range(last, -1, -1):
        for block in range(blocks + 1):
            attention = level in attn_up and (block == blocks or not attn_up_last)
            h = residual(f"up.{index}", (h, skips.pop()), channels[level], attention)
            index += 1
        if level:
            h = resample(f"up.{index}", h, "up")
            index += 1
    return h


def self_attention(
    g: Graph,
    name: str,
    x: Node,
    head: int | None,
    gain: float = LAST_LAYER_GAIN,
    *,
    qkv_gain: float = 1.0,
    scale: float = 1.0,
    normed: bool = True,
    eps: float = 1e-5,
    groups: int = 0,
) -> Node:
    """(x + out(attention(q, k, v))) * scale with 1x1 projections of norm(x), over all pixels.

    Args:
        g: where it is appended.
        name: its module path.
        x: its input.
        head: channels of a head; None: one head over all.
        gain: on the initial weights of `out`.
        qkv_gain: on those of q, k and v.
        scale: factor on the result.
        normed: False: of x itself.
        eps, groups: of the norm; see `Node`.
    """
    c = x.out.c_max
    h = g.norm(f"{name}.norm", x, eps=eps, groups=groups) if normed else x
    qkv = g.conv(name, h, c, 1, parts=("q", "k", "v"), role="qkv", head=head, gain=qkv_gain)
    products = g.attention(f"{name}.products", qkv)
    return g.conv(f"{name}.out", products, c, 1, residual=x, scale=scale, gain=gain)


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
