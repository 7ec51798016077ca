"""Checks of whole U-Net steps made of the fused CUDA ops, on any device that has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from cuda_kernels.bindings.checks import check_close, normal, tolerance
from cuda_kernels.networks import CONFIGS
from torch import Tensor

from ddsm_ext.bench.steps import channels_last, random_inputs, random_network
from ddsm_ext.models import SlimmableNetwork
from ddsm_ext.ops._fused import (
    Shortcut,
    conv2d_fused,
    group_norm_apply,
    linear_fused,
    make_tickets,
    resample,
    sinusoidal_embedding,
)
from ddsm_ext.ops.conv2d import sliced_conv2d_ref
from ddsm_ext.ops.embedding import embed_time
from ddsm_ext.ops.group_norm import sliced_group_norm_ref
from ddsm_ext.ops.linear import sliced_linear_ref
from ddsm_ext.runtime.backend import StepKey
from ddsm_ext.runtime.cuda import Graphs, GraphSteps, run_step


def network(name: str, dtype: torch.dtype, device: torch.device) -> SlimmableNetwork:
    """A small network laid out as on a GPU, rounded to `dtype`."""
    net = random_network(CONFIGS[name]).to(dtype).to(device)
    return net.to(memory_format=torch.channels_last)


@torch.no_grad()
def inputs_of(net: SlimmableNetwork, dtype: torch.dtype, n: int = 3) -> dict[str, Tensor]:
    """Random inputs by name; timesteps on and between the steps of a frozen table."""
    device = next(net.parameters()).device
    inputs = channels_last(random_inputs(net.config, n, dtype, device=str(device)))
    if any(node.fourier for node in net.graph.nodes):  # whose angles are large enough as it is
        return inputs
    return {**inputs, "t": torch.tensor([0.0, 7.25, 40.0], device=device)[:n]}


@torch.no_grad()
def exact_step(net: SlimmableNetwork, inputs: Mapping[str, Tensor], width: float) -> Tensor:
    """The step in fp64, by plain torch layers with their own copy of the weights."""
    return net.export_subnet(width).double()(**{**inputs, "x": inputs["x"].double()})


@torch.no_grad()
def check_step(
    name: str,
    width: float,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    device: torch.device,
) -> None:
    net = network(name, weight_dtype, device)
    inputs = inputs_of(net, dtype)
    y = run_step(net, width, inputs)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    # Some twenty layers, each rounded to the dtype; full precision where there is no tf32.
    full = dtype == torch.float32 and device.type == "cpu"
    check_close(y, exact_step(net, inputs, width), 1e-5 if full else 3 * tolerance(dtype))


def check_steps(device: torch.device) -> None:
    fp32, bf16 = torch.float32, torch.bfloat16
    for name in ("source", "heads", "reference", "adm"):
        for width in (1.0, 0.5):
            check_step(name, width, fp32, fp32, device)
        check_step(name, 0.5, bf16, bf16, device)
    for name in ("ddpm++", "ncsn++", "edm-adm"):
        for width in (1.0, 0.5):
            check_step(name, width, fp32, fp32, device)
        check_step(name, 0.5, bf16, bf16, device)
    check_step("prefix", 0.3, fp32, fp32, device)
    check_step("adm-plain", 0.5, fp32, fp32, device)
    check_step("padded-at-the-end", 0.5, fp32, fp32, device)
    check_step("adm", 0.5, bf16, fp32, device)
    check_step("source", 1.0, bf16, bf16, device)
    check_step("source", 0.5, bf16, fp32, device)


def check_convolution_leaves_moments(device: torch.device) -> None:
    """A norm of two sources by the moments that their convolutions left, and by its own."""
    with device:
        x, weight, bias = (
            normal(*s, dtype=torch.float32) for s in ((2, 8, 6, 5), (16, 8, 3, 3), (16,))
        )
        shift, residual = (
            normal(2, 12, dtype=torch.float32),
            normal(2, 12, 6, 5, dtype=torch.float32),
        )
        gamma, beta = (normal(24, dtype=torch.float32) for _ in range(2))
    y, moments = conv2d_fused(
        [x], [weight], [bias], 12, shift=shift, residual=residual, moments=True
    )
    exact = sliced_conv2d_ref(*(v.double() for v in (x, weight, bias)), 12, padding=1)
    exact += shift.double()[:, :, None, None] + residual.double()
    check_close(y, exact, tolerance(torch.float32))
    y2, moments2 = conv2d_fused([x], [weight], [bias], 4, stride=1, moments=True)
    norm = {"c2_offset": 20, "eps": 1e-5, "silu": True}
    expected = sliced_group_norm_ref(
        *(v.double() for v in (y, gamma, beta)), 4, x2=y2.double(), **norm
    )
    for given in ((moments, moments2), (moments, None), (None, None)):
        parts = group_norm_apply([y, y2], given, gamma, beta, 4, **norm)
        for got, part in zip(parts, expected, strict=True):
            check_close(got, part, 1e-5)
    with pytest.raises(RuntimeError, match="moments are not those of their source"):
        group_norm_apply([y, y2], (moments2, moments), gamma, beta, 4, **norm)


def check_scale_shift_and_halving(device: torch.device) -> None:
    """A norm with a scale and a shift for each image, perhaps averaged over 2x2 pixels."""
    norm = {"c2_offset": 16, "eps": 1e-5, "silu": True}
    for dtype in (torch.float32, torch.bfloat16):
        with device:
            x, x2 = normal(2, 12, 6, 10, dtype=dtype), normal(2, 8, 6, 10, dtype=dtype)
            gamma, beta = (normal(32, dtype=dtype) for _ in range(2))
            weight, bias = normal(40, 16, dtype=dtype), normal(40, dtype=dtype)
            embedding = normal(2, 16, dtype=dtype)
        (both,) = linear_fused(embedding, [weight], [bias], [40])
        scale, shift = both.chunk(2, dim=1)  # [N, 20] each
        used = [*range(12), *range(16, 24)]
        exact = torch.nn.functional.group_norm(
            torch.cat([x, x2], 1).double(), 4, gamma.double()[used], beta.double()[used]
        )
        exact = exact * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
        exact = torch.nn.functional.silu(exact)
        for down in (False, True):
            parts = group_norm_apply(
                [x, x2], (None, None), gamma, beta, 4, scale=scale, shift=shift, down=down,
                overlaps=True, **norm,
            )  # fmt: skip
            wanted = torch.nn.functional.avg_pool2d(exact, 2) if down else exact
            assert all(y.is_contiguous(memory_format=torch.channels_last) for y in parts)
            relative = 1e-5 if dtype == torch.float32 else tolerance(dtype)
            check_close(torch.cat(parts, 1), wanted, relative)
    call = [x, x2], (None, None), gamma, beta, 4
    for more, message in (
        ({"scale": scale}, "only one of scale and shift is given"),
        ({"scale": scale[:, :19], "shift": shift}, "scale does not match the input"),
        ({"scale": scale, "shift": shift.double()}, "shift does not match the input"),
    ):
        with pytest.raises(RuntimeError, match=f"sliced_group_norm_apply: {message}"):
            group_norm_apply(*call, **more, **norm)
    with pytest.raises(RuntimeError, match="x has 5x10 pixels; need an even height and width"):
        group_norm_apply([x[:, :, 1:]], [None], gamma, beta, 4, eps=1e-5, silu=True, down=True)


def check_resample(device: torch.device) -> None:
    """Both ways, of tensors in any layout."""
    for dtype in (torch.float32, torch.bfloat16):
        with device:
            dense = normal(2, 16, 6, 4, dtype=dtype)
        channels_last = dense.contiguous(memory_format=torch.channels_last)
        for x in (dense, channels_last, channels_last[:, :5], channels_last[:, :, ::2]):
            for up in (False, True):
                if not up and x.shape[2] % 2:
                    continue
                exact = x.double()
                exact = exact.repeat_interleave(2, 2).repeat_interleave(2, 3) if up else (
                    torch.nn.functional.avg_pool2d(exact, 2)
                )  # fmt: skip
                y = resample(x, up, overlaps=True)
                assert y.dtype == dtype
                assert y.is_contiguous(memory_format=torch.channels_last)
                check_close(y, exact, tolerance(dtype))
    for x, up, message in (
        (dense[:, :, 1:], False, "x has 5x4 pixels; need an even height and width"),
        (dense[0], True, "x has 3 dimensions; need 4"),
        (dense.double(), True, "x is float64; the CUDA kernel needs"),
    ):
        with pytest.raises(RuntimeError, match=message):
            resample(x, up)


def check_linears(device: torch.device) -> None:
    """Several weights beside each other, whose outputs are views with aligned rows."""
    for dtype, weight_dtype in ((torch.float32,) * 2, (torch.bfloat16, torch.float32)):
        for rows in (1, 3, 20):
            with device:
                x = normal(rows, 19, dtype=dtype)
                weights = [normal(c, 32, dtype=weight_dtype) for c in (24, 40, 16)]
                biases = [normal(len(w), dtype=weight_dtype) for w in weights]
            counts = (13, 40, 9)
            for silu in (False, True):
                found = linear_fused(x, weights, biases, counts, silu=silu, overlaps=True)
                for y, w, b, c in zip(found, weights, biases, counts, strict=True):
                    exact = sliced_linear_ref(x.double(), w.double(), b.double(), c)
                    exact = torch.nn.functional.silu(exact) if silu else exact
                    assert y.dtype == dtype
                    assert y.stride(1) == 1
                    assert (y.storage_offset() * y.element_size()) % 16 == 0
                    assert (y.stride(0) * y.element_size()) % 16 == 0
                    check_close(y, exact, tolerance(dtype))
                with device:
                    shift = normal(rows, 17, dtype=dtype)[:, 2:15]
                (y,) = linear_fused(
                    x, weights[:1], biases[:1], counts[:1], shift=shift, silu=silu, overlaps=True
                )
                exact = sliced_linear_ref(x.double(), weights[0].double(), biases[0].double(), 13)
                exact = exact + shift.double()
                check_close(y, torch.nn.functional.silu(exact) if silu else exact, tolerance(dtype))
    for parts, row, message in (
        (2, shift, "a shift beside 2 weights; need one weight"),
        (1, shift[:, :12], "shift is not"),
        (1, shift[:1], "shift is not"),
        (1, shift.double(), "shift is not"),
    ):
        with pytest.raises(RuntimeError, match=message):
            linear_fused(x, weights[:parts], biases[:parts], counts[:parts], shift=row)


def check_embedding(device: torch.device) -> None:
    with device:
        table = normal(50, 16, dtype=torch.float32)
        t = torch.tensor([0, 3.5, 49, 50, 999])
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (None, table):
                expected = embed_time(t, 16, rows, dtype)
                got = sinusoidal_embedding(t, 16, rows, torch.empty(0, dtype=dtype))
                torch.testing.assert_close(got, expected, rtol=0.01, atol=1e-4)
                in_halves = sinusoidal_embedding(
                    t, 16, None if rows is None else torch.cat([rows[:, 1::2], rows[:, ::2]], 1),
                    torch.empty(0, dtype=dtype), halves=True,
                )  # fmt: skip
                assert in_halves.equal(torch.cat([got[:, 1::2], got[:, ::2]], 1))
        like = torch.empty(0)
    for arguments, message in (
        ((t, 15, None, like), "dim is 15, need an even number"),
        ((t[None], 16, None, like), "t has 2 dimensions, need 1"),
        ((t.half(), 16, None, like), "t is not float32, float64 or int64"),
        ((t, 16, table[:, :8], like), "the table is not"),
        ((t, 16, None, like.double()), "float64 is not supported"),
    ):
        with pytest.raises(RuntimeError, match=message):
            sinusoidal_embedding(*arguments)


def check_shortcut(device: torch.device) -> None:
    """A 1x1 convolution of one source and of two, added before the result is rounded."""
    for dtype in (torch.float32, torch.bfloat16):
        shapes = ((2, 8, 6, 5), (16, 8, 3, 3), (16,), (2, 16, 6, 5), (2, 8, 6, 5))
        shapes += ((16, 32, 1, 1), (16,))
        with device:
            x, weight, bias, first, second, beside, its_bias = (
                normal(*shape, dtype=dtype) for shape in shapes
            )
        exact = sliced_conv2d_ref(*(v.double() for v in (x, weight, bias)), 12, padding=1)
        for sources, offset in (([first], 0), ([first, second], 24)):
            x2 = sources[1].double() if offset else None
            numbers = [v.double() for v in (first, beside, its_bias)]
            added = sliced_conv2d_ref(*numbers, 12, x2=x2, c_in2_offset=offset)
            shortcut = Shortcut(sources, beside, its_bias, offset)
            tickets = make_tickets(device)
            y, _ = conv2d_fused([x], [weight], [bias], 12, shortcut=shortcut, tickets=tickets)
            check_close(y, exact + added, tolerance(dtype))
            assert not tickets.any()


def check_moments_of_classes(device: torch.device) -> None:
    """Moments of an image's pixels in four classes, one beside the other."""
    with device:
        y = normal(2, 12, 16, 16, dtype=torch.float32)
        gamma, beta = (normal(12, dtype=torch.float32) for _ in range(2))
    classes = y.double().reshape(2, 12, 8, 2, 8, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 4, 12, 64)
    mean = classes.mean(-1)  # [N, classes, c]
    m2 = (classes - mean[..., None]).square().sum(-1)
    moments = torch.stack([mean, m2], -1).float()[:, :, None]  # [N, classes, blocks, c, 2]
    moments = moments.view(torch.uint8).flatten(3)  # [N, classes, blocks, 8 c]
    norm = {"eps": 1e-5, "silu": True}
    expected = sliced_group_norm_ref(*(v.double() for v in (y, gamma, beta)), 4, **norm)
    (first,) = group_norm_apply([y], [moments], gamma, beta, 4, **norm)
    check_close(first, expected, 1e-5)
    (second,) = group_norm_apply([y], [moments], gamma, beta, 4, overlaps=True, **norm)
    assert second.equal(first)
    for wrong in (moments.flatten(0, 1), moments[:, :2], moments[:1], moments[..., :88]):
        with pytest.raises(RuntimeError, match="moments are not those of their source"):
            group_norm_apply([y], [wrong.contiguous()], gamma, beta, 4, **norm)
    with pytest.raises(RuntimeError, match="moments are not those of their source"):
        group_norm_apply([y[..., :15]], [moments], gamma, beta, 4, **norm)


