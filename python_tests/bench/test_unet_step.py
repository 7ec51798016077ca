"""The U-Net step benchmark: equal outputs first, the published savings from published figures."""

from __future__ import annotations

import json

import pytest
import torch
import torch._dynamo.config
import torch._inductor.config
from bench.small_network import ADM, SMALL

from ddsm_ext.bench.conditions import REFERENCE_CIFAR10, config_at
from ddsm_ext.bench.steps import (
    SlicingNetwork,
    random_inputs,
    random_network,
    sampling_inputs,
)
from ddsm_ext.bench.table import format_result, format_table
from ddsm_ext.bench.unet_step import PUBLISHED_CIFAR10_STEPS, run_unet_step, share_saved
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import macs
from ddsm_ext.models import UNetConfig


def test_published_strategy_saves_the_published_share() -> None:
    """The paper: 12.14 to 6.20 GFLOPs a step, 0.93 to 0.59 s an image; realised saving 0.75."""
    assert sum(PUBLISHED_CIFAR10_STEPS.values()) == 1000
    published = {1.0: 6070.0, 0.75: 3420.0, 0.5: 1520.0, 0.25: 382.5}
    assert share_saved(PUBLISHED_CIFAR10_STEPS, published) == pytest.approx(
        1 - 6.20 / 12.14, abs=0.001
    )
    ours = {
        w: macs(REFERENCE_CIFAR10, w, attention_products=False, elementwise=True)
        for w in PUBLISHED_CIFAR10_STEPS
    }
    assert share_saved(PUBLISHED_CIFAR10_STEPS, ours) == pytest.approx(1 - 6.20 / 12.14, abs=0.001)


def test_share_saved_in_closed_form() -> None:
    assert share_saved({1.0: 1, 0.5: 3}, {1.0: 4.0, 0.5: 1.0}) == pytest.approx(1 - 7 / 16)
    assert share_saved({1.0: 5}, {1.0: 2.0}) == 0.0


def test_odd_width_fills_no_block_and_needs_the_twin() -> None:
    twin = config_at(REFERENCE_CIFAR10, 0.46875)
    assert [twin.slicing.active(c_max, 0.46875) for c_max in (128, 256)] == [60, 120]
    assert twin.norm == "channels_per_group"
    assert config_at(REFERENCE_CIFAR10, 0.5) == REFERENCE_CIFAR10


SOURCE = UNetConfig(image_size=8, ch=32, ch_mult=(1, 2), groups=8, head_channels=8)


@pytest.mark.parametrize("width", [1.0, 0.5, 0.4375, 0.25])
@pytest.mark.parametrize("config", [SMALL, SOURCE, ADM], ids=["reference", "source", "adm"])
def test_slicing_baseline_equals_the_exported_dense_network(
    config: NetworkConfig, width: float
) -> None:
    net = random_network(config_at(config, width)).double()
    inputs = random_inputs(config, 3, torch.float64)
    with torch.no_grad():
        got = SlicingNetwork(net)(**inputs, width=width)
        expected = net.export_subnet(width)(**inputs)
    assert float((got - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    assert float(expected.std()) > 0.05  # a silent output would hide a wrong branch


def test_a_sampling_step_has_one_timestep_for_all_images() -> None:
    inputs = sampling_inputs(SMALL, 3, torch.float32)
    assert torch.equal(inputs["x"], random_inputs(SMALL, 3, torch.float32)["x"])
    assert inputs["t"].shape == (3,)
    assert inputs["t"].unique().numel() == 1


def test_a_family_that_the_reference_has_not_is_timed_too() -> None:
    names = ("slicing", "dense_cl", "ours", "ours_module")
    (row,) = run_unet_step([0.5], 2, rounds=1, candidates=names, config=ADM)["rows"]
    assert row["error"] < 1e-4
    assert row["macs"] == macs(ADM, 0.5)


def test_result_is_complete_and_json_ready() -> None:
    threads = torch.get_num_threads()
    names = ("slicing", "dense", "dense_cl", "ours", "ours_module")
    widths = (1.0, 0.75, 0.5, 0.4375, 0.25)
    result = run_unet_step(widths, 2, rounds=2, candidates=names, config=SMALL)
    assert torch.get_num_threads() == threads
    assert [row["width"] for row in result["rows"]] == list(widths)
    assert [row["norm"] for row in result["rows"]].index("channels_per_group") == 3
    for row in result["rows"]:
        assert row["macs"] == macs(config_at(SMALL, row["width"]), row["width"])
        assert row["error"] < 1e-4
        assert row["roof_ms"] == pytest.approx(1e3 * row["macs"] / result["roof"]["macs_per_s"])
        for name in names:
            assert 0 < row[f"{name}_min_ms"] <= row[f"{name}_ms"]
            assert row[f"{name}_setup_s"] >= 0
            # the noise and the time embedding alone are more than a kilobyte
            assert row[f"{name}_peak_bytes"] > 1000
            assert name == "ours" or row[f"ratio_{name}"] > 0
    strategy = result["strategy"]
    assert set(strategy["realised_saving"]) == set(names)
    for name, realised in strategy["realised_saving"].items():
        times = {row["width"]: row[f"{name}_ms"] for row in result["rows"]}
        assert realised == pytest.approx(
            share_saved(PUBLISHED_CIFAR10_STEPS, times) / strategy["macs_saved"]
        )
    assert UNetConfig.from_dict(json.loads(json.dumps(result))["conditions"]["network"]) == SMALL
    text = format_result("inference", result)
    assert "batch 2, float32, 1 threads" in text
    assert text.count("realised saving") == 5


def test_without_all_four_widths_there_is_no_strategy() -> None:
    result = run_unet_step([0.5], 1, rounds=1, config=SMALL)
    assert result["strategy"] is None
    assert "realised" not in format_result("inference", result)


@pytest.mark.slow
def test_compiled_candidate_agrees_at_more_widths_than_the_recompile_limit() -> None:
    tiny = UNetConfig(
        image_size=8, ch=16, ch_mult=(1,), attn=(), num_res_blocks=1, groups=16,
        concat_slicing="prefix", time_table_rows=1000,
    )  # fmt: skip
    names = ("slicing", "compiled", "ours")
    with torch._dynamo.config.patch(recompile_limit=1):
        rows = run_unet_step((1.0, 0.5), 1, rounds=1, candidates=names, config=tiny)["rows"]
    assert [row["width"] for row in rows] == [1.0, 0.5]
    assert all(row["compiled_setup_s"] > row["slicing_setup_s"] for row in rows)
    assert torch._inductor.config.freezing is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": []}, "empty"),
        ({"widths": [1.3]}, "width is 1.3"),
        ({"candidates": ["slicing", "eager", "ours"]}, "'eager'"),
        ({"candidates": ["dense", "ours"]}, "need slicing and ours"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_unet_step(**{"config": SMALL, "rounds": 1, **arguments})


def test_tables_of_no_rows_and_missing_values() -> None:
    assert format_table([]) == "(no rows)"
    text = format_table([{"op": "linear", "width": 0.5, "dense_cl_ms": None, "ours_ms": 123.4}])
    assert text.splitlines()[-1].split() == ["linear", "0.5", "-", "123"]
