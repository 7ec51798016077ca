"""The model of the CUDA step: bytes, products and times of launches, counted by hand."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from bench.scripts import ROOT, load  # makes gpu_suite importable
from gpu_suite.tiles import constant

costs = load("launch_costs", ROOT / "benchmarks" / "launch_costs.py")
model = load("step_model", ROOT / "benchmarks" / "step_model.py")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")
START_US = costs.START_CLOCKS / costs.CLOCKS_A_US


def tensor(*shape: int) -> dict[str, Any]:
    return {"dtype": "bfloat16", "shape": list(shape)}


def call(op: str, arguments: list[Any], kernel: str, *, overlaps: bool = True) -> dict[str, Any]:
    launches = [{"kernel": kernel, "grid": [1, 1], "threads": 128, "overlaps": overlaps}]
    return {"op": f"ddsm_ext::{op}", "arguments": arguments, "launches": launches}


def conv(x: Any, x2: Any, weights: list[Any], c_out: int, **more: Any) -> dict[str, Any]:
    """A call with the arguments in the schema's order."""
    arguments = [
        x, x2, weights, [tensor(c_out)] * len(weights), c_out, 0, more.get("stride", 1), 1,
        more.get("upsample", False), more.get("shift"), more.get("residual"),
        more.get("shortcut", []), 0, more.get("moments", False), None, True, False,
    ]  # fmt: skip
    return call("sliced_conv2d_fused", arguments, more.get("kernel", "conv_sm90"))


def choice(
    m: int, n: int, k_steps: int, tile: str, batches: int = 1, splits: int = 1, padding: int = 0
) -> str:
    return (
        f"ddsm_ext: sliced_conv2d bf16 m={m} n={n} k_steps={k_steps} x{batches}: {tile}, "
        f"{splits} splits, sm_90a path, {padding} of k are padding"
    )


HEAD = "ddsm_ext: sliced_conv2d m=2048 n=96 k=27: head kernel"


def cost_of(*arguments: Any, line: str = "") -> Any:
    (cost,) = costs.costs_of(list(arguments), iter([line]))
    return cost


def test_a_convolution_moves_everything_once() -> None:
    """Of two sources, with shift, residual and moments; the weight is allocated wider."""
    found = cost_of(
        conv(tensor(2, 32, 16, 16), tensor(2, 16, 16, 16), [tensor(64, 96, 3, 3)], 40,
             shift=tensor(2, 40), residual=tensor(2, 40, 16, 16), moments=True),
        line=choice(512, 40, 18, "128x64"),
    )  # fmt: skip
    pixels = 2 * 16 * 16
    numbers = pixels * (32 + 16)  # sources
    numbers += 9 * 48 * 40 + 40  # weight and bias, active channels only
    numbers += 2 * 40 + pixels * 40 + pixels * 40  # shift, residual, output
    moments = 2 * 4 * 40  # images, blocks of 64 pixels, channels; a mean and a sum of squares each
    assert found.nbytes == 2 * numbers + 8 * moments
    assert found.macs == pixels * 9 * 48 * 40
    assert found.kernel == "conv_sm90 128x64 (tile 5)"
    assert found.what == "3x3, 48 to 40 at 16x16"


def test_a_convolution_with_a_shortcut_multiplies_by_both_weights() -> None:
    found = cost_of(
        conv(tensor(1, 64, 8, 8), None, [tensor(64, 64, 3, 3)], 64,
             shortcut=[tensor(64, 48, 1, 1), tensor(64), tensor(1, 32, 8, 8), tensor(1, 16, 8, 8)]),
        line=choice(64, 64, 11, "64x64", splits=3),
    )  # fmt: skip
    assert found.macs == 64 * 64 * (9 * 64 + 48)
    assert found.nbytes == 2 * (64 * (64 + 48 + 64) + 64 * (9 * 64 + 48) + 2 * 64)
    assert found.what == "3x3, 64 to 64 at 8x8 and 1x1 of 48, 3 splits"


@pytest.mark.parametrize(("more", "size"), [({"upsample": True}, 16), ({"stride": 2}, 4)])
def test_products_are_counted_at_the_size_of_the_output(more, size) -> None:
    line = choice(64, 64, 9, "64x64", batches=4 if "upsample" in more else 1)
    found = cost_of(conv(tensor(1, 64, 8, 8), None, [tensor(64, 64, 3, 3)], 64, **more), line=line)
    assert found.macs == size * size * 9 * 64 * 64
    assert found.nbytes == 2 * (64 * 64 + 9 * 64 * 64 + 64 + size * size * 64)


def test_weights_side_by_side_have_all_their_outputs() -> None:
    weights = [tensor(32, 32, 1, 1)] * 3
    found = cost_of(conv(tensor(2, 32, 4, 4), None, weights, 32), line=choice(32, 96, 1, "64x32"))
    assert found.macs == 32 * 32 * 96
    assert found.nbytes == 2 * (32 * 32 + 32 * 96 + 96 + 32 * 96)


