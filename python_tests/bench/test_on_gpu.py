"""What the benchmarks do on a GPU, as far as a CPU can show it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from bench.fake_gpu import FakeGpu, on_fake_gpu
from bench.scripts import ROOT, load
from bench.small_network import SMALL

from ddsm_ext.bench.conditions import Setting, roof_ms
from ddsm_ext.bench.device import CALLS_A_GRAPH, Cpu, Gpu
from ddsm_ext.bench.ops import run_ops
from ddsm_ext.bench.steps import as_reference, random_network
from ddsm_ext.bench.table import format_result
from ddsm_ext.bench.timing import Key, Timing
from ddsm_ext.bench.training_step import run_training_step
from ddsm_ext.bench.unet_step import run_unet_step
from ddsm_ext.graph.shapes import ConvShape, NormShape, least_bytes
from ddsm_ext.runtime.backend import Network, StepError, StepKey
from ddsm_ext.runtime.cpu import PlanSteps
from ddsm_ext.runtime.runner import StepRunner

BF16 = on_fake_gpu("bfloat16")


def switches() -> tuple[object, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.fp32_precision, cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize("dtype", ["tf32", "float32", "bfloat16"])
def test_tf32_is_allowed_where_it_is_asked_for_and_set_back(dtype: str) -> None:
    before = switches()
    with on_fake_gpu(dtype).active():
        allowed = dtype == "tf32"
        assert switches() == ("tf32" if allowed else "ieee", allowed, allowed, True)
        assert torch.backends.cudnn.conv.fp32_precision == switches()[0]
        with on_fake_gpu("float32").active():
            assert switches() == ("ieee", False, False, True)
        assert switches()[1] == allowed
    assert switches() == before


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="'tf32' on the CPU"):
        Setting("tf32")
    with pytest.raises(ValueError, match="dtype is 'half'; need one of float32"):
        Setting("half")
    for threads in (0, -1, True):
        with pytest.raises(ValueError, match=f"threads is {threads}; need an int >= 1"):
            Setting(threads=threads)
    with pytest.raises(ValueError, match="device is 'cuda:1'; need cpu or cuda"):
        Setting(device="cuda:1")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch finds no GPU"):
            Setting(device="cuda")


@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
def test_steps(dtype: str) -> None:
    names = ("slicing", "dense_cl", "ours", "ours_module")
    result = run_unet_step(
        (1.0, 0.75, 0.5, 0.25), 2, 1, setting=on_fake_gpu(dtype), candidates=names, config=SMALL
    )
    about = result["conditions"]
    assert about["gpu"] == "NVIDIA Fake"
    assert (about["driver"], about["capability"], about["dtype"]) == ("580.1", "9.0", dtype)
    assert result["roof"]["bytes_per_s"] > 0
    assert result["held_bytes"] == dict.fromkeys(names, 0)
    assert set(result["strategy"]["realised_saving"]) == set(names)
    json.dumps(result, allow_nan=False)
    text = format_result("inference", result)
    assert "NVIDIA Fake (wall time between synchronisations), driver 580.1" in text
    assert "held between steps for all widths: slicing 0 MB" in text


class Unready(PlanSteps):
    """Steps that refuse the network, or each single one."""

    def __init__(self, net: Network, against: str | None) -> None:
        super().__init__(net)
        self.against = against

    def reason_against(self, net: Network) -> str | None:
        return self.against

    def prepare(self, net: Network, key: StepKey) -> None:
        raise StepError("capturing it failed")


@pytest.mark.parametrize("against", ["plans run elsewhere", None])
def test_a_module_that_runs_as_ours_is_told(against: str | None) -> None:
    device = FakeGpu(runner=lambda net: StepRunner(net, lambda net, _: Unready(net, against)))
    result = run_unet_step([0.5], 1, 1, setting=on_fake_gpu("bfloat16", device), config=SMALL)
    reason = against or "ddsm_ext: steps run uncompiled: capturing it failed"
    assert result["uncompiled"] == reason
    assert f"ours ran as the module: {reason}" in format_result("inference", result)


def test_slicing_has_contiguous_weights_and_ours_keeps_its_own() -> None:
    net = random_network(SMALL)
    assert as_reference(net) is net
    net = net.to(memory_format=torch.channels_last)
    copy = as_reference(net)
    assert all(p.is_contiguous() for p in copy.parameters())
    assert not net.head.weight.is_contiguous()
    assert torch.equal(copy.head.weight, net.head.weight)
    assert copy.head.weight.requires_grad


def test_what_there_is_no_time_to_compile_is_left_out_by_name() -> None:
    names = ("slicing", "compiled", "ours")
    result = run_unet_step(
        [1.0, 0.5], 1, 1, setting=BF16, candidates=names, compile_limit_s=1.0, config=SMALL
    )
    assert result["left_out"] == [
        f"compiled at width {width}: no time left to compile" for width in ("1", "0.5")
    ]
    assert all("compiled_ms" not in row for row in result["rows"])
    assert "left out: compiled at width 1" in format_result("inference", result)


def test_a_candidate_that_does_not_compile_fails_by_name_and_the_rest_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError(f"no compiler, mode {options['mode']}")

    monkeypatch.setattr(torch, "compile", refuse)  # as a torch whose compiler is not installed
    names = ("slicing", "compiled", "ours")
    result = run_unet_step([0.5], 1, 1, setting=BF16, candidates=names, config=SMALL)
    assert result["failed"] == ["compiled at width 0.5: no compiler, mode max-autotune"]
    assert result["rows"][0]["ratio_slicing"] > 0


def test_training() -> None:
    result = run_training_step(2, 1, setting=BF16, config=SMALL)
    assert result["rows"][0]["ratio_slicing"] > 0
    assert result["conditions"]["cudnn_benchmark"] is True


def test_layers_have_rates_and_a_roof_of_bytes() -> None:
    result = run_ops([0.5], 2, 1, setting=BF16, costliest=1, config=SMALL)
    for row in result["rows"]:
        seconds = row["ours_ms"] / 1000
        assert row["ours_tflop_per_s"] == pytest.approx(2 * 2 * row["macs"] / seconds / 1e12)
        assert row["ours_gb_per_s"] == pytest.approx(row["moved_bytes"] / seconds / 1e9)
        by_bytes = 1000 * row["moved_bytes"] / result["roof"]["bytes_per_s"]
        by_macs = 1000 * 2 * row["macs"] / result["roof"]["macs_per_s"]
        assert row["roof_ms"] == pytest.approx(max(by_bytes, by_macs))
    assert "ours TFLOP/s" in format_result("layers", result)


def test_layers_beyond_the_limit_are_left_out_and_have_no_total() -> None:
    result = run_ops([0.5], 1, rounds=1, ops=["linear"], limit_s=-1.0, config=SMALL)
    assert result["rows"] == []
    assert len(result["left_out"]) >= 3
    assert result["left_out"][0].startswith("linear at width 0.5, ")


class OneKernelFails(Cpu):
    """Times all kernels but those of the first shape."""

    shapes = 0

    def time_kernels(
        self, calls: Mapping[Key, Callable[[], object]], **options: Any
    ) -> dict[Key, Timing]:
        self.shapes += 1
        if self.shapes == 1:
            raise RuntimeError("no such kernel")
        return super().time_kernels(calls, **options)


def test_a_layer_that_fails_is_named_and_the_others_are_timed() -> None:
    setting = Setting(device=OneKernelFails())
    ops = ["linear", "group_norm"]
    result = run_ops([0.5], 1, rounds=1, setting=setting, ops=ops, config=SMALL)
    assert result["failed"] == ["linear at width 0.5, 128->64: no such kernel"]
    totals = [row["op"] for row in result["rows"] if row["shape"] == "step total"]
    assert totals == ["group_norm"]


def test_least_bytes_by_hand() -> None:
    # 2 images: 12 x 16x16 in, 6 x 8x8 out, 6 x (12 x 9 + 1) parameters, 2 bytes each
    conv = ConvShape(8, 4, 6, 24, 16, 3, 2, False, 8)
    assert least_bytes(conv, 2, 2) == 2 * (2 * (12 * 256 + 6 * 64) + 6 * 109)
    assert least_bytes(NormShape(8, 4, 16, 4, 4, True), 1, 4) == 4 * (2 * 12 * 16 + 24)


def test_the_roof_is_the_longer_of_products_and_bytes() -> None:
    roof = {"macs_per_s": 1e12, "bytes_per_s": 1e9}
    assert roof_ms(1e9, roof, 1e5) == pytest.approx(1.0)
    assert roof_ms(1e9, roof, 1e7) == pytest.approx(10.0)
    assert roof_ms(1e9, {"macs_per_s": 1e12}, 1e7) == pytest.approx(1.0)


def test_torch_copies_a_sliced_filter_on_the_cpu() -> None:
    """ATen's convolution makes its filter contiguous, which takes the filter's bytes."""
    script = load("bench_strided_filter", ROOT / "benchmarks" / "bench_strided_filter.py")
    result = script.run_strided_filter(Setting("float32"), batch=1, rounds=1)
    for row in result["rows"]:
        assert row["copied"]
        assert row["extra_bytes"] == row["filter_bytes"]
        assert row["error"] < 1e-6
    assert "filter copied" in script.format_strided_filter(result)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_a_captured_call_runs_as_often_as_the_times_are_divided_by() -> None:
    x = torch.zeros(4, device="cuda")
    replay = Gpu().captured(lambda: x.add_(1))
    x.zero_()
    replay()
    assert x.tolist() == [CALLS_A_GRAPH] * 4
