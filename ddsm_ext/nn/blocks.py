"""Blocks of the slimmable U-Net; active channel counts arrive as forward arguments."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ddsm_ext.nn.layers import LAST_LAYER_GAIN, SlicedConv2d, SlicedGroupNorm, SlicedLinear
from ddsm_ext.ops.attention import sliced_attention


class AttentionBlock(nn.Module):
    """x + out(attention(q, k, v)) with 1x1 projections of norm(x), over all pixels.

    Args:
        c: allocated channels.
        groups, fixed_groups: as in `SlicedGroupNorm`.
        head_channels: channels of a head; None means one head over all active channels.
        generator: source of the initial weights; None means torch's default generator.
    """

    def __init__(
        self,
        c: int,
        *,
        groups: int,
        fixed_groups: bool = False,
        head_channels: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.norm = SlicedGroupNorm(c, groups, fixed_groups=fixed_groups)
        self.q = SlicedConv2d(c, c, 1, generator=generator)
        self.k = SlicedConv2d(c, c, 1, generator=generator)
        self.v = SlicedConv2d(c, c, 1, generator=generator)
        self.out = SlicedConv2d(c, c, 1, gain=LAST_LAYER_GAIN, generator=generator)

    def forward(self, x: Tensor, c_qkv: int, *, accumulate_grad: bool = False) -> Tensor:
        """Attend.

        Args:
            x: [N, c, H, W], channels_last.
            c_qkv: active channels of queries, keys and values.
            accumulate_grad: backward adds weight gradients to `p.grad` itself.
        """
        n, c, height, width = x.shape
        h = self.norm(x, accumulate_grad=accumulate_grad)
        heads = 1 if self.head_channels is None else c_qkv // self.head_channels
        split = (n, height * width, heads, c_qkv // heads)
        q, k, v = (
            # A view, as the memory of a channels_last tensor is [N, H, W, C].
            conv(h, c_qkv, accumulate_grad=accumulate_grad).permute(0, 2, 3, 1).view(split)
            for conv in (self.q, self.k, self.v)
        )  # [N, T, heads, d]
        y = sliced_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        y = y.transpose(1, 2).reshape(n, height, width, c_qkv)  # no copy: the op's memory order
        y = y.permute(0, 3, 1, 2)  # [N, c_qkv, H, W], channels_last
        return x + self.out(y, c, accumulate_grad=accumulate_grad)


class ResidualBlock(nn.Module):
    """DDPM residual block over one source or over an unjoined concat of two.

    h = conv2(drop(silu(norm2(conv1(silu(norm1(x))) + time)))) + shortcut(x), then attention.

    Args:
        c_in: allocated channels of the first source.
        c_out: allocated output channels.
        c_time: allocated channels of the time embedding.
        groups, fixed_groups: as in `SlicedGroupNorm`.
        c_skip, per_source: second source, as in `SlicedConv2d`.
        shortcut: learned 1x1 shortcut, which two sources need; without it x itself is added.
        attention: self-attention after the block.
        head_channels: as in `AttentionBlock`.
        dropout: dropout probability before the second convolution.
        generator: source of the initial weights; None means torch's default generator.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        c_time: int,
        *,
        groups: int,
        fixed_groups: bool = False,
        c_skip: int = 0,
        per_source: bool = True,
        shortcut: bool = False,
        attention: bool = False,
        head_channels: int | None = None,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if c_skip and not shortcut:
            raise ValueError(
                f"ResidualBlock: c_skip is {c_skip} and shortcut False; need a shortcut to add two "
                "sources to one output"
            )
        joined: dict[str, Any] = {"c_skip": c_skip, "per_source": per_source}
        self.dropout = dropout
        self.norm1 = SlicedGroupNorm(c_in, groups, fixed_groups=fixed_groups, silu=True, **joined)
        self.conv1 = SlicedConv2d(c_in, c_out, 3, generator=generator, **joined)
        self.time = SlicedLinear(c_time, c_out, generator=generator)
        self.norm2 = SlicedGroupNorm(c_out, groups, fixed_groups=fixed_groups, silu=True)
        self.conv2 = SlicedConv2d(c_out, c_out, 3, gain=LAST_LAYER_GAIN, generator=generator)
        self.shortcut = (
            SlicedConv2d(c_in, c_out, 1, generator=generator, **joined) if shortcut else None
        )
        self.attention = (
            AttentionBlock(
                c_out,
                groups=groups,
                fixed_groups=fixed_groups,
                head_channels=head_channels,
                generator=generator,
            )
            if attention
            else None
        )

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        c_out: int,
        c_qkv: int,
        *,
        skip: Tensor | None = None,
        accumulate_grad: bool = False,
    ) -> Tensor:
        """Run the block.

        Args:
            x: [N, c_in, H, W], channels_last.
            time: [N, c_time], output of `TimeEmbedding`.
            c_out: active output channels.
            c_qkv: active channels of the attention's queries, keys and values.
            skip: [N, c_skip, H, W], second source; None means one source.
            accumulate_grad: backward adds weight gradients to `p.grad` itself.

        Returns:
            [N, c_out, H, W], channels_last.
        """
        if skip is None:
            h, h_skip = self.norm1(x, accumulate_grad=accumulate_grad), None
        else:
            h, h_skip = self.norm1.forward_joined(x, skip, accumulate_grad=accumulate_grad)
        h = self.conv1(h, c_out, x2=h_skip, accumulate_grad=accumulate_grad)  # [N, c_out, H, W]
        h = h + self.time(time, c_out, accumulate_grad=accumulate_grad)[:, :, None, None]
        h = self.norm2(h, accumulate_grad=accumulate_grad)
        h = F.dropout(h, self.dropout, self.training)
        h = self.conv2(h, c_out, accumulate_grad=accumulate_grad)
        if self.shortcut is None:
            h = h + x
        else:
            h = h + self.shortcut(x, c_out, x2=skip, accumulate_grad=accumulate_grad)
        if self.attention is not None:
            h = self.attention(h, c_qkv, accumulate_grad=accumulate_grad)
        return h


class ResampleBlock(nn.Module):
    """3x3 convolution that halves the size (stride 2) or doubles it (after nearest 2x).

    Args:
        c: allocated channels.
        upsample: double instead of halve.
        generator: source of the initial weights; None means torch's default generator.
    """

    def __init__(self, c: int, *, upsample: bool, generator: Generator | None = None) -> None:
        super().__init__()
        stride = 1 if upsample else 2
        self.conv = SlicedConv2d(c, c, 3, stride=stride, upsample=upsample, generator=generator)

    def forward(self, x: Tensor, *, accumulate_grad: bool = False) -> Tensor:
        """Map [N, c, H, W] to [N, c, H / 2, W / 2] or [N, c, 2 H, 2 W]."""
        return self.conv(x, x.shape[1], accumulate_grad=accumulate_grad)


class OutputBlock(nn.Module):
    """conv(silu(norm(x))) to the image's channels, which are never slimmed."""

    def __init__(
        self,
        c: int,
        image_channels: int,
        *,
        groups: int,
        fixed_groups: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.image_channels = image_channels
        self.norm = SlicedGroupNorm(c, groups, fixed_groups=fixed_groups, silu=True)
        self.conv = SlicedConv2d(c, image_channels, 3, gain=LAST_LAYER_GAIN, generator=generator)

    def forward(self, x: Tensor, *, accumulate_grad: bool = False) -> Tensor:
        """Map [N, c, H, W] to [N, image_channels, H, W]."""
        h = self.norm(x, accumulate_grad=accumulate_grad)
        return self.conv(h, self.image_channels, accumulate_grad=accumulate_grad)
