"""Networks compute what they computed at commit 5285e7c (`make_frozen.py`), names included."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from models import frozen_cases as frozen
from torch import Tensor, nn

from ddsm_ext.graph import count
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.models.unet import UNetConfig
from ddsm_ext.runtime import StepRunner

# How the package is asked; the tests below say what it must answer.
Net = SlimmableNetwork


def make_config(values: dict[str, Any]) -> UNetConfig:
    return UNetConfig(**values)


def make_network(config: UNetConfig, generator: torch.Generator | None = None) -> Net:
    return SlimmableNetwork(config, generator=generator)


def eager(net: Net, x: Tensor, t: Tensor, width: float, **options: bool) -> Tensor:
    return net.run_modules(x, t, width, **options)


def compiled(net: Net, x: Tensor, t: Tensor, width: float) -> Tensor:
    return StepRunner(net)(x, t, width)


def dense(net: Net, width: float) -> nn.Module:
    return net.export_subnet(width)


def total_macs(config: UNetConfig, width: float, **options: bool) -> int:
    return count.macs(config, width, **options)


def layer_macs(config: UNetConfig, width: float, **options: bool) -> dict[str, int]:
    return count.layer_macs(config, width, **options)


def parameters(config: UNetConfig, width: float) -> int:
    return count.parameter_count(config, width)


# From here on nothing of the package is named.
with np.load(frozen.FILE) as file:
    FROZEN = {key: file[key] for key in file.files}
FACTS = json.loads(str(FROZEN["facts"]))

CASES = pytest.mark.parametrize("name", list(frozen.CASES))
WIDTHS = pytest.mark.parametrize(
    ("name", "width"),
    [(name, width) for name, case in frozen.CASES.items() for width in case["widths"]],
)
# Rounding is chance: one sum in another order errs up to this much more than another.
ERROR_RATIO = 3


def config_of(name: str) -> UNetConfig:
    return make_config(frozen.CASES[name]["config"])


def network(name: str, dtype: torch.dtype = torch.float64) -> Net:
    net = make_network(config_of(name)).to(dtype).eval()
    frozen.fill(net)
    return net


def output(name: str, width: float) -> np.ndarray:
    return FROZEN[f"y/{name}/{width:g}"]


def facts(name: str, width: float) -> dict[str, Any]:
    return FACTS[name][f"{width:g}"]


def float32_error(name: str) -> float:
    """The largest error of a float32 output then, at any width by any path: what rounding does."""
    paths, widths = ("eager", "compiled", "dense"), frozen.CASES[name]["widths"]
    return max(facts(name, width)[path] for path in paths for width in widths)


def shapes(state: dict[str, Tensor]) -> list[list[Any]]:
    return [[name, list(tensor.shape)] for name, tensor in state.items()]


@CASES
def test_state_dict_names_and_shapes_in_order(name: str) -> None:
    assert shapes(make_network(config_of(name)).state_dict()) == FACTS[name]["state"]


@CASES
def test_a_seed_gives_the_same_initial_weights(name: str) -> None:
    net = make_network(config_of(name), torch.Generator().manual_seed(3))
    norms = {n: float(p.data.double().norm()) for n, p in net.named_parameters()}
    assert norms == pytest.approx(FACTS[name]["initial"], rel=1e-5)


@WIDTHS
def test_float64_output(name: str, width: float) -> None:
    y = eager(network(name), *frozen.inputs(name, torch.float64), width)
    assert y.dtype == torch.float64
    assert frozen.error(y, output(name, width)) <= 1e-12


@WIDTHS
def test_float32_output(name: str, width: float) -> None:
    y = eager(network(name, torch.float32), *frozen.inputs(name, torch.float32), width)
    assert y.dtype == torch.float32
    assert frozen.error(y, output(name, width)) <= ERROR_RATIO * float32_error(name)


@WIDTHS
def test_compiled_output(name: str, width: float) -> None:
    net, inputs = network(name, torch.float32), frozen.inputs(name, torch.float32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # a step that runs as the module warns
        y = compiled(net, *inputs, width)
    assert y.dtype == torch.float32
    assert frozen.error(y, output(name, width)) <= ERROR_RATIO * float32_error(name)


@WIDTHS
def test_compiled_output_in_bfloat16(name: str, width: float) -> None:
    net, inputs = network(name, torch.bfloat16), frozen.inputs(name, torch.bfloat16)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        y = compiled(net, *inputs, width)
    assert y.dtype == torch.bfloat16
    # One draw of rounding a network; 0.053 is the largest of the recorded ones.
    assert frozen.error(y, output(name, width)) <= 0.1


@WIDTHS
def test_dense_export(name: str, width: float) -> None:
    module = dense(network(name), width)
    assert shapes(module.state_dict()) == facts(name, width)["dense state"]
    with torch.no_grad():
        y = module(*frozen.inputs(name, torch.float64))
    assert frozen.error(y, output(name, width)) <= 1e-12


@WIDTHS
@pytest.mark.parametrize("accumulate", [False, True], ids=["autograd", "accumulate_grad"])
def test_gradient_norms(name: str, width: float, accumulate: bool) -> None:
    net, (x, t) = network(name), frozen.inputs(name, torch.float64)
    x.requires_grad_()
    frozen.loss(eager(net, x, t, width, accumulate_grad=accumulate)).backward()
    norms = {n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in net.named_parameters()}
    wanted = facts(name, width)["grad_norms"]
    # Keys' biases change nothing: their gradients are rounding, of the size of the largest one's.
    rounding = 1e-14 * max(wanted.values())
    assert norms == pytest.approx(wanted, rel=1e-12, abs=rounding)
    assert x.grad is not None
    assert float(x.grad.norm()) == pytest.approx(facts(name, width)["grad_x_norm"], rel=1e-12)


@WIDTHS
def test_counts(name: str, width: float) -> None:
    config, wanted = config_of(name), facts(name, width)
    assert parameters(config, width) == wanted["parameters"]
    for key, macs in wanted["macs"].items():
        products, elementwise = (word == "True" for word in key.split(","))
        options = {"attention_products": products, "elementwise": elementwise}
        assert total_macs(config, width, **options) == macs
        assert layer_macs(config, width, **options) == wanted["layer macs"][key]