def test_clocks_are_those_of_the_tiles() -> None:
    """Three weights of 64 columns are three tiles of 128 a row, not two; 132 fill the GPU once."""

    def clocks(rows: int, **more: Any) -> float:
        return costs.product_clocks(128 * rows, 192, 9, tile=(128, 128), sm90a=True, **more)

    assert clocks(1, parts=3) == clocks(44, parts=3) < clocks(45, parts=3)
    assert clocks(66) == clocks(44, parts=3) < clocks(67)
    assert clocks(11, batches=6) == clocks(66)


def test_a_step_of_a_narrow_tile_takes_as_long_as_its_copies() -> None:
    """A step of 128x32 copies 160 rows of 128 bytes: 512 clocks at 40 bytes a clock."""

    def clocks(k_steps: int) -> float:
        return costs.product_clocks(128, 32, k_steps, tile=(128, 32), sm90a=True)

    assert clocks(1001) - clocks(1000) == pytest.approx(160 * 128 / constant("kCacheBytes"))


def test_padding_of_steps_counts_as_nothing() -> None:
    """Nine steps of half their channels each: between the clocks of four steps and of five."""

    def clocks(k_steps: int) -> float:
        return costs.product_clocks(128, 32, k_steps, tile=(128, 32), sm90a=True)

    x, weight = tensor(1, 32, 8, 16), tensor(32, 32, 3, 3)
    found = cost_of(conv(x, None, [weight], 32), line=choice(128, 32, 9, "128x32", padding=9 * 32))
    assert found.clocks == pytest.approx((clocks(4) + clocks(5)) / 2)


def test_norm_attention_and_linears() -> None:
    norm = cost_of(
        call(
            "sliced_group_norm_apply",
            [tensor(2, 32, 16, 16), tensor(2, 16, 16, 16), tensor(48), tensor(48), 8, 32, 1e-5,
             True, tensor(1), tensor(1), None, None, False, True],
            "group_norm_apply",
        )
    )  # fmt: skip
    numbers = 2 * 256 * 48
    assert norm.nbytes == 2 * (2 * numbers + 2 * 48) + 8 * 2 * 4 * 48
    before = costs.START_CLOCKS + costs.STATISTICS_CLOCKS
    assert norm.clocks == pytest.approx(before + numbers * 9.4 / (132 * 128))

    q = tensor(2, 1, 256, 64)
    attention = cost_of(call("sliced_attention", [q, q, q, None], "attention", overlaps=False))
    assert attention.macs == 2 * 256 * 256 * 64 * 2
    assert attention.nbytes == 2 * 4 * 2 * 256 * 64

    weights, biases = [tensor(64, 64)] * 2, [tensor(64)] * 2
    arguments = [tensor(4, 32), weights, biases, [16, 24], None, False, True, False]
    linear = cost_of(call("sliced_linear_fused", arguments, "linear_rows"))
    assert linear.macs == 4 * 32 * 40
    assert linear.nbytes == 2 * (4 * 32 + 40 * 33 + 4 * 40)


