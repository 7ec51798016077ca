"""Multiply-accumulates and parameters of a `UNetConfig` by arithmetic. No torch.

Units: MACs an image and denoising step (FLOPs are twice that). Convolutions, linear layers and, on
request, the two products of attention and the elementwise work that ptflops counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.layout import unet_blocks, unet_layers


@dataclass(frozen=True)
class LayerMacs:
    """MACs an image and step of one layer, at one width."""

    name: str
    macs: int


def unet_layer_macs(
    config: UNetConfig,
    width: float,
    *,
    attention_products: bool = True,
    elementwise: bool = False,
) -> tuple[LayerMacs, ...]:
    """MACs of every layer of the network at `width`.

    Args:
        config: the network.
        width: 0 < width <= 1, usable by `config`.
        attention_products: also count Q K^T and the product with V, named `<block>.attention.qk`
            and `<block>.attention.av`.
        elementwise: also count one MAC for each bias addition and two for each normalised element,
            as ptflops does; the paper's own figures (no attention products) were made that way.

    Raises:
        TypeError, ValueError: the width cannot be used.
    """
    width = config.check_width(width)
    rows = []
    for layer in unet_layers(config):
        c_in = sum(source.active(config, width) for source in layer.sources)
        c_out = layer.out.active(config, width)
        if layer.kind == "norm":
            macs = 2 * c_in if elementwise else 0
        else:
            macs = c_out * (c_in * layer.kernel**2 + elementwise)
        if macs:
            rows.append(LayerMacs(layer.name, macs * layer.size**2))
    if attention_products:
        for block in unet_blocks(config):
            if block.attention:
                product = block.size**4 * config.active(block.c_out, width, "qkv")
                rows.append(LayerMacs(f"{block.name}.attention.qk", product))
                rows.append(LayerMacs(f"{block.name}.attention.av", product))
    return tuple(rows)


def unet_macs(
    config: UNetConfig,
    width: float,
    *,
    attention_products: bool = True,
    elementwise: bool = False,
) -> int:
    """MACs an image and denoising step of the network at `width`.

    Args:
        config: the network.
        width: 0 < width <= 1, usable by `config`.
        attention_products: also count the two matrix products of each attention layer.
        elementwise: also count bias additions and norms as ptflops does (see `unet_layer_macs`).

    Raises:
        TypeError, ValueError: the width cannot be used.
    """
    rows = unet_layer_macs(
        config, width, attention_products=attention_products, elementwise=elementwise
    )
    return sum(row.macs for row in rows)


def parameter_count(config: UNetConfig, width: float = 1.0) -> int:
    """Parameters at `width`: the supernet's at 1, an exported subnet's below.

    A frozen time table is counted where the config keeps one, as in the published 35.87 M.

    Raises:
        TypeError, ValueError: the width cannot be used.
    """
    width = config.check_width(width)
    total = config.time_table_rows * config.ch
    for layer in unet_layers(config):
        c_in = sum(source.active(config, width) for source in layer.sources)
        if layer.kind == "norm":
            total += 2 * c_in
        else:
            c_out = layer.out.active(config, width)
            total += c_out * (c_in * layer.kernel**2 + 1)
    return total


def table_text(config: UNetConfig, width: float) -> str:
    """The per-layer table as text, one layer a line with its share of the total."""
    rows = unet_layer_macs(config, width)
    total = math.fsum(row.macs for row in rows)
    longest = max(len(row.name) for row in rows)
    lines = [f"{r.name:<{longest}} {r.macs / 1e6:10.3f} {r.macs / total:7.2%}" for r in rows]
    lines.append(f"{'total (MMACs)':<{longest}} {total / 1e6:10.3f}")
    return "\n".join(lines)
