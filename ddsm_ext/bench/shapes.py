"""The layer shapes of a U-Net at a width, by arithmetic from its layer table. No torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.layout import Layer, unet_blocks, unet_layers

# The network of the published figures: groups and concats as in the reference code, so that slicing
# with PyTorch computes the same function and outputs can be compared; its time table is frozen.
REFERENCE_CIFAR10 = UNetConfig(
    image_size=32, norm="fixed_groups", concat_slicing="prefix", time_table_rows=1000
)
WIDTHS = (1.0, 0.75, 0.5, 0.25)
# 60 and 120 channels, which fill no block of 16 or 32: what a kernel pays for any width.
ODD_WIDTH = 0.46875


@dataclass(frozen=True)
class ConvShape:
    """A convolution: active and allocated channels, `c_in2` of a second source (0: none)."""

    c_in: int
    c_in2: int
    c_out: int
    c_in_max: int
    c_out_max: int
    kernel: int
    stride: int
    upsample: bool
    size: int

    @property
    def macs(self) -> int:
        """MACs an image, bias not counted."""
        return self.c_out * (self.c_in + self.c_in2) * self.kernel**2 * self.size**2

    @property
    def activations(self) -> int:
        """Elements of an image's input and output."""
        return (self.c_in + self.c_in2) * self.in_size**2 + self.c_out * self.size**2

    @property
    def parameters(self) -> int:
        """Active elements of weight and bias."""
        return self.c_out * ((self.c_in + self.c_in2) * self.kernel**2 + 1)

    @property
    def in_size(self) -> int:
        """Side of the input in pixels."""
        return self.size // 2 if self.upsample else self.size * self.stride

    def __str__(self) -> str:
        c_in = f"{self.c_in}+{self.c_in2}" if self.c_in2 else str(self.c_in)
        extra = " /2" if self.stride == 2 else " x2" if self.upsample else ""
        return f"{c_in}->{self.c_out} {self.kernel}x{self.kernel} @{self.size}{extra}"


@dataclass(frozen=True)
class LinearShape:
    """A linear layer on one row an image."""

    c_in: int
    c_out: int
    c_in_max: int
    c_out_max: int

    @property
    def macs(self) -> int:
        """MACs an image, bias not counted."""
        return self.c_in * self.c_out

    @property
    def activations(self) -> int:
        """Elements of an image's input and output."""
        return self.c_in + self.c_out

    @property
    def parameters(self) -> int:
        """Active elements of weight and bias."""
        return self.c_out * (self.c_in + 1)

    def __str__(self) -> str:
        return f"{self.c_in}->{self.c_out}"


@dataclass(frozen=True)
class NormShape:
    """A group norm over one or two sources (`c2` = 0: one), with or without SiLU."""

    c: int
    c2: int
    c_max: int
    groups: int
    size: int
    silu: bool

    @property
    def macs(self) -> int:
        """Two MACs an element: scale and shift."""
        return 2 * (self.c + self.c2) * self.size**2

    @property
    def activations(self) -> int:
        """Elements of an image's input, read once, and output."""
        return 2 * (self.c + self.c2) * self.size**2

    @property
    def parameters(self) -> int:
        """Active elements of scale and shift."""
        return 2 * (self.c + self.c2)

    def __str__(self) -> str:
        c = f"{self.c}+{self.c2}" if self.c2 else str(self.c)
        return f"{c} /{self.groups} @{self.size}{' silu' if self.silu else ''}"


@dataclass(frozen=True)
class AttentionShape:
    """Self-attention of `tokens` pixels in `heads` heads of `head_size` channels."""

    heads: int
    tokens: int
    head_size: int

    @property
    def macs(self) -> int:
        """MACs an image of both products."""
        return 2 * self.heads * self.tokens**2 * self.head_size

    @property
    def activations(self) -> int:
        """Elements of an image's q, k, v and output."""
        return 4 * self.heads * self.tokens * self.head_size

    @property
    def parameters(self) -> int:
        """None."""
        return 0

    def __str__(self) -> str:
        return f"{self.heads}x{self.tokens}x{self.head_size}"


Shape = ConvShape | LinearShape | NormShape | AttentionShape


def least_bytes(shape: Shape, batch: int, element_bytes: int) -> int:
    """Bytes that any kernel moves: every input and parameter read once, the output written once."""
    return (batch * shape.activations + shape.parameters) * element_bytes


def config_at(config: UNetConfig, width: float) -> UNetConfig:
    """Return `config`, or its twin with norms of fixed channels a group where `width` needs one.

    The reference code's 32 fixed groups divide the channels of its four widths only; the twin has
    the same layers and shapes and takes any width.

    Raises:
        TypeError, ValueError: the width is not in (0, 1].
    """
    twin = replace(config, norm="channels_per_group")
    twin.check_width(width)
    try:
        config.check_width(width)
    except ValueError:
        return twin
    return config


def op_shapes(config: UNetConfig, width: float, op: str) -> dict[Shape, int]:
    """Return every distinct shape with which a step at `width` calls an op, and how often.

    Args:
        config: the network.
        width: 0 < width <= 1, usable by `config`.
        op: "conv2d", "linear", "group_norm" or "attention".

    Raises:
        ValueError: another op.
    """
    if op == "attention":
        return _attention_shapes(config, width)
    kinds = {"conv2d": "conv", "linear": "linear", "group_norm": "norm"}
    if op not in kinds:
        raise ValueError(f"op_shapes: op is {op!r}; need {', '.join(kinds)} or attention")
    makers = {"conv": _conv_shape, "linear": _linear_shape, "norm": _norm_shape}
    layers = [layer for layer in unet_layers(config) if layer.kind == kinds[op]]
    return dict(Counter(makers[layer.kind](config, width, layer) for layer in layers))


def _active(config: UNetConfig, width: float, layer: Layer) -> tuple[int, int]:
    first, *second = (source.active(config, width) for source in layer.sources)
    return first, sum(second)


def _conv_shape(config: UNetConfig, width: float, layer: Layer) -> Shape:
    c_in, c_in2 = _active(config, width, layer)
    kinds = {f"{block.name}.conv": block.kind for block in unet_blocks(config)}
    kind = kinds.get(layer.name)
    c_out_max, c_in_max, kernel, _ = layer.weight_shape
    c_out = layer.out.active(config, width)
    stride = 2 if kind == "downsample" else 1
    return ConvShape(
        c_in, c_in2, c_out, c_in_max, c_out_max, kernel, stride, kind == "upsample", layer.size
    )


def _linear_shape(config: UNetConfig, width: float, layer: Layer) -> Shape:
    c_in, _ = _active(config, width, layer)
    c_out_max, c_in_max = layer.weight_shape
    return LinearShape(c_in, layer.out.active(config, width), c_in_max, c_out_max)


def _norm_shape(config: UNetConfig, width: float, layer: Layer) -> Shape:
    c, c2 = _active(config, width, layer)
    groups = config.group_count(layer.out.c_max, c + c2)
    silu = not layer.name.endswith("attention.norm")
    return NormShape(c, c2, layer.out.c_max, groups, layer.size, silu)


def _attention_shapes(config: UNetConfig, width: float) -> dict[Shape, int]:
    shapes: Counter[Shape] = Counter()
    for block in unet_blocks(config):
        if block.attention:
            c = config.active(block.c_out, width, "qkv")
            heads = 1 if config.head_channels is None else c // config.head_channels
            shapes[AttentionShape(heads, block.size**2, c // heads)] += 1
    return dict(shapes)
