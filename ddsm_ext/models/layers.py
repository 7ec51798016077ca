"""Layers that compute with a prefix of their parameters, for any active channel counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from ddsm_ext.ops.conv2d import sliced_conv2d
from ddsm_ext.ops.embedding import sliced_embedding
from ddsm_ext.ops.group_norm import sliced_group_norm
from ddsm_ext.ops.layer_norm import sliced_layer_norm
from ddsm_ext.ops.linear import sliced_linear


def with_device_of(generator: Generator | None, kind: dict[str, Any]) -> dict[str, Any]:
    """Return a tensor's device and dtype, with the generator's device where none is given."""
    if generator is None or kind.get("device") is not None:
        return kind
    return {**kind, "device": generator.device}


class SlicedLayer(nn.Module):
    """A layer whose settings compiled steps take from its description, or once for all runs.

    `changes` counts settings of any layer that were changed after it was made.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ()
    changes: ClassVar[int] = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.SETTINGS and name in self.__dict__:
            SlicedLayer.changes += 1
        super().__setattr__(name, value)


class SlicedConv2d(SlicedLayer):
    """Convolution with `weight[:c_out, :c_in]`, over one source or over an unjoined concat of two.

    On CUDA the weight is channels_last, however the module came there (`wanted_format`).

    Args:
        c_in: allocated channels of the first source.
        c_out: allocated output channels.
        kernel: side of the kernel; the padding keeps the size at stride 1.
        c_skip: allocated channels of a second source; 0 means there is none.
        per_source: the second source takes the weights behind all of the first source's
            (True), or behind its active ones (False).
        stride: 1 or 2.
        upsample: enlarge the input 2x (nearest neighbour) first.
        ring: convolve one pixel around the image, too.
        pad_end: have one row and column of zeros less before the image.
        gain: factor on the Xavier-uniform initial weights.
        generator: source of the initial weights; None means torch's default generator.
        kind: device and dtype of the parameters; where missing, the generator's device and
            otherwise torch's defaults, as in torch's own layers.
    """

    SETTINGS = ("stride", "padding", "pad_end", "upsample", "skip_offset")

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        *,
        c_skip: int = 0,
        per_source: bool = True,
        stride: int = 1,
        upsample: bool = False,
        ring: bool = False,
        pad_end: bool = False,
        gain: float = 1.0,
        generator: Generator | None = None,
        **kind: Any,
    ) -> None:
        super().__init__()
        kind = with_device_of(generator, kind)
        self.weight = nn.Parameter(torch.empty(c_out, c_in + c_skip, kernel, kernel, **kind))
        self.bias = nn.Parameter(torch.zeros(c_out, **kind))
        self.stride = stride
        self.padding = kernel // 2 + ring - pad_end
        self.pad_end = pad_end
        self.upsample = upsample
        self.skip_offset = c_in if per_source else None
        nn.init.xavier_uniform_(self.weight, gain=gain, generator=generator)
        self._lay_out()

    @staticmethod
    def wanted_format(device: torch.device) -> torch.memory_format:
        """Return how the weight should lie in a device's memory.

        CUDA kernels read 16 bytes at once if neighbouring input channels are adjacent; the CPU's
        rearrange the weight in any case.
        """
        return torch.channels_last if device.type == "cuda" else torch.preserve_format

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SlicedConv2d:
        """What `to`, `cuda`, `half` and the like call."""
        super()._apply(fn, recurse)
        self._lay_out()
        return self

    def _lay_out(self) -> None:
        wanted = self.wanted_format(self.weight.device)
        for tensor in (self.weight, self.weight.grad):
            if wanted != torch.preserve_format and tensor is not None:
                tensor.data = tensor.data.contiguous(memory_format=wanted)

    def forward(
        self, x: Tensor, c_out: int, *, x2: Tensor | None = None, accumulate_grad: bool = False
    ) -> Tensor:
        """Convolve.

        Args:
            x: [N, c_in, H, W], active channels of the first source.
            c_out: active output channels.
            x2: [N, c_skip, H, W], active channels of the second source; None means one source.
            accumulate_grad: backward adds weight gradients to `p.grad` itself.

        Returns:
            [N, c_out, H', W'], channels_last.
        """
        return sliced_conv2d(
            x,
            self.weight,
            self.bias,
            c_out,
            stride=self.stride,
            padding=self.padding,
            x2=x2,
            c_in2_offset=None if x2 is None else self.skip_offset,
            upsample=self.upsample,
            accumulate_grad=accumulate_grad,
            pad_end=self.pad_end,
        )


