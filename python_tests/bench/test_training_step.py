"""The sandwich step benchmark: equal summed gradients first, then times."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from bench.small_network import SMALL

from ddsm_ext.bench.steps import random_inputs, random_network
from ddsm_ext.bench.table import format_result
from ddsm_ext.bench.training_step import check_gradients, run_training_step, sandwich_calls
from ddsm_ext.graph.count import macs
from ddsm_ext.models.network import SlimmableNetwork


def both(net: SlimmableNetwork) -> dict[str, SlimmableNetwork]:
    return {"slicing": net, "ours": net}


def test_both_leave_the_summed_gradient_of_the_exported_networks() -> None:
    net = random_network(SMALL).double()
    inputs = random_inputs(SMALL, 2, torch.float64)
    target = torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(2)).double()
    expected = torch.zeros_like(net.tail.conv.weight)
    for width in (1.0, 0.5):
        dense = net.export_subnet(width)
        F.mse_loss(dense(**inputs), target).backward()
        gradient = dense.tail.conv.weight.grad
        expected[:, : gradient.shape[1]] += gradient
    for call in sandwich_calls(both(net), (1.0, 0.5), inputs).values():
        call()
        call()  # begins anew, adds nothing to the first
        torch.testing.assert_close(net.tail.conv.weight.grad, expected, rtol=1e-9, atol=1e-12)


def test_each_step_finds_changed_weights() -> None:
    net = random_network(SMALL)
    versions = [p._version for p in net.parameters()]
    inputs = random_inputs(SMALL, 1, torch.float32)
    for call in sandwich_calls(both(net), (0.25,), inputs).values():
        call()
        assert all(p._version > v for p, v in zip(net.parameters(), versions, strict=True))
        versions = [p._version for p in net.parameters()]


def test_cudnn_times_no_algorithms_for_sliced_weights_and_may_again_after_them(monkeypatch) -> None:
    """Of the reference code's hundreds of shapes that would take minutes, forward or backward."""
    timed = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    net = random_network(SMALL)
    inputs = random_inputs(SMALL, 2, torch.float32)
    for parameter in net.parameters():
        parameter.register_hook(lambda _: timed.append(torch.backends.cudnn.benchmark))
    calls = sandwich_calls(both(net), [1.0], inputs)
    calls["slicing"]()
    assert timed
    assert not any(timed)
    assert torch.backends.cudnn.benchmark
    timed.clear()
    calls["ours"]()
    assert all(timed)


def test_result_is_complete_and_json_ready() -> None:
    result = run_training_step(2, rounds=2, config=SMALL)
    (row,) = result["rows"]
    assert row["widths"] == [1.0, 0.25, 0.5]
    assert row["macs"] == 3 * sum(macs(SMALL, width) for width in (1.0, 0.25, 0.5))
    assert row["error"] < 1e-4
    assert row["ratio_slicing"] > 0
    gradient_bytes = 4 * sum(p.numel() for p in random_network(SMALL).parameters())
    assert row["slicing_peak_bytes"] > gradient_bytes
    assert row["ours_peak_bytes"] > gradient_bytes
    json.dumps(result, allow_nan=False)
    assert "1 0.25 0.5" in format_result("training", result)


def test_a_wrong_gradient_is_refused() -> None:
    good = {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(2)}
    assert check_gradients(good, good, good, 1e-4) == 0
    # one of six ones off by 0.06: 0.06 / sqrt(6)
    wrong = good | {"a.weight": torch.tensor([[1.06, 1], [1, 1], [1, 1]])}
    with pytest.raises(ValueError, match=r"a\.weight differs from slicing's by 0\.024"):
        check_gradients(wrong, good, good, 1e-4)
    with pytest.raises(ValueError, match=r"a\.bias differs"):
        check_gradients(good | {"a.bias": good["a.bias"] * torch.nan}, good, good, 1e-4)
    with pytest.raises(ValueError, match=r"only some have a gradient of a\.bias"):
        check_gradients({"a.weight": good["a.weight"]}, good, good, 1e-4)


def test_a_gradient_may_be_three_times_as_wrong_as_slicings_in_the_same_arithmetic() -> None:
    exact, slicing = {"a": torch.tensor([1.0, 0.0])}, {"a": torch.tensor([1.0, 0.02])}
    ours = {"a": torch.tensor([1.0, -0.05])}
    assert check_gradients(ours, slicing, exact, 1e-4) == pytest.approx(0.05)
    with pytest.raises(
        ValueError, match=r"of a differs from slicing's by 0\.07; need at most 0\.06"
    ):
        check_gradients({"a": torch.tensor([1.07, 0.0])}, slicing, exact, 1e-4)


def test_the_key_bias_is_measured_against_its_weight() -> None:
    weight, bias = torch.ones(4, 4), torch.tensor([1e-9, 0, 0, 0])
    expected = {"x.attention.k.weight": weight, "x.attention.k.bias": bias}
    got = expected | {"x.attention.k.bias": -bias}
    error = check_gradients(got, expected, expected, 1e-4)
    assert error == pytest.approx(2e-9 / 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": [0.3]}, "width 0.3"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_training_step(**{"config": SMALL, "rounds": 1, **arguments})