def test_halved_norms_and_resampling() -> None:
    """A quarter of the pixels is written; scale and shift are read once an image."""
    x, row = tensor(2, 32, 16, 16), tensor(2, 32)
    arguments = [x, None, tensor(32), tensor(32), 8, 32, 1e-5, True, tensor(1), None, row, row]
    halved = cost_of(
        call("sliced_group_norm_apply", [*arguments, True, True], "group_norm_apply_down")
    )
    numbers = 2 * 256 * 32
    assert halved.nbytes == 2 * (numbers + numbers // 4 + 2 * 32 + 2 * 64) + 8 * 2 * 4 * 32
    assert halved.what == "32 at 16x16, halved"
    tokens = tensor(2, 16, 16, 32)
    for given, rows in (
        ((None, None, row, row), 2 * 64),
        ((tensor(48), tensor(48), None, None), 2 * 32),
    ):
        arguments = [tokens, *given[:2], 1e-5, *given[2:], True]
        found = cost_of(call("sliced_layer_norm_apply", arguments, "layer_norm"))
        assert found.nbytes == 2 * (2 * numbers + rows)
        assert found.what == "32 of 256 tokens"
    for up, written in ((True, 4 * numbers), (False, numbers // 4)):
        found = cost_of(call("resample", [x, up, 1.0, True], f"resample_{'up' if up else 'down'}"))
        assert found.nbytes == 2 * (numbers + written)
        assert found.macs == 0


def test_time_is_the_longest_of_three() -> None:
    def us(nbytes: float, clocks: float, card: Any = costs.H200) -> float:
        return float(costs.Cost("", "", int(nbytes), 0, clocks, 0.0).us(card))

    assert us(0, 0) == costs.SHORTEST_US == 1.2
    assert us(43e6, 0) == pytest.approx(10 + START_US)  # 4.3 TB/s
    assert us(43e6, 0, costs.H100) == pytest.approx(43 / 2.9 + START_US)
    assert us(43e6, 1755 * 20) == pytest.approx(20)


def test_an_edge_is_short_where_the_kernel_before_lets_one_begin() -> None:
    q = tensor(1, 1, 64, 64)
    calls = [
        call("sinusoidal_embedding", [tensor(2), 32, False, None, q], "sinusoidal", overlaps=False),
        conv(tensor(2, 3, 32, 32), None, [tensor(96, 3, 3, 3)], 96, kernel="conv_head"),
        call("sliced_attention", [q, q, q, None], "attention", overlaps=False),
        conv(tensor(1, 64, 8, 8), None, [tensor(64, 64, 1, 1)], 64),
        conv(tensor(1, 64, 8, 8), None, [tensor(64, 64, 1, 1)], 64),
    ]
    lines = [HEAD, *[choice(64, 64, 1, "64x64")] * 2]
    found = costs.costs_of(calls, iter(lines))
    assert [cost.edge_us for cost in found] == [0.8, 0.0, 0.8, 0.8, 0.0]
    assert costs.step_us(found, costs.H200) == pytest.approx(
        2.4 + sum(cost.us(costs.H200) for cost in found)
    )


def test_a_choice_beside_another_launch_is_an_error() -> None:
    x, weight = tensor(2, 3, 32, 32), tensor(96, 3, 3, 3)
    with pytest.raises(ValueError, match="conv_sm90 stands beside the choice"):
        cost_of(conv(x, None, [weight], 96), line=HEAD)


def steps_of(us: float) -> dict[tuple[int, float], list[Any]]:
    """Steps of two launches that take so long together."""
    cost = costs.Cost("kernel", "layer", 2_000_000, 3_000_000_000, costs.CLOCKS_A_US * us / 2, 0.0)
    return {(b, w): [cost, cost] for b in model.BATCHES for w in model.WIDTHS}


def test_the_table_of_steps_stands_beside_what_was_measured() -> None:
    found = model.Measured({(128, 1.0): 4.065}, {}, {(128, 1.0): 1.31})
    rows = model.step_rows(steps_of(1234), found)
    assert len(rows) == 12
    assert rows[6] == ["B = 128, w = 1", 2, "1.23", "1.23", "4.07", "1.31x", "1.25x"]
    assert rows[-1] == ["B = 512, w = 0.25", 2, "1.23", "1.23", "", "", ""]


def test_what_was_measured_has_the_names_of_the_model() -> None:
    found = model.measured()
    assert set(found.step_ms) >= {(b, w) for b in (1, 16, 128) for w in model.WIDTHS}
    names = found.kernel_us[128, 1.0]
    assert {"conv_sm90 256x128 (tile 9)", "group_norm_apply", "attention (torch's)"} <= set(names)
    total_ms = sum(names.values()) / 1000
    assert total_ms == pytest.approx(found.step_ms[128, 1.0], rel=0.05)


def test_listed_choices_are_those_of_the_convolutions() -> None:
    x, weight, line = tensor(1, 64, 8, 8), tensor(64, 64, 1, 1), choice(64, 64, 1, "64x64")
    steps = [
        {"batch": batch, "width": 1.0, "calls": [conv(x, None, [weight], 64)]} for batch in (1, 2)
    ]
    assert set(model.Listed(steps, [line] * 2).costs()) == {(1, 1.0), (2, 1.0)}
    with pytest.raises(ValueError, match="more choices"):
        model.Listed(steps, [line] * 3).costs()
    with pytest.raises(ValueError, match="beside the choice 'none'"):
        model.Listed(steps, [line]).costs()


def test_the_table_of_kernels_adds_up() -> None:
    costs_of_step = [
        costs.Cost("a", "", 10_000_000, 5_000_000_000, 1755.0 * 30, 0.5),
        costs.Cost("b", "", 1_000_000, 0, 1755.0 * 60, 0.5),
        costs.Cost("a", "", 10_000_000, 5_000_000_000, 1755.0 * 9, 0.0),
    ]
    assert model.kernel_rows(costs_of_step, {"a": 41.0, "Memset": 2.0}) == [
        ["b", 1, "1.0", "0.00", "60.0", "60.0", ""],
        ["a", 2, "20.0", "10.00", "39.0", "39.0", "41.0"],
        ["Memset", "", "", "", "", "", "2.0"],
        ["edges between them", 3, "", "", "1.0", "1.0", ""],
        ["all", 3, "21.0", "10.00", "100.0", "100.0", "43.0"],
    ]
    assert model.costliest(costs_of_step, 1).split() == ["60.0", "us", "1", "x", "60.00", "b:"]