class SlicedLinear(SlicedLayer):
    """Linear layer with `weight[:c_out, :c_in]`, Xavier-uniform initial weights, zero bias or none.

    Args:
        c_in, c_out: allocated channels.
        blocks: weights of these channels in one parameter, [blocks, c_out, c_in], whose results lie
            side by side; 1: it is [c_out, c_in].
        activation: on the result; see `sliced_linear`.
        bias: whether it has one.
        gain: factor on the initial weights.
        generator: source of the initial weights; None means torch's default generator.
        kind: as `SlicedConv2d`'s.
    """

    SETTINGS = ("activation",)

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        blocks: int = 1,
        activation: str | None = None,
        bias: bool = True,
        gain: float = 1.0,
        generator: Generator | None = None,
        **kind: Any,
    ) -> None:
        super().__init__()
        kind = with_device_of(generator, kind)
        of_blocks = () if blocks == 1 else (blocks,)
        self.weight = nn.Parameter(torch.empty(*of_blocks, c_out, c_in, **kind))
        self.bias = nn.Parameter(torch.zeros(*of_blocks, c_out, **kind)) if bias else None
        self.activation = activation
        for weight in self.weight if of_blocks else [self.weight]:
            nn.init.xavier_uniform_(weight, gain=gain, generator=generator)

    def forward(
        self,
        x: Tensor,
        c_out: int,
        *,
        gate: Tensor | None = None,
        residual: Tensor | None = None,
        accumulate_grad: bool = False,
    ) -> Tensor:
        """Map [..., c_in] to [..., blocks * c_out], or to [..., c_out] by a geglu.

        gate, residual: see `sliced_linear`.
        """
        return sliced_linear(
            x,
            self.weight,
            self.bias,
            c_out,
            activation=self.activation,
            gate=gate,
            residual=residual,
            accumulate_grad=accumulate_grad,
        )


class SlicedLayerNorm(SlicedLayer):
    """Layer norm with sliced scale and shift.

    Args:
        c: allocated channels.
        eps: added to the variance.
        kind: as `SlicedConv2d`'s.
    """

    SETTINGS = ("eps",)

    def __init__(self, c: int, *, eps: float = 1e-5, **kind: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c, **kind))
        self.bias = nn.Parameter(torch.zeros(c, **kind))
        self.eps = eps

    def forward(self, x: Tensor, *, accumulate_grad: bool = False) -> Tensor:
        """Normalise the last dimension of [N, ..., c]."""
        return sliced_layer_norm(
            x, self.weight, self.bias, eps=self.eps, accumulate_grad=accumulate_grad
        )


class SlicedGroupNorm(SlicedLayer):
    """Group norm with sliced scale and shift, followed by SiLU on request.

    Args:
        c: allocated channels of the first source.
        groups: group count at full width.
        c_skip: allocated channels of a second source; 0 means there is none.
        per_source: where the second source's scale and shift begin, as in `SlicedConv2d`.
        fixed_groups: keep the group count at every width instead of the channels a group.
        silu: apply SiLU to the result.
        eps: added to the variance.
        kind: as `SlicedConv2d`'s.
    """

    SETTINGS = ("groups", "channels_per_group", "silu", "eps", "skip_offset")

    def __init__(
        self,
        c: int,
        groups: int,
        *,
        c_skip: int = 0,
        per_source: bool = True,
        fixed_groups: bool = False,
        silu: bool = False,
        eps: float = 1e-5,
        **kind: Any,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c + c_skip, **kind))
        self.bias = nn.Parameter(torch.zeros(c + c_skip, **kind))
        self.groups = groups
        self.channels_per_group = None if fixed_groups else (c + c_skip) // groups
        self.silu = silu
        self.eps = eps
        self.skip_offset = c if per_source else None

    def group_count(self, c: int) -> int:
        """Groups of `c` active channels."""
        return c // self.channels_per_group if self.channels_per_group else self.groups

    def forward(
        self,
        x: Tensor,
        x2: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        accumulate_grad: bool = False,
    ) -> Any:
        """Normalise one source, or the concat of two.

        Args:
            x: [N, c, H, W].
            x2: [N, c_skip, H, W], second source; None means one source.
            scale, shift: [N, c of all], which modulate the result before SiLU:
                result * (1 + scale) + shift; None: neither.
            accumulate_grad: backward adds weight gradients to `p.grad` itself.

        Returns:
            The result, or its two parts.
        """
        return sliced_group_norm(
            x,
            self.weight,
            self.bias,
            self.group_count(x.shape[1] + (0 if x2 is None else x2.shape[1])),
            x2=x2,
            c2_offset=None if x2 is None else self.skip_offset,
            eps=self.eps,
            silu=self.silu,
            scale=scale,
            shift=shift,
            accumulate_grad=accumulate_grad,
        )


class SlicedEmbedding(SlicedLayer):
    """A table of which labels name rows and a width the columns; normal initial values.

    Args:
        rows: labels.
        c: allocated channels.
        generator: source of the initial weights; None means torch's default generator.
        kind: as `SlicedConv2d`'s.
    """

    def __init__(
        self, rows: int, c: int, *, generator: Generator | None = None, **kind: Any
    ) -> None:
        super().__init__()
        kind = with_device_of(generator, kind)
        self.weight = nn.Parameter(torch.empty(rows, c, **kind))
        nn.init.normal_(self.weight, generator=generator)

    def forward(self, y: Tensor, c: int, *, accumulate_grad: bool = False) -> Tensor:
        """Map labels [N] to [N, c]."""
        return sliced_embedding(self.weight, y, c, accumulate_grad=accumulate_grad)
