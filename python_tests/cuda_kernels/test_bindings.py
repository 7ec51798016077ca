"""The CUDA bindings on CPU tensors, with the emulated kernels: checks, views, autograd, dtypes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bench.scripts import ROOT, load  # makes gpu_suite importable
from cuda_kernels.bindings.library import build, run_with


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bindings"))


@pytest.fixture(scope="module")
def steps(library: Path) -> list[dict[str, Any]]:
    return json.loads(run_with(library, "launch_list.py"))["steps"]


def test_bindings(library):
    run_with(library, "run.py")


def kernels(step: dict[str, Any]) -> Counter[str]:
    return Counter(launch["kernel"] for call in step["calls"] for launch in call["launches"])


def test_launches_of_a_step(steps):
    """Of the CIFAR-10 network; 242 (batch 128) and 280 (batch 1) with a launch for every layer."""
    assert len(steps) == 9
    for step in steps:
        found = kernels(step)
        assert found.total() <= (130 if step["batch"] == 128 else 150), found


def test_a_step_runs_only_its_own_ops(steps):
    """No copy, no cast and no table of torch's lies between the fused ops."""
    for step in steps:
        assert {call["op"] for call in step["calls"]} <= {
            "ddsm_ext::sinusoidal_embedding",
            "ddsm_ext::sliced_attention",
            "ddsm_ext::sliced_conv2d_fused",
            "ddsm_ext::sliced_group_norm_apply",
            "ddsm_ext::sliced_linear_fused",
        }


def test_what_a_step_launches_once(steps):
    """The embedding, two layers of the time embedding, all projections, the head; 6 attentions."""
    for step in steps:
        found = kernels(step)
        assert found["sinusoidal_embedding"] == found["conv_head"] == 1
        assert found["linear_rows"] + found["linear_tile"] == 3
        assert found["attention"] == 6


def test_only_the_first_launch_of_a_step_waits_for_the_one_before_to_end(steps):
    for step in steps:
        launches = [launch for call in step["calls"] for launch in call["launches"]]
        own = [launch for launch in launches if launch["kernel"] != "attention"]
        assert launches[0]["kernel"] == "sinusoidal_embedding"
        assert [launch["overlaps"] for launch in own] == [False] + [True] * (len(own) - 1)


def test_the_model_of_the_step_is_of_these_launches(library):
    """docs/cuda-step-model.md is what benchmarks/step_model.py makes of the code as it is."""
    load("launch_costs", ROOT / "benchmarks" / "launch_costs.py")
    model = load("step_model", ROOT / "benchmarks" / "step_model.py")
    page = (ROOT / "docs" / "cuda-step-model.md").read_text(encoding="utf-8")
    assert model.document(model.listed_steps(library)) == page
