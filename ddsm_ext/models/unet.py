"""`SlimmableUNet`: one DDPM U-Net that runs at every width its config allows."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Generator, Tensor, nn

from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.dense import DenseUNet, check_inputs
from ddsm_ext.models.layout import Block, Layer, unet_blocks, unet_layers
from ddsm_ext.nn.blocks import OutputBlock, ResampleBlock, ResidualBlock
from ddsm_ext.nn.embedding import TimeEmbedding
from ddsm_ext.nn.layers import SlicedConv2d
from ddsm_ext.width import check_width

if TYPE_CHECKING:
    from ddsm_ext.models.step import UNetStepRunner

Counts = tuple[tuple[int, int], ...]


def active_counts(config: UNetConfig, blocks: tuple[Block, ...], width: float) -> Counts:
    """Active channels at `width`: (head, time embedding), then (c_out, c_qkv) for each block.

    Raises:
        TypeError, ValueError: the config cannot run at `width`.
    """
    width = config.check_width(width)
    first = (config.active(config.ch, width), config.active(4 * config.ch, width, "linear"))
    rest = (
        (
            config.active(block.c_out, width),
            config.active(block.c_out, width, "qkv") if block.attention else 0,
        )
        for block in blocks
    )
    return (first, *rest)


# Not attributes of their networks: a copied or pickled network makes its own.
_runners: WeakKeyDictionary[SlimmableUNet, UNetStepRunner] = WeakKeyDictionary()

_cached_counts = lru_cache(maxsize=256)(active_counts)


class SlimmableUNet(nn.Module):
    """DDPM U-Net whose first channels of every layer form a working network at each width.

    Args:
        config: shape and slicing rules.
        generator: source of the initial weights; None means torch's default generator.

    Source: Ho et al. 2020 (the network), Yang et al. 2024, "Denoising Diffusion Step-aware
        Models" (the slimming).
    """

    def __init__(self, config: UNetConfig, *, generator: Generator | None = None) -> None:
        super().__init__()
        if not isinstance(config, UNetConfig):
            raise TypeError(f"SlimmableUNet: config is {type(config).__name__}; need a UNetConfig")
        self.config = config
        self.layout = unet_blocks(config)
        fixed_groups = config.norm == "fixed_groups"
        self.time_embedding = TimeEmbedding(
            config.ch, 4 * config.ch, table_rows=config.time_table_rows, generator=generator
        )
        self.head = SlicedConv2d(config.image_channels, config.ch, 3, generator=generator)
        parts: dict[str, list[nn.Module]] = {"down": [], "middle": [], "up": []}
        for block in self.layout:
            parts[block.name.split(".")[0]].append(_build_block(config, block, generator))
        self.down = nn.ModuleList(parts["down"])
        self.middle = nn.ModuleList(parts["middle"])
        self.up = nn.ModuleList(parts["up"])
        self.tail = OutputBlock(
            self.layout[-1].c_out,
            config.image_channels,
            groups=config.groups,
            fixed_groups=fixed_groups,
            generator=generator,
        )

    def forward(
        self, x: Tensor, t: Tensor, width: float, *, accumulate_grad: bool = False
    ) -> Tensor:
        """Predict from noisy images at one width.

        Args:
            x: [N, C, H, W] noisy images; float32, bfloat16 or float64.
            t: [N] timesteps, integer or continuous (0 <= t <= T - 1).
            width: 0 < width <= 1, usable by the config.
            accumulate_grad: backward adds weight gradients straight to the prefix of `p.grad`
                and autograd sees none for the parameters.

        Returns:
            [N, C, H, W], the prediction in the network's parameterisation.

        Raises:
            TypeError, ValueError: an argument that cannot be used, in one sentence.
        """
        width = check_width(width)
        # Dynamo warns at a cache; it runs the arithmetic once a graph anyway.
        count = active_counts if torch.compiler.is_compiling() else _cached_counts
        counts = count(self.config, self.layout, width)
        x, t = check_inputs("SlimmableUNet", self.config, x, t, self.head.weight)
        return self.forward_counts(x, t, counts, accumulate_grad=accumulate_grad)

    def forward_counts(
        self,
        x: Tensor,
        t: Tensor,
        counts: Counts,
        *,
        accumulate_grad: bool = False,
    ) -> Tensor:
        """`forward` with the active channels given as integers by `active_counts`, unchecked."""
        (c_head, c_time), *block_counts = counts
        time = self.time_embedding(t, c_time, accumulate_grad=accumulate_grad)  # [N, c_time]
        x = x.contiguous(memory_format=torch.channels_last)
        h = self.head(x, c_head, accumulate_grad=accumulate_grad)  # [N, c_head, H, W]
        skips = [h]
        modules = (*self.down, *self.middle, *self.up)
        for block, module, (c_out, c_qkv) in zip(self.layout, modules, block_counts, strict=True):
            if block.kind != "residual":
                h = module(h, accumulate_grad=accumulate_grad)
            else:
                skip = skips.pop() if block.c_skip else None
                h = module(h, time, c_out, c_qkv, skip=skip, accumulate_grad=accumulate_grad)
            if block.name.startswith("down"):
                skips.append(h)
        return self.tail(h, accumulate_grad=accumulate_grad)

    def step_runner(self) -> UNetStepRunner:
        """Return the runner of this network's compiled steps, always the same one."""
        from ddsm_ext.models.step import UNetStepRunner

        runner = _runners.get(self)
        if runner is None:
            runner = _runners[self] = UNetStepRunner(self)
        return runner

    def export_subnet(self, width: float) -> DenseUNet:
        """Return the network of one width as an ordinary dense module of plain torch layers.

        Args:
            width: 0 < width <= 1, usable by the config.

        Returns:
            A `DenseUNet` called as (x, t), with its own copy of the weights, on this network's
            device and dtype and in its training mode; its outputs equal this network's at `width`.

        Raises:
            TypeError, ValueError: the width cannot be used.
        """
        width = self.config.check_width(width)
        weights = self.head.weight
        dense = DenseUNet(self.config, width).to(device=weights.device, dtype=weights.dtype)
        dense.load_state_dict(self._subnet_state(width))
        return dense.train(self.training)

    def _subnet_state(self, width: float) -> dict[str, Tensor]:
        full = {name: tensor.detach() for name, tensor in self.state_dict().items()}
        state = {name: full[name] for name in full if name == "time_embedding.table"}
        for layer in unet_layers(self.config):
            weight, bias = full[f"{layer.name}.weight"], full[f"{layer.name}.bias"]
            columns = _active_columns(self.config, layer, width).to(weight.device)
            if layer.kind == "norm":
                state[f"{layer.name}.weight"] = weight[columns]
                state[f"{layer.name}.bias"] = bias[columns]
            else:
                c_out = layer.out.active(self.config, width)
                state[f"{layer.name}.weight"] = weight[:c_out, columns]
                state[f"{layer.name}.bias"] = bias[:c_out]
        return state


def _active_columns(config: UNetConfig, layer: Layer, width: float) -> Tensor:
    """Indices of a layer's active inputs among its allocated ones, [c_in]."""
    counts = [source.active(config, width) for source in layer.sources]
    if config.concat_slicing == "prefix":
        return torch.arange(sum(counts))
    starts = [sum(s.c_max for s in layer.sources[:i]) for i in range(len(counts))]
    ranges = [torch.arange(a, a + c) for a, c in zip(starts, counts, strict=True)]
    return torch.cat(ranges)


def _build_block(config: UNetConfig, block: Block, generator: Generator | None) -> nn.Module:
    if block.kind != "residual":
        upsample = block.kind == "upsample"
        return ResampleBlock(block.c_in, upsample=upsample, generator=generator)
    return ResidualBlock(
        block.c_in,
        block.c_out,
        4 * config.ch,
        groups=config.groups,
        fixed_groups=config.norm == "fixed_groups",
        c_skip=block.c_skip,
        per_source=config.concat_slicing == "source",
        shortcut=block.shortcut,
        attention=block.attention,
        head_channels=config.head_channels,
        dropout=config.dropout,
        generator=generator,
    )
