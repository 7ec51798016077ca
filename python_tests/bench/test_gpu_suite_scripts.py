"""The GPU suite's own scripts, tried on the CPU with a small network, and with planted faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from bench.fake_gpu import on_fake_gpu
from bench.scripts import ROOT  # makes gpu_suite importable
from bench.small_network import SMALL
from torch import Tensor
from torch.overrides import TorchFunctionMode

with mock.patch.dict(os.environ, DDSM_TEST_DEVICE="cpu"):
    from gpu_suite import (
        atoms,
        compare,
        counters,
        graph_times,
        kernel_table,
        roofs,
        sweep,
        warm,
        whole_step,
        work,
    )

from gpu_suite.tiles import parsed, printed_choices, tiles

from ddsm_ext.bench.conditions import REFERENCE_CIFAR10
from ddsm_ext.bench.steps import Steps, prepare_steps
from ddsm_ext.bench.unet_step import run_unet_step


def run(script: Any, *words: object, **given: object) -> int | None:
    code: int | None = script.main([str(word) for word in words], **given)
    return code


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def test_roofs(tmp_path, capsys) -> None:
    run(roofs, "--json", tmp_path / "roofs.json")
    assert last_line(capsys)["tflop_per_s"] > 0
    assert json.loads((tmp_path / "roofs.json").read_text())["conditions"]["device"] == "cpu"


def test_whole_steps_are_right_and_a_wrong_one_is_found(tmp_path, capsys) -> None:
    assert run(whole_step, "--widths", 0.5, 0.25, "--json", tmp_path / "step.json") == 0
    figures = last_line(capsys)
    assert 0 < figures["largest_error"] < whole_step.TOLERANCE
    assert figures["faults"] == []
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [(row["network"], row["width"]) for row in rows] == [
        (network, width) for network in work.NETWORKS for width in (0.5, 0.25)
    ]
    assert all(row["eager_repeats"] and row["replays_repeat"] for row in rows)

    def wrong(*what: Any) -> Callable[[], Tensor]:
        step = work.step_of(*what)
        return lambda: step() * 1.2

    assert run(whole_step, "--widths", 0.25, step_of=wrong) == 1
    faults = last_line(capsys)["faults"]
    for network, fault in zip(work.NETWORKS, faults, strict=True):
        assert fault.startswith(f"{network}, width 0.25, batch 2: eager differs by")


def test_kernels_are_counted(tmp_path, capsys) -> None:
    a = torch.randn(64, 64)
    rows, in_order = kernel_table.kernels_of(lambda: (a @ a, a @ a, a + a), steps=4)
    by_name = {row["kernel"]: row for row in rows}
    assert by_name["aten::mm"]["calls"] == 2
    assert by_name["aten::add"]["calls"] == 1
    assert rows == sorted(rows, key=lambda row: -row["us"])
    assert [name for name, _ in in_order if name in ("aten::mm", "aten::add")] == [
        "aten::mm", "aten::mm", "aten::add"
    ]  # fmt: skip
    run(kernel_table, "--json", tmp_path / "profile.json")
    tables = json.loads((tmp_path / "profile.json").read_text())["tables"]
    assert [table["width"] for table in tables] == [1.0, 0.5, 0.25]
    assert list(last_line(capsys)["us and launches"]) == ["2/1", "2/0.5", "2/0.25"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void ddsm::(anonymous namespace)::apply_kernel<bf16, true>(ddsm::Params)",
         "apply_kernel<bf16, true>"),
        ("void at::native::copy(int, float)", "at::native::copy"),
        ("void ddsm::conv_kernel<ddsm::BlockTile<0, BFloat16, (ddsm::Form)1>>(ddsm::Params)",
         "conv_kernel<BlockTile<0, BFloat16, 1>>"),
        ("Memcpy DtoD", "Memcpy DtoD"),
    ],
)  # fmt: skip
def test_kernels_have_short_names(name: str, short: str) -> None:
    assert kernel_table.short_name(name) == short


def test_graphs_are_timed_at_every_batch_and_width(tmp_path, capsys) -> None:
    run(graph_times, "--json", tmp_path / "graphs.json")
    content, short = json.loads((tmp_path / "graphs.json").read_text()), last_line(capsys)
    for name, batches in (("ms", {"2", "1"}), ("adm_ms", {"2"}), ("ddpmpp_ms", {"2"}),
                          ("ldm_ms", {"2"})):  # fmt: skip
        times = content[f"{name}_a_step"]
        assert set(times) == set(short[name]) == batches
        assert all(times[b][w]["ms"] > 0 for b in times for w in ("1", "0.5", "0.25"))


def test_the_sweep_takes_the_costliest_shapes_and_times_what_is_accepted(tmp_path, capsys) -> None:
    run(sweep, "--json", tmp_path / "sweep.json", "--seconds", 30)
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert len(content["rows"]) == last_line(capsys)["timings"] > 0
    assert all(row["algo"] == 0 and row["us"] > 0 for row in content["rows"])


def test_choices_fill_a_gpu_and_no_more() -> None:
    shape = sweep.shapes_of(1.0, REFERENCE_CIFAR10)[0]
    assert shape.macs >= 128 * 128 * 9 * 1024
    narrow = replace(shape, c_out=32)
    for tile in tiles():
        large, small = (sweep.splits_of(shape, batch, tile, 132) for batch in (128, 1))
        assert large in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 4])
        assert len(small) > 1
        assert bool(sweep.splits_of(narrow, 1, tile, 132)) == (tile.n == 32 or tile.n < 64)


COMPARED = ("--batch", 2, "--widths", 1, 0.5, "--rounds", 1)


def test_widths_are_compared_one_after_the_other(tmp_path, capsys) -> None:
    assert run(compare, *COMPARED, "--seconds", 60, "--json", tmp_path) == 0
    figures = last_line(capsys)
    assert list(figures["widths"]) == ["1", "0.5"]
    assert figures["widths"]["1"]["ratio"].keys() == {"slicing", "dense_cl", "ours_module"}
    (path,) = tmp_path.glob("*.json")
    (result,) = json.loads(path.read_text())["results"]
    assert [row["width"] for row in result["rows"]] == [1.0, 0.5]
    assert result["conditions"]["note"] == compare.NOTE
    assert result["left_out"] == [
        "compiled at width 1: not in the cache", "compiled at width 0.5: not in the cache"
    ]  # fmt: skip
    # Time for one width alone.
    assert run(compare, *COMPARED, "--seconds", 1, "--json", tmp_path / "short") == 0
    assert list(last_line(capsys)["widths"]) == ["1"]


class WrongDense(TorchFunctionMode):
    """Spoils the last convolution of dense weights at width 1, which alone reads 64 channels."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        y = func(*args, **(kwargs or {}))
        if func is not torch.conv2d or args[1].shape[:2] != (3, 64):
            return y
        return y + float(args[1].is_contiguous(memory_format=torch.channels_last))


