"""`DenseUNet`: one width of a slimmable U-Net as plain torch layers, without this project's ops."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.layout import Block, unet_blocks
from ddsm_ext.nn.sinusoidal import embed_time, sinusoidal_embedding


def check_inputs(
    owner: str, config: UNetConfig, x: Tensor, t: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Check images and timesteps against a network; return them with t as [N].

    Float32 images are widened for a float64 network; nothing else is converted.

    Raises:
        TypeError, ValueError: one sentence with the argument, what it is and what is needed.
    """
    for name, tensor in (("x", x), ("t", t)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{owner}: {name} is {type(tensor).__name__}; need a torch.Tensor")
        if tensor.device != weight.device:
            raise ValueError(
                f"{owner}: {name} is on {tensor.device}, the weights are on {weight.device}; "
                "need one device"
            )
    if not x.is_floating_point():
        raise TypeError(f"{owner}: x is {x.dtype}; need floating-point images")
    if x.dim() != 4 or x.shape[1] != config.image_channels:
        raise ValueError(
            f"{owner}: x has shape {list(x.shape)}; need [N, {config.image_channels}, H, W]"
        )
    step = 2 ** (len(config.ch_mult) - 1)
    if x.shape[2] % step or x.shape[3] % step:
        raise ValueError(
            f"{owner}: x is {x.shape[2]}x{x.shape[3]} pixels; need multiples of {step}"
        )
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"{owner}: t is {t.dtype}; need integer or floating-point timesteps")
    if t.dim() > 1 or (t.dim() == 1 and t.shape[0] != x.shape[0]):
        raise ValueError(
            f"{owner}: t has shape {list(t.shape)}, x holds {x.shape[0]} images; "
            "need one timestep an image"
        )
    if x.dtype == torch.float32 and weight.dtype == torch.float64:
        x = x.double()
    return x, t.expand(x.shape[0])


class DenseUNet(nn.Module):
    """The U-Net of one width, called as (x, t); parameters are named as in `SlimmableUNet`.

    Args:
        config: the supernet's config.
        width: 0 < width <= 1, usable by the config.

    Raises:
        TypeError, ValueError: the width cannot be used.
    """

    def __init__(self, config: UNetConfig, width: float) -> None:
        super().__init__()
        width = config.check_width(width)
        self.config = config
        self.width = width
        c_head = config.active(config.ch, width)
        c_time = config.active(4 * config.ch, width, "linear")
        self.time_embedding = _TimeEmbedding(config, c_time)
        self.head = nn.Conv2d(config.image_channels, c_head, 3, padding=1)
        parts: dict[str, list[nn.Module]] = {"down": [], "middle": [], "up": []}
        for block in unet_blocks(config):
            module: nn.Module = (
                _Residual(config, block, width, c_time)
                if block.kind == "residual"
                else _Resample(config.active(block.c_out, width), block.kind == "upsample")
            )
            parts[block.name.split(".")[0]].append(module)
        self.down = nn.ModuleList(parts["down"])
        self.middle = nn.ModuleList(parts["middle"])
        self.up = nn.ModuleList(parts["up"])
        self.tail = _Output(config, config.active(unet_blocks(config)[-1].c_out, width))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict from noisy images x [N, C, H, W] at timesteps t [N]; returns [N, C, H, W]."""
        x, t = check_inputs("DenseUNet", self.config, x, t, self.head.weight)
        time = self.time_embedding(t)  # [N, c_time]
        h = self.head(x)
        skips = [h]
        for module in self.down:
            h = module(h, time)
            skips.append(h)
        for module in self.middle:
            h = module(h, time)
        for module in self.up:
            if isinstance(module, _Residual):
                h = torch.cat([h, skips.pop()], dim=1)  # [N, c_in + c_skip, H, W]
            h = module(h, time)
        return self.tail(h)


class _TimeEmbedding(nn.Module):
    table: Tensor | None

    def __init__(self, config: UNetConfig, c_time: int) -> None:
        super().__init__()
        self.ch = config.ch
        self.linear1 = nn.Linear(config.ch, c_time)
        self.linear2 = nn.Linear(c_time, c_time)
        rows = config.time_table_rows
        table = sinusoidal_embedding(torch.arange(rows), config.ch) if rows else None
        self.register_buffer("table", table)

    def forward(self, t: Tensor) -> Tensor:
        embedding = embed_time(t, self.ch, self.table, self.linear1.weight.dtype)  # [N, ch]
        return F.silu(self.linear2(F.silu(self.linear1(embedding))))


def _group_norm(config: UNetConfig, full: int, active: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.group_count(full, active), active)


class _Attention(nn.Module):
    def __init__(self, config: UNetConfig, c_max: int, width: float) -> None:
        super().__init__()
        c, c_qkv = config.active(c_max, width), config.active(c_max, width, "qkv")
        self.heads = 1 if config.head_channels is None else c_qkv // config.head_channels
        self.norm = _group_norm(config, c_max, c)
        self.q = nn.Conv2d(c, c_qkv, 1)
        self.k = nn.Conv2d(c, c_qkv, 1)
        self.v = nn.Conv2d(c, c_qkv, 1)
        self.out = nn.Conv2d(c_qkv, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            conv(h).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
            for conv in (self.q, self.k, self.v)
        )  # [N, heads, T, d]
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)  # [N, heads, d, T]
        return x + self.out(y.flatten(1, 2).unflatten(2, x.shape[2:]))


class _Residual(nn.Module):
    def __init__(self, config: UNetConfig, block: Block, width: float, c_time: int) -> None:
        super().__init__()
        c_out = config.active(block.c_out, width)
        c_in = config.active(block.c_in, width)
        if block.c_skip:
            c_in += config.active(block.c_skip, width)
        self.dropout = config.dropout
        self.norm1 = _group_norm(config, block.c_in + block.c_skip, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(c_time, c_out)
        self.norm2 = _group_norm(config, block.c_out, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if block.shortcut else None
        self.attention = _Attention(config, block.c_out, width) if block.attention else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(time)[:, :, None, None]
        h = self.conv2(F.dropout(F.silu(self.norm2(h)), self.dropout, self.training))
        h = h + (x if self.shortcut is None else self.shortcut(x))
        return h if self.attention is None else self.attention(h)


class _Resample(nn.Module):
    def __init__(self, c: int, upsample: bool) -> None:
        super().__init__()
        self.upsample = upsample
        self.conv = nn.Conv2d(c, c, 3, stride=1 if upsample else 2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")  # [N, c, 2 H, 2 W]
        return self.conv(x)


class _Output(nn.Module):
    def __init__(self, config: UNetConfig, c: int) -> None:
        super().__init__()
        self.norm = _group_norm(config, unet_blocks(config)[-1].c_out, c)
        self.conv = nn.Conv2d(c, config.image_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(x)))
