"""The sandwich training step: forward and backward at three widths into summed gradients."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import increment_version

from ddsm_ext.bench.candidates import KERNELS
from ddsm_ext.bench.conditions import CPU, REFERENCE_CIFAR10, Setting, check_batch, roof_ms
from ddsm_ext.bench.device import Device
from ddsm_ext.bench.steps import (
    SlicingNetwork,
    as_reference,
    channels_last,
    random_inputs,
    random_network,
    untimed_cudnn,
)
from ddsm_ext.bench.timing import interleaved, time_columns
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import macs as macs_of
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.ops._call import runs_native
from ddsm_ext.settings import Refusal

# The largest and the smallest width of every sandwich step, and one between them.
SANDWICH = (1.0, 0.25, 0.5)


def run_training_step(
    batch: int = 8,
    rounds: int = 9,
    *,
    setting: Setting = CPU,
    widths: Sequence[float] = SANDWICH,
    config: NetworkConfig = REFERENCE_CIFAR10,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time a sandwich step up to its gradients: slicing under autograd against ours.

    Mean squared error, dropout off, no optimizer; each step finds weights that changed since the
    last one. The gradients of all parameters are compared before anything is timed: ours may be 3
    times as far from those of float32 as slicing's.

    Args:
        batch: images.
        rounds: measured rounds.
        setting: device, threads and arithmetic.
        widths: the sandwich.
        config: the network, filled with random weights.
        progress: called with (rounds done, rounds in all); None for silence.

    Returns:
        JSON-ready: "rows" (one: widths, macs an image, `<candidate>_ms` and `_min_ms` an image,
        `_peak_bytes` a step, ratio_slicing, roof_ms an image, error, native), "roof", "conditions".

    Raises:
        ValueError: an argument that cannot be used, or gradients that differ.
    """
    check_batch(batch)
    widths = [config.check_width(width) for width in widths]
    net = random_network(config).to(setting.place, setting.kind)
    inputs = random_inputs(config, batch, setting.kind, device=setting.place)
    with setting.active(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the column `native` tells what the warning would
        roof = setting.measure_roof()
        nets = {"slicing": as_reference(net), "ours": net}
        calls = sandwich_calls(nets, widths, inputs)
        error = _compare_gradients(nets, calls, widths, inputs, setting)
        peaks = {name: _peak(nets[name], call, setting.device) for name, call in calls.items()}
        times = interleaved(calls, rounds=rounds, progress=progress, **setting.timing)
        native = all(runs_native(name, inputs["x"], needs_grad=True) for name in KERNELS)
    macs = 3 * sum(macs_of(config, width) for width in widths)
    row = {
        "widths": widths,
        "macs": macs,
        **time_columns(times, batch),
        **{f"{name}_peak_bytes": peak for name, peak in peaks.items()},
        "roof_ms": roof_ms(macs, roof),
        "error": error,
        "native": native,
    }
    about = {"network": config.to_dict(), **setting.conditions(batch)}
    return {"rows": [row], "roof": roof, "conditions": about}


def sandwich_calls(
    nets: Mapping[str, SlimmableNetwork], widths: Sequence[float], inputs: Mapping[str, Tensor]
) -> dict[str, Callable[[], None]]:
    """Return candidate -> one step that leaves the gradients of all widths in its net's `p.grad`.

    Args:
        nets: the network of "slicing" and that of "ours", which may be one.
        widths: the sandwich.
        inputs: of `random_inputs`.
    """
    slicing, ours = SlicingNetwork(nets["slicing"]), nets["ours"]
    x = inputs["x"]
    shape = (len(x), ours.graph.output.out.c_max, *x.shape[2:])
    stream = torch.Generator().manual_seed(2)
    target = torch.randn(shape, generator=stream, dtype=torch.float32, device="cpu").to(x)

    def step(name: str, predict: Callable[[float], Tensor]) -> None:
        # What an optimizer leaves: other weights, so that nothing kept of them is up to date, and
        # no gradients.
        increment_version(list(nets[name].parameters()))
        nets[name].zero_grad(set_to_none=True)
        for width in widths:
            F.mse_loss(predict(width), target).backward()

    def slicing_step() -> None:
        with untimed_cudnn():
            step("slicing", lambda width: slicing(**inputs, width=width))

    inputs_cl = {**channels_last(inputs), "accumulate_grad": True}
    return {
        "slicing": slicing_step,
        "ours": lambda: step("ours", lambda width: ours(**inputs_cl, width=width)),
    }


def _gradients(net: SlimmableNetwork, call: Callable[[], None]) -> dict[str, Tensor]:
    call()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def _compare_gradients(
    nets: Mapping[str, SlimmableNetwork],
    calls: Mapping[str, Callable[[], None]],
    widths: Sequence[float],
    inputs: Mapping[str, Tensor],
    setting: Setting,
) -> float:
    """`check_gradients` of both candidates and of slicing in float32, from the same weights."""
    got = {name: _gradients(nets[name], call) for name, call in calls.items()}
    exact_net = copy.deepcopy(nets["slicing"]).float()
    exact_inputs = {**inputs, "x": inputs["x"].float()}
    with Setting("float32", setting.threads, setting.device).active():
        exact_call = sandwich_calls(dict.fromkeys(nets, exact_net), widths, exact_inputs)
        exact = _gradients(exact_net, exact_call["slicing"])
    return check_gradients(got["ours"], got["slicing"], exact, setting.tolerance)


def _peak(net: SlimmableNetwork, call: Callable[[], None], device: Device) -> int:
    """Peak bytes of a step with its gradients, begun without any."""

    def without_gradients_after() -> None:
        call()
        net.zero_grad()

    net.zero_grad()
    return device.peak_bytes({"step": without_gradients_after})["step"]


def check_gradients(
    got: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    tolerance: float,
) -> float:
    """Return the largest error of any parameter's gradient: |got - exact| / |exact|.

    Each may be `tolerance`, or 3 times the error of `expected`. The norms are Euclidean. The bias
    of attention's keys is measured against its weight: softmax ignores a shift of all scores, so
    that this bias has no gradient but rounding.

    Args:
        got: parameter -> gradient.
        expected: the same by slicing, in the same arithmetic.
        exact: the same in float32.
        tolerance: what is allowed in any case.

    Raises:
        ValueError: a gradient is missing or differs, so the times mean nothing.
    """
    if got.keys() != exact.keys() or expected.keys() != exact.keys():
        missing = ", ".join(sorted((got.keys() ^ exact.keys()) | (expected.keys() ^ exact.keys())))
        raise Refusal(f"training step: only some have a gradient of {missing}")
    errors = {}
    for name, gradient in exact.items():
        norm = exact[name.replace("attention.k.bias", "attention.k.weight")].double().norm()
        error, slicing_error = (
            float((other[name].double() - gradient.double()).norm() / norm)
            for other in (got, expected)
        )
        errors[name] = error
        limit = max(tolerance, 3 * slicing_error)
        if not error <= limit:
            raise Refusal(
                f"training step: the gradient of {name} differs from slicing's by {error:.2g}; "
                f"need at most {limit:.2g} before it is timed"
            )
    return max(errors.values())
