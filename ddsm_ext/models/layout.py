"""The U-Net as a table of blocks and layers: names, channels and sizes. No torch.

One table serves the network that is built from it, MAC and parameter counts, dense export and the
mapping of foreign checkpoints, so that none of them can disagree on a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ddsm_ext.models.config import Role, UNetConfig


@dataclass(frozen=True)
class Block:
    """One block of the U-Net.

    `name` is its module path, `c_in`, `c_skip` (0: no skip joined) and `c_out` allocated channels,
    `size` the side of its output in pixels.
    """

    name: str
    kind: Literal["residual", "downsample", "upsample"]
    c_in: int
    c_skip: int
    c_out: int
    size: int
    attention: bool = False
    shortcut: bool = False


@dataclass(frozen=True)
class Side:
    """Channels of one layer input or output: allocated count and the rule that slims it."""

    c_max: int
    role: Role

    def active(self, config: UNetConfig, width: float) -> int:
        """Active channels at `width`."""
        return config.active(self.c_max, width, self.role)


@dataclass(frozen=True)
class Layer:
    """One layer with parameters: `sources` are its inputs in concatenation order.

    `kernel` is 1 for linear layers and 0 for norms; `size` is the output side in pixels (1 for
    linear layers).
    """

    name: str
    kind: Literal["conv", "linear", "norm"]
    sources: tuple[Side, ...]
    out: Side
    kernel: int
    size: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Allocated shape of the weight."""
        if self.kind == "norm":
            return (self.out.c_max,)
        shape = (self.out.c_max, sum(source.c_max for source in self.sources))
        return shape if self.kind == "linear" else (*shape, self.kernel, self.kernel)


@lru_cache(maxsize=64)
def unet_blocks(config: UNetConfig) -> tuple[Block, ...]:
    """Blocks between the head and the tail in execution order."""
    return (*_down(config), *_middle(config), *_up(config))


def skip_channels(config: UNetConfig) -> list[int]:
    """Allocated channels of the tensors that the way down leaves for the way up, in order."""
    return [config.ch, *(block.c_out for block in _down(config))]


def _down(config: UNetConfig) -> Iterator[Block]:
    c, size, index = config.ch, config.image_size, 0
    last = len(config.ch_mult) - 1
    for level, mult in enumerate(config.ch_mult):
        for _ in range(config.num_res_blocks):
            c_out = config.ch * mult
            yield _residual(config, f"down.{index}", c, 0, c_out, size, level in config.attn)
            c, index = c_out, index + 1
        if level != last:
            size //= 2
            yield Block(f"down.{index}", "downsample", c, 0, c, size)
            index += 1


def _middle(config: UNetConfig) -> Iterator[Block]:
    c = config.ch * config.ch_mult[-1]
    size = config.image_size >> (len(config.ch_mult) - 1)
    yield _residual(config, "middle.0", c, 0, c, size, True)
    yield _residual(config, "middle.1", c, 0, c, size, False)


def _up(config: UNetConfig) -> Iterator[Block]:
    skips = skip_channels(config)
    c, index = config.ch * config.ch_mult[-1], 0
    size = config.image_size >> (len(config.ch_mult) - 1)
    for level in reversed(range(len(config.ch_mult))):
        for _ in range(config.num_res_blocks + 1):
            c_out, attention = config.ch * config.ch_mult[level], level in config.attn
            yield _residual(config, f"up.{index}", c, skips.pop(), c_out, size, attention)
            c, index = c_out, index + 1
        if level:
            size *= 2
            yield Block(f"up.{index}", "upsample", c, 0, c, size)
            index += 1


def _residual(
    config: UNetConfig, name: str, c_in: int, c_skip: int, c_out: int, size: int, attention: bool
) -> Block:
    # A per-source prefix of a concat does not line up with a prefix of the output channels, so
    # "source" slicing gives every joining block a learned shortcut even where the counts agree.
    joins = c_skip > 0 and config.concat_slicing == "source"
    shortcut = c_in + c_skip != c_out or joins
    return Block(name, "residual", c_in, c_skip, c_out, size, attention, shortcut)


@lru_cache(maxsize=64)
def unet_layers(config: UNetConfig) -> tuple[Layer, ...]:
    """Every layer with parameters in execution order, named by module path."""
    image, ch = Side(config.image_channels, "fixed"), Side(config.ch, "conv")
    time = Side(4 * config.ch, "linear")
    size = config.image_size
    layers = [
        Layer("time_embedding.linear1", "linear", (Side(config.ch, "fixed"),), time, 1, 1),
        Layer("time_embedding.linear2", "linear", (time,), time, 1, 1),
        Layer("head", "conv", (image,), ch, 3, size),
    ]
    for block in unet_blocks(config):
        layers += _block_layers(block, time)
    tail = Side(unet_blocks(config)[-1].c_out, "conv")
    layers.append(Layer("tail.norm", "norm", (tail,), tail, 0, size))
    layers.append(Layer("tail.conv", "conv", (tail,), image, 3, size))
    return tuple(layers)


def _block_layers(block: Block, time: Side) -> list[Layer]:
    name, size, out = block.name, block.size, Side(block.c_out, "conv")
    if block.kind != "residual":
        return [Layer(f"{name}.conv", "conv", (Side(block.c_in, "conv"),), out, 3, size)]
    counts = (block.c_in, block.c_skip) if block.c_skip else (block.c_in,)
    sources = tuple(Side(c, "conv") for c in counts)
    joined = Side(sum(counts), "conv")
    layers = [
        Layer(f"{name}.norm1", "norm", sources, joined, 0, size),
        Layer(f"{name}.conv1", "conv", sources, out, 3, size),
        Layer(f"{name}.time", "linear", (time,), Side(block.c_out, "linear"), 1, 1),
        Layer(f"{name}.norm2", "norm", (out,), out, 0, size),
        Layer(f"{name}.conv2", "conv", (out,), out, 3, size),
    ]
    if block.shortcut:
        layers.append(Layer(f"{name}.shortcut", "conv", sources, out, 1, size))
    if block.attention:
        qkv = Side(block.c_out, "qkv")
        layers.append(Layer(f"{name}.attention.norm", "norm", (out,), out, 0, size))
        for part in ("q", "k", "v"):
            layers.append(Layer(f"{name}.attention.{part}", "conv", (out,), qkv, 1, size))
        layers.append(Layer(f"{name}.attention.out", "conv", (qkv,), out, 1, size))
    return layers
