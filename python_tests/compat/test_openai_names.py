"""U-Nets of guided-diffusion and its kin: the reference codes' outputs and gradients."""

from __future__ import annotations

import copy
import itertools
import json
import warnings

import pytest
import torch
from compat.openai_goldens import CASES, Golden, relative, shapes_of

from ddsm_ext.compat import (
    to_diffusers_state_dict,
    to_guided_diffusion_state_dict,
    to_latent_diffusion_state_dict,
)
from ddsm_ext.graph import parameter_count
from ddsm_ext.runtime.runner import StepRunner


@pytest.mark.parametrize("name", CASES)
def test_names_shapes_and_parameter_counts(name: str) -> None:
    golden = Golden(name)
    shapes = shapes_of(name, golden.config)
    expected = json.loads(str(golden.data["state_shapes"]))
    assert shapes == {key: tuple(shape) for key, shape in expected.items()}
    assert parameter_count(golden.net.config) == golden["params"].item()
    assert sum(p.numel() for p in golden.net.parameters()) == golden["params"].item()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", CASES)
def test_outputs_of_the_modules(name: str, dtype: torch.dtype, limit: float) -> None:
    golden = Golden(name, dtype)
    for width in CASES[name]:
        assert relative(golden(width).detach(), golden.at("out", width)) < limit


@pytest.mark.parametrize("name", CASES)
def test_outputs_of_compiled_steps(name: str) -> None:
    golden = Golden(name, torch.float32)
    runner = StepRunner(golden.net)
    assert runner.reason_against(torch.float32, golden.x.device) is None
    for width in CASES[name]:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")  # running as the modules would warn
            y = golden(width)
            assert torch.equal(runner(golden.x, golden.t, width, golden.y, golden.context), y)
        assert relative(y, golden.at("out", width)) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_steps_err_no_more_than_the_modules(name: str) -> None:
    golden = Golden(name, torch.bfloat16)
    assert StepRunner(golden.net).reason_against(torch.bfloat16, golden.x.device) is None
    exact, ratios = copy.deepcopy(golden.net).double(), []
    # These networks amplify rounding: of one image the better of two roundings is chance.
    for width, flips in itertools.product(CASES[name], ((), (2,), (3,), (2, 3), (0,), (0, 2))):
        x, rest = golden.x.flip(flips), (golden.t, width, golden.y)
        context = golden.context
        doubles = None if context is None else context.double()
        with torch.no_grad():
            expected = exact.run_modules(x.double(), *rest, context=doubles)
            modules = golden.net.run_modules(x, *rest, context=context)
            steps = golden.net(x, *rest, context=context)
        assert steps.dtype == torch.bfloat16
        errors = [(y.double() - expected).norm() for y in (steps, modules)]
        ratios.append(errors[0] / errors[1])
    assert torch.stack(ratios).log().mean().exp() < 1.1


@pytest.mark.parametrize("name", CASES)
def test_outputs_of_dense_exports(name: str) -> None:
    golden = Golden(name)
    for width in CASES[name]:
        with torch.no_grad():
            y = golden.net.export_subnet(width)(
                golden.x, golden.t, golden.y, context=golden.context
            )
        assert relative(y, golden.at("out", width)) < 1e-9


def reference_norms(golden: Golden) -> dict[str, float]:
    """2-norms of all gradients by the reference's names, whose parameters hold several of ours."""
    gradients = copy.deepcopy(golden.net).double()
    with torch.no_grad():
        for ours, theirs in zip(gradients.parameters(), golden.net.parameters(), strict=True):
            ours.copy_(theirs.grad)
    if golden.name.startswith("ldm"):
        state = to_latent_diffusion_state_dict(gradients)
        state = {name.removeprefix("model.diffusion_model."): g for name, g in state.items()}
    elif golden.name.startswith("diffusers"):
        state = to_diffusers_state_dict(gradients)
    else:
        order = golden.config["use_new_attention_order"]
        state = to_guided_diffusion_state_dict(gradients, use_new_attention_order=order)
    return {name: gradient.norm().item() for name, gradient in state.items()}


@pytest.mark.parametrize(
    ("dtype", "limit", "accumulate"),
    [(torch.float32, 1e-3, False), (torch.float64, 1e-9, False), (torch.float64, 1e-9, True)],
)
@pytest.mark.parametrize("name", CASES)
def test_gradient_norms(name: str, dtype: torch.dtype, limit: float, accumulate: bool) -> None:
    golden = Golden(name, dtype)
    names = golden.data["grad_norm_names"].tolist()
    golden.x.requires_grad_()
    for width in CASES[name]:
        golden.net.zero_grad()
        golden.x.grad = None
        y = golden(width, accumulate_grad=accumulate)
        weights = torch.cos(0.3 * torch.arange(y.numel(), dtype=torch.float64) + 1).view(y.shape)
        (y * weights.to(dtype)).mean().backward()
        ours = reference_norms(golden)
        expected = dict(zip(names, golden.at("grad_norms", width).tolist(), strict=True))
        assert ours.keys() == expected.keys()
        least = 2e-6 * max(expected.values())  # smaller ones are rounding's
        for parameter, norm in expected.items():
            assert abs(ours[parameter] - norm) <= limit * max(norm, least), parameter
        if width == 1.0:
            norm = golden["grad_x_norm"]
            assert abs(golden.x.grad.norm() - norm) <= limit * norm
