"""Checks of single layers of `CudaLayers`, on any device that has the fused CUDA ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from cuda_kernels.bindings.checks import check_close, normal, tolerance
from torch import Tensor

from ddsm_ext.ops.layer_norm import sliced_layer_norm_ref
from ddsm_ext.runtime.cuda_layers import Activation, CudaLayers
from ddsm_ext.runtime.operands import ConvWeight, Linear

C, C2, C_OUT, OFFSET = 12, 8, 14, 16  # OFFSET: where the second source's parameters begin
USED = [*range(C), *range(OFFSET, OFFSET + C2)]


def resampled(x: Tensor, way: str | None) -> Tensor:
    """Enlarged, halved, or x itself."""
    if way is None:
        return x
    return F.avg_pool2d(x, 2) if way == "down" else F.interpolate(x, scale_factor=2.0)


def check_resampled_convolutions(device: torch.device, dtype: torch.dtype) -> None:
    """A convolution of enlarged and of halved sources, with and without their norm before it."""
    run = CudaLayers()
    with device:
        embedding = normal(2, 16, dtype=dtype)
        project = Linear(normal(40, 16, dtype=dtype), normal(40, dtype=dtype), 2 * (C + C2))
        inputs = [normal(2, c, 6, 4, dtype=dtype) for c in (C, C2)]
        head = [ConvWeight((normal(c, c, 1, 1, dtype=dtype),), (normal(c, dtype=dtype),))
                for c in (C, C2)]  # fmt: skip
        gamma, beta = (normal(32, dtype=dtype) for _ in range(2))
        weight, bias = normal(16, 32, 3, 3, dtype=dtype) / 16, normal(16, dtype=dtype)
        added = normal(2, C_OUT, dtype=dtype)
    sources = tuple(
        run.conv2d((Activation(x),), conv, x.shape[1], moments=True)
        for x, conv in zip(inputs, head, strict=True)
    )
    (film,) = run.linears(embedding, 16, [project])
    scale, shift = film.chunk(2, dim=1)  # [N, C + C2] each
    joined = torch.cat([source.tensor for source in sources], 1).double()
    normed = F.group_norm(joined, 4, gamma.double()[USED], beta.double()[USED])
    normed = F.silu(normed * (1 + scale.double()[:, :, None, None])
                    + shift.double()[:, :, None, None])  # fmt: skip
    for way in (None, "up", "down"):
        conv = ConvWeight((weight,), (bias,), resample=way, skip_offset=OFFSET)
        for with_norm in (False, True):
            norm = None
            if with_norm:
                norm = run.norm(sources, gamma, beta, 4, skip_offset=OFFSET, silu=True,
                                scale=scale, shift=shift)  # fmt: skip
            y = run.conv2d(sources, conv, C_OUT, norm=norm, shift=added, moments=True)
            exact = F.conv2d(
                resampled(normed if with_norm else joined, way),
                weight.double()[:C_OUT, USED],
                bias.double()[:C_OUT],
                padding=1,
            )
            check_close(y.tensor, exact + added.double()[:, :, None, None], 2 * tolerance(dtype))
            # The moments it left are those of the size that it made.
            again = run.norm((y,), gamma, beta, 7)(down=False)[0]
            of_y = F.group_norm(y.tensor.double(), 7, gamma.double()[:C_OUT], beta.double()[:C_OUT])
            check_close(again, of_y, tolerance(dtype))


def check_resampled_paths_beside(device: torch.device, dtype: torch.dtype) -> None:
    """A residual of half the output's size, and shortcuts of resampled sources."""
    run = CudaLayers()
    with device:
        large, half = normal(2, C, 12, 8, dtype=dtype), normal(2, C, 6, 4, dtype=dtype)
        weight, bias = normal(C, C, 3, 3, dtype=dtype) / 8, normal(C, dtype=dtype)
        corner, its_bias = normal(C, C, 1, 1, dtype=dtype) / 4, normal(C, dtype=dtype)
    wide = [t.double() for t in (weight, bias, corner, its_bias)]
    short = ConvWeight((corner,), (its_bias,))
    for x, way in ((half, "up"), (large, "down")):
        conv = ConvWeight((weight,), (bias,), resample=way)
        exact = F.conv2d(resampled(x.double(), way), *wide[:2], padding=1)
        beside = resampled(x.double(), way)
        if way == "up":
            y = run.conv2d((Activation(x),), conv, C, residual=Activation(half))
            check_close(y.tensor, exact + beside, 2 * tolerance(dtype))
        shortcut = (run.resample(Activation(x), way == "up"),), short
        y = run.conv2d((Activation(x),), conv, C, shortcut=shortcut)
        check_close(y.tensor, exact + F.conv2d(beside, *wide[2:]), 2 * tolerance(dtype))


def check_resampled_activations(device: torch.device, dtype: torch.dtype) -> None:
    with device:
        x = normal(2, C, 6, 4, dtype=dtype)
    run = CudaLayers()
    for up in (False, True):
        y = run.resample(Activation(x), up)
        assert y.moments is None
        check_close(y.tensor, resampled(x.double(), "up" if up else "down"), tolerance(dtype))