def test_a_candidate_that_differs_is_marked_and_its_row_kept(tmp_path, capsys) -> None:
    with WrongDense():
        assert run(compare, *COMPARED, "--seconds", 60, "--json", tmp_path) == 1
    (sentence,) = last_line(capsys)["failed"]
    assert sentence.startswith("U-Net at width 1: dense_cl differs from slicing by")
    (path,) = tmp_path.glob("*.json")
    (result,) = json.loads(path.read_text())["results"]
    marks = [row.get("differs") for row in result["rows"]]
    assert marks == [sentence, None]
    with WrongDense(), pytest.raises(ValueError, match="dense_cl differs from slicing"):
        run_unet_step([1.0], 2, rounds=1, config=SMALL)


class Convolutions(TorchFunctionMode):
    """Notes whether cuDNN would time its algorithms at each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.benchmark: set[bool] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is torch.conv2d:
            self.benchmark.add(torch.backends.cudnn.benchmark)
        return func(*args, **(kwargs or {}))


def test_slicing_leaves_cudnns_algorithms_as_the_reference_code_does() -> None:
    setting = on_fake_gpu("float32")
    with setting.active(), torch.no_grad(), Convolutions() as seen:
        steps = prepare_steps(SMALL, [0.5], ["slicing"], 1, setting)
        steps.ready[0.5, "slicing"].call()
        assert torch.backends.cudnn.benchmark
    assert seen.benchmark == {False}


def test_the_cache_is_warmed_by_what_is_compared(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    failed = ["compiled at width 0.5: no compiler"]
    asked: list[tuple[object, ...]] = []

    def prepared(*arguments: object) -> Steps:
        asked.append(arguments)
        return Steps(failed=failed)

    assert run(warm, "--width", 0.5, "--batch", 2, prepare=prepared) == 1
    ((config, widths, names, batch, _),) = asked
    assert (config, widths, names, batch) == (work.CONFIG, [0.5], ["compiled"], 2)
    assert set(last_line(capsys)) >= {"compiled_s", "fxgraph_cache_hit", "fxgraph_cache_miss"}
    assert "compiled" not in compare.candidates(2, 0.5)
    failed.clear()
    assert run(warm, "--width", 0.5, "--batch", 2, prepare=prepared) == 0
    assert "compiled" in compare.candidates(2, 0.5)
    assert "compiled" not in compare.candidates(2, 1.0)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert "compiled" not in compare.candidates(2, 0.5)


PROGRAM = """#!/bin/sh
case "$1" in
  --list) printf 'good\\tsm_80\\tneeded\\ta\\nslow\\tsm_90a\\t%s\\tb\\nbad\\tsm_90a\\t%s\\tc\\n' \
"$KIND" "$KIND"; printf 'dies\\tsm_90a\\tquestion\\td\\n';;
  good) echo '{"atom": "good", "status": "right"}';;
  slow) exec sleep 30;;
  bad) echo '{"atom": "bad", "status": "wrong", "different": 3}'; exit 1;;
  dies) echo 'a driver error' >&2; kill -SEGV $$;;
