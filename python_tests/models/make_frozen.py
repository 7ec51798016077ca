"""Write `frozen.npz`: what the networks computed at commit 5285e7c.

It runs on that commit, before the networks were redesigned, with the package of that commit:

    git worktree add ../before 5285e7c
    pip install ../before
    PYTHONPATH=python_tests python python_tests/models/make_frozen.py

Keys: `y/<case>/<width>` float64 outputs of the eager network; `facts` everything else as JSON:
case -> "state" (name and shape in order), "initial" (norms of the weights made from seed 3) and
width -> errors of "eager", "compiled", "compiled bfloat16" and "dense" outputs relative to the
float64 output, "dense state", "grad_norms", "grad_x_norm", "macs", "layer macs", "parameters".
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import torch
from ddsm_ext.models.macs import parameter_count, unet_layer_macs, unet_macs
from models import frozen_cases as frozen
from torch import Tensor

from ddsm_ext.models.unet import SlimmableUNet, UNetConfig

# (attention_products, elementwise), the options of the counts.
OPTIONS = ((True, False), (True, True), (False, False), (False, True))


def build(name: str, dtype: torch.dtype) -> SlimmableUNet:
    config = UNetConfig(**frozen.CASES[name]["config"])
    net = SlimmableUNet(config).to(dtype).eval()
    frozen.fill(net)
    return net


def shapes(state: dict[str, Tensor]) -> list[tuple[str, list[int]]]:
    return [(name, list(tensor.shape)) for name, tensor in state.items()]


def grad_norms(name: str, width: float, accumulate: bool) -> tuple[dict[str, float], float]:
    net = build(name, torch.float64)
    x, t = frozen.inputs(name, torch.float64)
    x.requires_grad_()
    frozen.loss(net(x, t, width, accumulate_grad=accumulate)).backward()
    assert x.grad is not None
    norms = {n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in net.named_parameters()}
    return norms, float(x.grad.norm())


def counts(config: UNetConfig, width: float) -> dict[str, Any]:
    macs, layers = {}, {}
    for products, elementwise in OPTIONS:
        chosen = {"attention_products": products, "elementwise": elementwise}
        key = f"{products},{elementwise}"
        macs[key] = unet_macs(config, width, **chosen)
        layers[key] = {row.name: row.macs for row in unet_layer_macs(config, width, **chosen)}
    return {
        "macs": macs,
        "layer macs": layers,
        "parameters": parameter_count(config, width),
    }


def at_width(name: str, width: float) -> tuple[np.ndarray, dict[str, Any]]:
    net = build(name, torch.float64)
    with torch.no_grad():
        y = net(*frozen.inputs(name, torch.float64), width).numpy()
    single, half = build(name, torch.float32), build(name, torch.bfloat16)
    dense = single.export_subnet(width)
    x, t = frozen.inputs(name, torch.float32)
    norms, grad_x_norm = grad_norms(name, width, accumulate=False)
    accumulated, _ = grad_norms(name, width, accumulate=True)
    assert np.allclose([*norms.values()], [*accumulated.values()], rtol=1e-13, atol=1e-15)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # a step that ran as the module would warn
        facts = {
            "eager": frozen.error(single(x, t, width), y),
            "compiled": frozen.error(single.step_runner()(x, t, width), y),
            "compiled bfloat16": frozen.error(half.step_runner()(x.bfloat16(), t, width), y),
            "dense": frozen.error(dense(x, t), y),
        }
    facts |= {
        "dense state": shapes(dense.state_dict()),
        "grad_norms": norms,
        "grad_x_norm": grad_x_norm,
        **counts(net.config, width),
    }
    return y, facts


def check_rounding(name: str) -> None:
    """No weight lies where the sine of another library would round to another number."""
    for k, (parameter, p) in enumerate(sorted(build(name, torch.float64).named_parameters())):
        v = frozen.wave(k, p.numel())
        shape = tuple(p.shape)
        low, high = (frozen.scaled(parameter, shape, v + e) for e in (-1e-15, 1e-15))
        difference = low.astype(np.float32).astype(float) - high.astype(np.float32)
        assert np.abs(difference).max() < 1e-13, (name, parameter)


def main() -> None:
    outputs, facts = {}, {}
    for name, case in frozen.CASES.items():
        check_rounding(name)
        net = SlimmableUNet(
            UNetConfig(**case["config"]), generator=torch.Generator().manual_seed(3)
        )
        facts[name] = {
            "state": shapes(net.state_dict()),
            "initial": {n: float(p.data.double().norm()) for n, p in net.named_parameters()},
        }
        for width in case["widths"]:
            key = f"{width:g}"
            outputs[f"y/{name}/{key}"], facts[name][key] = at_width(name, width)
    text = np.array(json.dumps(facts))
    np.savez_compressed(frozen.FILE, facts=text, **outputs)


if __name__ == "__main__":
    main()
