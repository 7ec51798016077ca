"""The U-Net as the reference code runs it: plain PyTorch that slices every weight in every call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_ext.models.layout import Block, unet_blocks
from ddsm_ext.models.unet import SlimmableUNet


class SlicingUNet:
    """A baseline called as (x, t, width): prefix slices, NCHW, `torch.cat`, bmm attention.

    Args:
        net: the network whose parameters are used, not copied; its config needs
            concat_slicing "prefix", which is the reference's, and a time table.

    Raises:
        ValueError: another slicing or no time table.
    """

    def __init__(self, net: SlimmableUNet) -> None:
        config = net.config
        if config.concat_slicing != "prefix" or not config.time_table_rows:
            raise ValueError(
                f"SlicingUNet: concat_slicing is {config.concat_slicing!r} with "
                f"{config.time_table_rows} time table rows; need 'prefix' and a time table"
            )
        self.config = config
        self._tensors = net.state_dict(keep_vars=True)
        self._counts_of: dict[float, list[tuple[int, int]]] = {}

    def __call__(self, x: Tensor, t: Tensor, width: float) -> Tensor:
        """Predict from images x [N, C, H, W] at integer timesteps t [N]; returns [N, C, H, W]."""
        (c_head, c_time), *counts = self._counts(width)
        embedding = F.embedding(t, self._tensors["time_embedding.table"])  # [N, ch]
        time = F.silu(self._linear("time_embedding.linear1", embedding, c_time))
        time = F.silu(self._linear("time_embedding.linear2", time, c_time))  # [N, c_time]
        h = self._conv("head", x, c_head, padding=1)  # [N, c_head, H, W]
        skips = [h]
        for block, (c_out, c_qkv) in zip(unet_blocks(self.config), counts, strict=True):
            h = self._block(block, h, time, c_out, c_qkv, skips)
            if block.name.startswith("down"):
                skips.append(h)
        h = F.silu(self._norm("tail.norm", h))
        return self._conv("tail.conv", h, self.config.image_channels, padding=1)

    def _counts(self, width: float) -> list[tuple[int, int]]:
        """(head, time), then (c_out, c_qkv) of each block; worked out once a width."""
        if width not in self._counts_of:
            active = self.config.active
            self._counts_of[width] = [
                (active(self.config.ch, width), active(4 * self.config.ch, width, "linear")),
                *(
                    (active(block.c_out, width), active(block.c_out, width, "qkv"))
                    for block in unet_blocks(self.config)
                ),
            ]
        return self._counts_of[width]

    def _block(
        self, block: Block, h: Tensor, time: Tensor, c_out: int, c_qkv: int, skips: list[Tensor]
    ) -> Tensor:
        name = block.name
        if block.kind == "downsample":
            return self._conv(f"{name}.conv", h, c_out, stride=2, padding=1)
        if block.kind == "upsample":
            h = F.interpolate(h, scale_factor=2, mode="nearest")  # [N, c, 2H, 2W]
            return self._conv(f"{name}.conv", h, c_out, padding=1)
        x = torch.cat([h, skips.pop()], dim=1) if block.c_skip else h
        h = self._conv(f"{name}.conv1", F.silu(self._norm(f"{name}.norm1", x)), c_out, padding=1)
        h = h + self._linear(f"{name}.time", time, c_out)[:, :, None, None]
        h = self._conv(f"{name}.conv2", F.silu(self._norm(f"{name}.norm2", h)), c_out, padding=1)
        h = h + (self._conv(f"{name}.shortcut", x, c_out) if block.shortcut else x)
        return self._attention(f"{name}.attention", h, c_qkv) if block.attention else h

    def _attention(self, name: str, x: Tensor, c_qkv: int) -> Tensor:
        n, c, height, width = x.shape
        h = self._norm(f"{name}.norm", x)
        q, k, v = (self._conv(f"{name}.{part}", h, c_qkv).flatten(2) for part in ("q", "k", "v"))
        scores = torch.bmm(q.transpose(1, 2), k) * c_qkv**-0.5  # [N, T, T]
        y = torch.bmm(v, scores.softmax(dim=-1).transpose(1, 2))  # [N, c_qkv, T]
        return x + self._conv(f"{name}.out", y.view(n, c_qkv, height, width), c)

    def _conv(
        self, name: str, x: Tensor, c_out: int, *, stride: int = 1, padding: int = 0
    ) -> Tensor:
        weight = self._tensors[f"{name}.weight"][:c_out, : x.shape[1]]
        bias = self._tensors[f"{name}.bias"][:c_out]
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)

    def _linear(self, name: str, x: Tensor, c_out: int) -> Tensor:
        weight = self._tensors[f"{name}.weight"][:c_out, : x.shape[1]]
        return F.linear(x, weight, self._tensors[f"{name}.bias"][:c_out])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        c, c_max = x.shape[1], weight.shape[0]
        return F.group_norm(x, self.config.group_count(c_max, c), weight[:c], bias[:c])