esac
"""


@pytest.mark.parametrize(("kind", "code"), [("needed", 1), ("question", 0)])
def test_atoms_that_hang_die_or_are_wrong(kind, code, tmp_path, monkeypatch, capsys) -> None:
    program = tmp_path / "atoms"
    program.write_text(PROGRAM)  # not executable
    monkeypatch.setenv("KIND", kind)
    assert run(atoms, tmp_path, "--json", tmp_path / "rows.json", limit_s=0.5) == code
    rows = {row["atom"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "right", "slow": "not run", "bad": "wrong", "dies": "not run",
    }  # fmt: skip
    assert rows["slow"]["reason"] == "stopped after 0.5 s"
    figures = last_line(capsys)
    assert figures["right"] == 1
    assert set(figures["not_right"]) == ({"slow", "bad"} if code else set())
    assert run(atoms, tmp_path / "nowhere") == 1


NCU = """==PROF== Disconnected
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    DRAM Frequency                  Ghz         2.61
    Duration                         us        48.22
    Memory Throughput                 %        61.30
    L2 Cache Throughput               %        44.05
    Registers Per Thread register/thread          168
"""


def test_counters_are_read_from_what_ncu_prints(tmp_path, monkeypatch, capsys) -> None:
    figures = counters.figures_of(NCU)
    assert figures["Duration"] == "48.22 us"
    assert figures["Memory Throughput"] == "61.30 %"
    assert figures["Registers Per Thread"] == "168 register/thread"
    program = tmp_path / "ncu"
    program.write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert run(counters, "--json", tmp_path / "counters.json") == 1
    assert "ERR_NVGPUCTRPERM" in (tmp_path / "counters.json").read_text()
    assert "ERR_NVGPUCTRPERM" in capsys.readouterr().out
    monkeypatch.setenv("PATH", "/nonexistent")
    assert run(counters) == 1


def test_what_the_kernels_print_is_read_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lines of tile_choice.h's `describe`."""
    with printed_choices() as lines:
        assert os.environ["DDSM_PRINT_CHOICES"] == "1"
        os.write(2, b"ddsm_ext: sliced_conv2d bf16 m=131072 n=128 k_steps=18 x1: 128x64, 4 splits, "
                    b"sm_90a path, 288 of k are padding\n")  # fmt: skip
        os.write(2, b"a warning\n")
        os.write(2, b"ddsm_ext: sliced_conv2d tf32 m=9 n=3 k_steps=2 x4: 64x64, 1 splits, "
                    b"sm_80 path (the sm_90a path needs bfloat16 or float16 images), "
                    b"0 of k are padding\n")  # fmt: skip
    assert "DDSM_PRINT_CHOICES" not in os.environ
    first, warning, second = (parsed(line) for line in lines)
    assert warning is None
    assert first == {"m": 131072, "n": 128, "k_steps": 18, "batches": 1, "splits": 4,
                     "tile_m": 128, "tile_n": 64, "sm90a": True, "k_padding": 288}  # fmt: skip
    assert (second["batches"], second["sm90a"]) == (4, False)
    with pytest.raises(RuntimeError, match="refused"), printed_choices():
        raise RuntimeError("refused")
    os.write(2, b"shown again\n")
    assert capfd.readouterr().err == "shown again\n"


FAMILY = ROOT / "python_tests" / "cuda_kernels" / "gpu" / "families.py"
IN_A_PROCESS = f"""
import contextlib, io, json, sys
from torch.utils._python_dispatch import TorchDispatchMode
sys.path[:0] = [{str(FAMILY.parents[2])!r}, {str(FAMILY.parent)!r}]
import families, torch
"""
# Wrong by nothing, by a factor, by NaN.
PLANTED = """
class Wrong(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        return y * factor if func is torch.ops.ddsm_ext.sliced_linear.default else y

sys.argv = ["families.py", "linear"]
for factor in (1.0, 1.1, float("nan")):
    with contextlib.redirect_stdout(io.StringIO()) as shown, Wrong():
        code = families.main()
    figures = json.loads(shown.getvalue().splitlines()[-1])
    print(code, figures["cases"], bool(figures["faults"]))
"""
REFUSED = """
for text in ("x: no kernel for this tile", "x: the sm_90a path needs stride 1 for the gradient",
             "x: the sm_90a path needs a GPU of compute capability 9.0", "an illegal access"):
    def call():
        raise RuntimeError(text)
    row = families.compare("case", call, [torch.ones(1)], 0.1)
    print("refused" in row, row["fault"] is not None)
"""


def test_a_family_finds_a_wrong_kernel_and_passes_over_a_tile_that_cannot_serve() -> None:
    """In a process of its own, as the device is chosen at the first import."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS + PLANTED + REFUSED], capture_output=True, text=True,
        env={**os.environ, "DDSM_TEST_DEVICE": "cpu"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "0 5 False", "1 5 True", "1 5 True",
        "True False", "True False", "False True", "False True",
    ], done.stderr  # fmt: skip