def check_attention_to_a_context(device: torch.device, dtype: torch.dtype) -> None:
    """One token and more, beside images that attend to themselves."""
    run = CudaLayers()
    for heads, tokens in ((1, 77), (3, 1)):
        with device:
            q, kv = normal(2, 48, 4, 6, dtype=dtype), normal(2, 96, tokens, 1, dtype=dtype)
        last = torch.channels_last
        context, image = (
            Activation(x.contiguous(memory_format=last)) for x in (kv, torch.cat([q] * 3, 1))
        )
        to_context = run.cross_attention(
            Activation(q.contiguous(memory_format=last)), context, heads
        )
        to_itself = run.attention(image, heads)
        for y, others in ((to_context, kv.chunk(2, 1)), (to_itself, (q, q))):
            parts = [part.double().flatten(2).view(2, heads, 48 // heads, -1).mT
                     for part in (q, *others)]  # fmt: skip
            exact = F.scaled_dot_product_attention(*parts).mT.reshape(q.shape)
            check_close(y.tensor, exact, tolerance(dtype))
            assert y.tensor.is_contiguous(memory_format=last)


def check_labels(device: torch.device, dtype: torch.dtype) -> None:
    """A class's row, as wide as the widest network, added to a time embedding before SiLU."""
    with device:
        x, table = normal(3, 16, dtype=dtype), normal(5, 24, dtype=dtype)
        linear = Linear(normal(24, 16, dtype=dtype), normal(24, dtype=dtype), 20)
        rows = table[torch.tensor([4, 0, 4])][:, :20]  # [N, 20] of 24 columns
    (y,) = CudaLayers().linears(x, 16, [linear], shift=rows, silu=True)
    exact = F.linear(x.double(), linear.weight.double()[:20], linear.bias.double()[:20])
    check_close(y, F.silu(exact + rows.double()), tolerance(dtype))


def check_layer_norms(device: torch.device, dtype: torch.dtype) -> None:
    """Of the pixels of an image, with and without parameters, scale and shift."""
    run = CudaLayers()
    with device:
        x, eye = normal(2, C, 6, 4, dtype=dtype), torch.eye(C)[:, :, None, None].to(dtype)
        embedding = normal(2, 16, dtype=dtype)
        project = Linear(normal(2 * C, 16, dtype=dtype), normal(2 * C, dtype=dtype), 2 * C)
        gamma, beta, zero = normal(32, dtype=dtype), normal(32, dtype=dtype), torch.zeros(C)
    source = run.conv2d((Activation(x),), ConvWeight((eye,), (zero.to(dtype),)), C)
    (both,) = run.linears(embedding, 16, [project])
    scale, shift = both.chunk(2, dim=1)  # [N, C] each
    for affine in ((gamma, beta), (None, None)):
        for film in ((scale, shift), (None, None)):
            y = run.layer_norm(source, *affine, eps=1e-6, scale=film[0], shift=film[1])
            assert y.moments is None
            assert y.tensor.is_contiguous(memory_format=torch.channels_last)
            wide = [None if t is None else t.double() for t in (*affine, *film)]
            exact = sliced_layer_norm_ref(
                source.tensor.double().permute(0, 2, 3, 1), *wide[:2], eps=1e-6, scale=wide[2],
                shift=wide[3],
            )  # fmt: skip
            check_close(y.tensor, exact.permute(0, 3, 1, 2), tolerance(dtype))


def check_linear_weights(device: torch.device, dtype: torch.dtype) -> None:
    """A linear layer's weight over pixels, whole and of blocks, without a bias."""
    run = CudaLayers()
    with device:
        x, weight = normal(2, C, 6, 4, dtype=dtype), normal(3, 16, 24, dtype=dtype) / 4
        corner, bias = normal(3 * C_OUT, C, dtype=dtype) / 4, normal(3 * C_OUT, dtype=dtype)
    pixels, blocks = x.double().permute(0, 2, 3, 1), weight.double()[:, :C_OUT, :C]
    for count in (1, 2, 3):
        given = weight[0] if count == 1 else weight[:count]
        conv = ConvWeight((given,), (None,))
        exact = F.gelu(F.linear(pixels, blocks[:count].flatten(0, 1))).permute(0, 3, 1, 2)
        y = run.conv2d((Activation(x),), conv, C_OUT, activation="gelu")
        check_close(y.tensor, exact, 2 * tolerance(dtype))
    shortcut = (Activation(x),), ConvWeight((corner,), (bias,))
    y = run.conv2d((Activation(x),), ConvWeight((weight[0],), (None,)), C_OUT, shortcut=shortcut)
    beside = F.linear(pixels, corner.double()[:C_OUT], bias.double()[:C_OUT])
    exact = (F.linear(pixels, blocks[0]) + beside).permute(0, 3, 1, 2)
    check_close(y.tensor, exact, 2 * tolerance(dtype))


@torch.no_grad()
def check_all_layers(device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_layer_norms(device, dtype)
        check_resampled_convolutions(device, dtype)
        check_resampled_paths_beside(device, dtype)
        check_resampled_activations(device, dtype)
        check_labels(device, dtype)
        check_attention_to_a_context(device, dtype)
        check_linear_weights(device, dtype)