def check_fused_arguments(device: torch.device) -> None:
    """The ops have no checks in Python: what does not fit ends in a RuntimeError."""
    with device:
        x, weight, bias = torch.ones(2, 8, 6, 5), torch.ones(16, 8, 1, 1), torch.ones(16)
    for weights, biases, message in (
        ([weight] * 4, [bias] * 4, "4 weights and 4 biases; need 1 to 3 of each, or no biases"),
        ([weight] * 3, [bias], "3 weights and 1 biases"),
        ([weight] * 3, [bias, None, bias], "3 weights and 2 biases"),
        ([weight, weight, weight[:8]], [bias] * 3, "the weights differ in shape"),
        ([weight, weight, weight.double()], [bias] * 3, "the weights differ in shape"),
        ([weight], [bias[:8]], "bias is not"),
        ([weight], [torch.ones(32, device=device)[::2]], "a bias is not contiguous"),
    ):
        with pytest.raises(RuntimeError, match=message):
            conv2d_fused([x], weights, biases, 12)
    for more, message in (
        ({"shift": x[:, :7, 0, 0]}, "shift is not"),
        ({"shift": x[:1, :, 0, 0]}, "shift is not"),
        ({"residual": x[:, :7]}, "residual is not of the output's shape and dtype"),
        ({"residual": x.bfloat16()}, "residual is not"),
        ({"shortcut": Shortcut([x], weight[:, :, 0], bias)}, "weight is not"),
        ({"shortcut": Shortcut([x[:, :, :3]], weight, bias)}, "the shortcut's x is not"),
        ({"shortcut": Shortcut([x], weight.bfloat16(), bias)}, "the shortcut's weight is not"),
        ({"shortcut": Shortcut([x], weight, bias[:3])}, "bias is not"),
        ({"tickets": torch.zeros(7, dtype=torch.int32, device=device)}, "tickets are not"),
        ({"gate": x[:, :7, 0, 0]}, "gate is not"),
        ({"gate": x[:, :, 0, 0].bfloat16()}, "gate is not"),
        ({"activation": "geglu"}, "1 weights; geglu needs 2"),
    ):
        with pytest.raises(RuntimeError, match=message):
            conv2d_fused([x], [weight], [bias], 8, **more)
    matrix = weight[:, :, 0, 0]
    for weights, biases, counts, message in (
        ([matrix], [bias] * 2, [8], "1 weights, 2 biases and 1 counts of outputs"),
        ([], [], [], "0 weights"),
        ([matrix, matrix.bfloat16()], [bias] * 2, [8] * 2, "differ in dtype|unsupported dtypes"),
        ([matrix], [bias], [17], "c_out is 17"),
        ([matrix[:, :3]], [bias], [8], "8 features do not match weight"),
    ):
        with pytest.raises(RuntimeError, match=message):
            linear_fused(x[:, :, 0, 0], weights, biases, counts)


