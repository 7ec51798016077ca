"""The sandwich training step: forward and backward at three widths into summed gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import increment_version

from ddsm_ext.bench.candidates import OPS, TOLERANCE, dtype_of
from ddsm_ext.bench.conditions import check_batch, conditions, using_threads
from ddsm_ext.bench.memory import peak_bytes
from ddsm_ext.bench.network import random_inputs, random_network
from ddsm_ext.bench.roof import measure_roof, roof_ms
from ddsm_ext.bench.shapes import REFERENCE_CIFAR10
from ddsm_ext.bench.slicing_unet import SlicingUNet
from ddsm_ext.bench.timing import clock_of, interleaved, time_columns
from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.macs import unet_macs
from ddsm_ext.models.unet import SlimmableUNet
from ddsm_ext.ops._dispatch import runs_native

# The largest and the smallest width of every sandwich step, and one between them.
SANDWICH = (1.0, 0.25, 0.5)


def run_training_step(
    batch: int = 8,
    dtype: str = "float32",
    rounds: int = 9,
    *,
    widths: Sequence[float] = SANDWICH,
    threads: int = 1,
    config: UNetConfig = REFERENCE_CIFAR10,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time a sandwich step up to its gradients: slicing under autograd against ours.

    Mean squared error, dropout off, no optimizer; each step finds weights that changed since the
    last one. The gradients of all parameters are compared before anything is timed.

    Args:
        batch: images.
        dtype: "float32" or "bfloat16", of weights and images.
        rounds: measured rounds.
        widths: the sandwich.
        threads: torch threads; 1 is timed in the thread's CPU time, more in wall time.
        config: the network, filled with random weights.
        progress: called with (rounds done, rounds in all); None for silence.

    Returns:
        JSON-ready: "rows" (a single one: widths, macs an image, `<candidate>_ms` and `_min_ms` an
        image, `_peak_bytes` a step, ratio_slicing, roof_ms an image, error, native), "roof" and
        "conditions".

    Raises:
        ValueError: an argument that cannot be used, or gradients that differ.
    """
    kind = dtype_of(dtype)
    check_batch(batch)
    widths = [config.check_width(width) for width in widths]
    net = random_network(config).to(kind)
    with using_threads(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the column `native` tells what the warning would
        roof = measure_roof(kind, threads)
        calls = sandwich_calls(net, widths, *random_inputs(config, batch, kind))
        gradients = {name: _gradients(net, call) for name, call in calls.items()}
        error = check_gradients(gradients["ours"], gradients["slicing"], kind)
        peaks = _peaks(net, calls)
        times = interleaved(calls, rounds=rounds, clock=clock_of(threads)[0], progress=progress)
        x = torch.empty(0, dtype=kind)
        native = all(runs_native(f"sliced_{op}", x, needs_grad=True) for op in OPS)
    macs = 3 * sum(unet_macs(config, width) for width in widths)
    row = {
        "widths": widths,
        "macs": macs,
        **time_columns(times, batch),
        **{f"{name}_peak_bytes": peak for name, peak in peaks.items()},
        "roof_ms": roof_ms(macs, roof),
        "error": error,
        "native": native,
    }
    about = conditions(batch=batch, dtype=dtype, threads=threads)
    return {
        "rows": [row],
        "roof": roof,
        "conditions": {"network": config.to_dict(), **about},
    }


def sandwich_calls(
    net: SlimmableUNet, widths: Sequence[float], x: Tensor, t: Tensor
) -> dict[str, Callable[[], None]]:
    """Return candidate -> one step that leaves the gradients of all widths in `p.grad`.

    Args:
        net: the network.
        widths: the sandwich.
        x: images [N, C, H, W].
        t: timesteps [N].
    """
    parameters = list(net.parameters())
    slicing = SlicingUNet(net)
    x_cl = x.contiguous(memory_format=torch.channels_last)
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)

    def step(predict: Callable[[float], Tensor]) -> None:
        # What an optimizer leaves: other weights, so that nothing kept of them is up to date, and
        # no gradients.
        increment_version(parameters)
        net.zero_grad(set_to_none=True)
        for width in widths:
            F.mse_loss(predict(width), target).backward()

    return {
        "slicing": lambda: step(lambda width: slicing(x, t, width)),
        "ours": lambda: step(lambda width: net(x_cl, t, width, accumulate_grad=True)),
    }


def _gradients(net: SlimmableUNet, call: Callable[[], None]) -> dict[str, Tensor]:
    call()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def _peaks(net: SlimmableUNet, calls: Mapping[str, Callable[[], None]]) -> dict[str, int]:
    """Peak bytes of each step with its gradients, begun without any."""

    def without_gradients_after(call: Callable[[], None]) -> None:
        call()
        net.zero_grad()

    net.zero_grad()
    return peak_bytes(
        {name: partial(without_gradients_after, call) for name, call in calls.items()}
    )


def check_gradients(
    got: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype
) -> float:
    """Return the largest |got - expected| / |expected| of any parameter, in Euclidean norms.

    The bias of attention's keys is measured against its weight: softmax ignores a shift of all
    scores, so that this bias has no gradient but rounding.

    Raises:
        ValueError: a gradient is missing or differs, so the times mean nothing.
    """
    if got.keys() != expected.keys():
        missing = ", ".join(sorted(got.keys() ^ expected.keys()))
        raise ValueError(f"training step: only one of the two has a gradient of {missing}")
    errors = {}
    for name, gradient in expected.items():
        reference = expected[name.replace("attention.k.bias", "attention.k.weight")]
        distance = (got[name].double() - gradient.double()).norm()
        errors[name] = float(distance / reference.double().norm())
    for name, error in errors.items():
        if not error <= TOLERANCE[dtype]:
            raise ValueError(
                f"training step: the gradient of {name} differs from slicing's by {error:.2g}; "
                f"need at most {TOLERANCE[dtype]:g} before it is timed"
            )
    return max(errors.values())
