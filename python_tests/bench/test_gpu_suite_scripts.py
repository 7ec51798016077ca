"""The GPU suite's own scripts, tried on the CPU with a small network, and with planted faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from bench.fake_gpu import on_fake_gpu
from bench.scripts import ROOT  # makes gpu_suite importable
from bench.small_network import SMALL
from torch import Tensor, nn
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

from gpu_suite import choices
from gpu_suite.tiles import tiles

from ddsm_ext.bench.conditions import REFERENCE_CIFAR10, Setting
from ddsm_ext.bench.device import Cpu
from ddsm_ext.bench.steps import Steps, prepare_steps
from ddsm_ext.bench.unet_step import run_unet_step


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> int | None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    code: int | None = script.main()
    return code


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def test_roofs(tmp_path, monkeypatch, capsys) -> None:
    run(roofs, monkeypatch, "--json", tmp_path / "roofs.json")
    assert last_line(capsys)["tflop_per_s"] > 0
    assert json.loads((tmp_path / "roofs.json").read_text())["conditions"]["device"] == "cpu"


def test_whole_steps_are_right_and_a_wrong_one_is_found(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(work, "WIDTHS", (0.5, 0.25))
    assert run(whole_step, monkeypatch, "--json", tmp_path / "step.json") == 0
    figures = last_line(capsys)
    assert 0 < figures["largest_error"] < whole_step.TOLERANCE
    assert figures["faults"] == []
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [(row["network"], row["width"]) for row in rows] == [
        (network, width) for network in ("U-Net", "ADM") for width in (0.5, 0.25)
    ]
    assert all(row["eager_repeats"] and row["replays_repeat"] for row in rows)

    monkeypatch.setattr(work, "WIDTHS", (0.25,))
    step_of = work.step_of
    monkeypatch.setattr(work, "step_of", lambda *a: lambda: step_of(*a)() * 1.2)
    assert run(whole_step, monkeypatch) == 1
    faults = last_line(capsys)["faults"]
    for network, fault in zip(("U-Net", "ADM"), faults, strict=True):
        assert fault.startswith(f"{network}, width 0.25, batch 2: eager differs by")


def test_kernels_are_counted(tmp_path, monkeypatch, capsys) -> None:
    a = torch.randn(64, 64)
    rows = kernel_table.kernels_of(lambda: (a @ a, a @ a, a + a), steps=4)
    by_name = {row["kernel"]: row for row in rows}
    assert by_name["aten::mm"]["calls"] == 2
    assert by_name["aten::add"]["calls"] == 1
    assert rows == sorted(rows, key=lambda row: -row["us"])
    run(kernel_table, monkeypatch, "--json", tmp_path / "profile.json")
    tables = json.loads((tmp_path / "profile.json").read_text())["tables"]
    assert [table["width"] for table in tables] == [1.0, 0.5, 0.25]
    assert list(last_line(capsys)["us and launches"]) == ["2/1", "2/0.5", "2/0.25"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void ddsm::(anonymous namespace)::apply_kernel<bf16, true>(ddsm::Params)",
         "apply_kernel<bf16, true>"),
        ("void at::native::copy(int, float)", "at::native::copy"),
        ("Memcpy DtoD", "Memcpy DtoD"),
    ],
)  # fmt: skip
def test_kernels_have_short_names(name: str, short: str) -> None:
    assert kernel_table.short_name(name) == short


def test_graphs_are_timed_at_every_batch_and_width(tmp_path, monkeypatch, capsys) -> None:
    run(graph_times, monkeypatch, "--json", tmp_path / "graphs.json")
    content, short = json.loads((tmp_path / "graphs.json").read_text()), last_line(capsys)
    for name, batches in (("ms", {"2", "1"}), ("adm_ms", {"2"})):
        times = content[f"{name}_a_step"]
        assert set(times) == set(short[name]) == batches
        assert all(times[b][w]["ms"] > 0 for b in times for w in ("1", "0.5", "0.25"))


def test_the_sweep_takes_the_costliest_shapes_and_times_what_is_accepted(
    tmp_path, monkeypatch, capsys
) -> None:
    run(sweep, monkeypatch, "--json", tmp_path / "sweep.json", "--seconds", 30)
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert len(content["rows"]) == last_line(capsys)["timings"] > 0
    assert all(row["algo"] == 0 and row["us"] > 0 for row in content["rows"])


def test_choices_fill_a_gpu_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "CONFIG", REFERENCE_CIFAR10)
    shape = sweep.shapes_of(1.0)[0]
    assert shape.macs >= 128 * 128 * 9 * 1024
    narrow = replace(shape, c_out=32)
    for tile in tiles():
        large, small = (sweep.splits_of(shape, batch, tile, 132) for batch in (128, 1))
        assert large in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 4])
        assert len(small) > 1
        assert bool(sweep.splits_of(narrow, 1, tile, 132)) == (tile.n == 32 or tile.n < 64)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "ROUNDS", 1)
    monkeypatch.setattr(work, "CONFIG", SMALL)


@pytest.mark.usefixtures("compared")
def test_widths_are_compared_one_after_the_other(tmp_path, monkeypatch, capsys) -> None:
    words = ("--batch", 2, "--widths", 1, 0.5, "--seconds", 60, "--json", tmp_path)
    assert run(compare, monkeypatch, *words) == 0
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
    assert run(compare, monkeypatch, *words[:-3], 1, "--json", tmp_path / "short") == 0
    assert list(last_line(capsys)["widths"]) == ["1"]


class WrongOnce(Cpu):
    """Compiles to a step that is wrong at the first width."""

    compiled = 0

    def compile(self, network: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        self.compiled += 1
        wrong = float(self.compiled == 1)
        return lambda: network(**inputs) + wrong


@pytest.mark.usefixtures("compared")
def test_a_candidate_that_differs_is_marked_and_its_row_kept(tmp_path, monkeypatch, capsys) -> None:
    setting = Setting("bfloat16", device=WrongOnce())
    monkeypatch.setattr(work, "setting", lambda: setting)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    for width in (1.0, 0.5):
        done = warm.mark(2, width)
        assert done is not None
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
    words = ("--batch", 2, "--widths", 1, 0.5, "--seconds", 60, "--json", tmp_path)
    assert run(compare, monkeypatch, *words) == 1
    (sentence,) = last_line(capsys)["failed"]
    assert sentence.startswith("U-Net at width 1: compiled differs from slicing by")
    (path,) = tmp_path.glob("*.json")
    (result,) = json.loads(path.read_text())["results"]
    marks = [row.get("differs") for row in result["rows"]]
    assert marks == [sentence, None]
    names = ("slicing", "compiled", "ours")
    wrong = Setting(device=WrongOnce())
    with pytest.raises(ValueError, match="compiled differs from slicing"):
        run_unet_step([1.0], 2, 1, setting=wrong, candidates=names, config=SMALL)


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

    monkeypatch.setattr(warm, "prepare_steps", prepared)
    assert run(warm, monkeypatch, "--width", 0.5, "--batch", 2) == 1
    ((config, widths, names, batch, _),) = asked
    assert (config, widths, names, batch) == (work.CONFIG, [0.5], ["compiled"], 2)
    assert set(last_line(capsys)) >= {"compiled_s", "fxgraph_cache_hit", "fxgraph_cache_miss"}
    assert "compiled" not in compare.candidates(2, 0.5)
    failed.clear()
    assert run(warm, monkeypatch, "--width", 0.5, "--batch", 2) == 0
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
    monkeypatch.setattr(atoms.run_atom, "__defaults__", (0.5,))
    assert run(atoms, monkeypatch, tmp_path, "--json", tmp_path / "rows.json") == code
    rows = {row["atom"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "right", "slow": "not run", "bad": "wrong", "dies": "not run",
    }  # fmt: skip
    assert rows["slow"]["reason"] == "stopped after 0.5 s"
    figures = last_line(capsys)
    assert figures["right"] == 1
    assert set(figures["not_right"]) == ({"slow", "bad"} if code else set())
    assert run(atoms, monkeypatch, tmp_path / "nowhere") == 1


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
    assert run(counters, monkeypatch, "--json", tmp_path / "counters.json") == 1
    assert "ERR_NVGPUCTRPERM" in (tmp_path / "counters.json").read_text()
    assert "ERR_NVGPUCTRPERM" in capsys.readouterr().out
    monkeypatch.setenv("PATH", "/nonexistent")
    assert run(counters, monkeypatch) == 1


def test_what_the_kernels_print_is_read_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lines of tile_choice.h's `describe`."""
    with choices.printed_choices() as lines:
        assert os.environ["DDSM_PRINT_CHOICES"] == "1"
        os.write(2, b"ddsm_ext: sliced_conv2d bf16 m=131072 n=128 k_steps=18 x1: 128x64, 4 splits, "
                    b"sm_90a path, 288 of k are padding\n")  # fmt: skip
        os.write(2, b"a warning\n")
        os.write(2, b"ddsm_ext: sliced_conv2d tf32 m=9 n=3 k_steps=2 x4: 64x64, 1 splits, "
                    b"sm_80 path (the sm_90a path needs bfloat16 or float16 images), "
                    b"0 of k are padding\n")  # fmt: skip
    assert "DDSM_PRINT_CHOICES" not in os.environ
    first, warning, second = (choices.parsed(line) for line in lines)
    assert warning is None
    assert first == {"m": 131072, "n": 128, "k_steps": 18, "batches": 1, "splits": 4,
                     "tile_m": 128, "tile_n": 64, "sm90a": True, "k_padding": 288}  # fmt: skip
    assert (second["batches"], second["sm90a"]) == (4, False)
    with pytest.raises(RuntimeError, match="refused"), choices.printed_choices():
        raise RuntimeError("refused")
    os.write(2, b"shown again\n")
    assert capfd.readouterr().err == "shown again\n"


FAMILY = ROOT / "python_tests" / "cuda_kernels" / "gpu" / "families.py"
IN_A_PROCESS = f"""
import contextlib, io, json, sys
sys.path[:0] = [{str(FAMILY.parents[2])!r}, {str(FAMILY.parent)!r}]
import families, torch
"""
# Wrong by nothing, by a factor, by NaN.
PLANTED = """
right = families.OURS["linear"]
families.LAYERS["linear"] = families.LAYERS["linear"][:1]
sys.argv = ["families.py", "linear"]
for factor in (1.0, 1.1, float("nan")):
    wrong = lambda x, weight, bias, c_out: right(x, weight, bias, c_out) * factor
    families.OURS = {**families.OURS, "linear": wrong}
    with contextlib.redirect_stdout(io.StringIO()) as shown:
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
        "0 2 False", "1 2 True", "1 2 True",
        "True False", "True False", "False True", "False True",
    ], done.stderr  # fmt: skip