@torch.no_grad()
def check_captured_steps(
    device: torch.device, make_graphs: Callable[[torch.device], Graphs]
) -> None:
    """Steps of two widths and two batches on the same weights, whose values change in between."""
    for name in ("source", "adm", "ncsn++"):
        _check_captured(network(name, torch.float32, device), device, make_graphs)


def _check_captured(
    net: SlimmableNetwork, device: torch.device, make_graphs: Callable[[torch.device], Graphs]
) -> None:
    steps = GraphSteps(net, device, make_graphs)
    assert steps.reason_against(net) is None
    for factor in (1.0, 1.1):
        for parameter in net.parameters():
            parameter.mul_(factor)
        for width in (1.0, 0.5):
            for n in (2, 3):
                inputs = inputs_of(net, torch.float32, n)
                key = StepKey(width, n, *inputs["x"].shape[2:], torch.float32)
                y = steps.run(net, key, inputs)
                exact = exact_step(net, inputs, width)
                check_close(y, exact, 1e-5 if device.type == "cpu" else 6e-3)
                if "y" in inputs:
                    _check_two_labels(net, steps, key, inputs)
    assert steps.held_bytes() > 0


def _check_two_labels(
    net: SlimmableNetwork, steps: GraphSteps, key: StepKey, inputs: dict[str, torch.Tensor]
) -> None:
    """Of each image, in blocks: what comes before labels runs once."""
    other = {**inputs, "y": inputs["y"].flip(0)}
    both = {**inputs, "y": torch.cat([inputs["y"], other["y"]])}
    y = steps.run(net, key._replace(labels=2), both)
    exact = torch.cat([exact_step(net, each, key.width) for each in (inputs, other)])
    check_close(y, exact, 1e-5 if y.device.type == "cpu" else 6e-3)


def check_all_steps(device: torch.device) -> None:
    check_fused_arguments(device)
    check_convolution_leaves_moments(device)
    check_scale_shift_and_halving(device)
    check_resample(device)
    check_linears(device)
    check_embedding(device)
    check_shortcut(device)
    check_moments_of_classes(device)
    check_steps(device)
