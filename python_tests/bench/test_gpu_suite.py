"""The GPU suite's stages, budget and summary, on a machine that may have no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench import fake_gpu
from bench.scripts import ROOT, load  # makes gpu_suite importable
from bench.small_network import SMALL
from gpu_suite import running
from gpu_suite.__main__ import main, query_gpu
from gpu_suite.build import architectures
from gpu_suite.running import Outcome, Place, run_stages, summary, write_summary
from gpu_suite.stages import STAGES, Stage, choose

from ddsm_ext.bench.readme import all_tables, gpu_headlines, speed_section
from ddsm_ext.bench.results import load_results, save_result
from ddsm_ext.bench.training_step import run_training_step
from ddsm_ext.bench.unet_step import run_unet_step
from ddsm_ext.io.run_dir import machine_info

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def python(name: str, code: str, **options: object) -> Stage:
    stage = Stage(name, f"about {name}", 0.0, ("-c", code), needs=None)
    return replace(stage, **options)


def place(folder: Path) -> Place:
    return Place(folder, folder, folder / "build", sys.executable)


def test_the_shares_of_all_stages_fit_in_nine_minutes() -> None:
    assert sum(stage.reserve_s for stage in STAGES) <= 540
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    before: set[str | None] = {None}
    for stage in STAGES:
        assert stage.needs in before
        before.add(stage.name)


def test_every_file_and_option_of_the_commands_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Place(ROOT, Path("out"), Path("build"), "python3")
    for stage in STAGES:
        words = there.command(stage, 100.0)
        for word in words:
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), f"{stage.name}: {word}"
        assert not any("{" in word for word in words)
        if words[1] == "benchmarks/bench_unet_step.py":
            monkeypatch.setattr(sys, "argv", words[1:])
            module = load("bench_unet_step", ROOT / words[1])
            jobs = module._jobs(module._arguments())
            assert all(job.device == "cuda" for job in jobs)
            assert all(0 < job.rounds < 9 for job in jobs)


def test_stages_are_chosen_by_name_in_the_suites_order() -> None:
    assert choose([]) == list(STAGES)
    assert [stage.name for stage in choose(["report", "build"])] == ["build", "report"]
    with pytest.raises(ValueError, match="stage 'biuld' is unknown; need some of build, "):
        choose(["biuld"])


def test_a_failing_stage_does_not_end_the_suite(tmp_path: Path) -> None:
    stages = [
        python("good", "print('fine')"),
        python("bad", "import sys; print('why'); sys.exit(3)"),
        python("dependent", "", needs="bad"),
        python("toolless", "", tool="no-such-program"),
        python("last", "import os; print(os.environ['PYTHONPATH'], os.environ['EXTRA'])",
               environment=(("EXTRA", "more"),)),
    ]  # fmt: skip
    outcomes = run_stages(stages, place(tmp_path), 100.0)
    assert [(o.name, o.status, o.reason) for o in outcomes] == [
        ("good", "ok", ""),
        ("bad", "failed", "exit code 3"),
        ("dependent", "skipped", "bad failed"),
        ("toolless", "skipped", "no-such-program is not on PATH"),
        ("last", "ok", ""),
    ]
    log = (tmp_path / "log.txt").read_text()
    assert log.index("fine") < log.index("why") < log.index(f"{tmp_path}/build/site more")


def test_a_stage_that_overruns_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LEAST_S", 0.0)
    child = "import time, pathlib; time.sleep(4); pathlib.Path('survived').touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    (outcome,) = run_stages([python("slow", code)], place(tmp_path), 2.0)
    assert (outcome.status, outcome.reason) == ("failed", "stopped after 2 s")
    assert time.monotonic() - start < 4.0
    time.sleep(3.0)
    assert not (tmp_path / "survived").exists()


def test_each_stage_has_what_the_later_ones_do_not_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 s; the first takes 50 of its 60, the second 35 of its 30 + 10, nothing is left."""
    now, durations = [0.0], {"a": 50.0, "b": 35.0, "c": 9.0, "d": 1.0}
    limits = {}

    def run(stage: Stage, there: Place, limit_s: float) -> tuple[str, str]:
        limits[stage.name] = limit_s
        now[0] += durations[stage.name]
        return "ok", ""

    monkeypatch.setattr(running, "_run", run)
    shares = {"a": 60.0, "b": 20.0, "c": 8.0, "d": 2.0}
    stages = [python(name, "", reserve_s=share) for name, share in shares.items()]
    seen: list[int] = []
    outcomes = run_stages(
        stages, place(tmp_path), 100.0, clock=lambda: now[0], record=lambda o: seen.append(len(o))
    )
    assert limits == {"a": 70.0, "b": 40.0, "c": 13.0, "d": 6.0}
    assert seen == [1, 2, 3, 4]
    now[0], durations["c"] = 0.0, 14.0
    outcomes = run_stages(stages, place(tmp_path), 100.0, clock=lambda: now[0])
    assert (outcomes[3].status, outcomes[3].reason) == ("skipped", "1 s are left")


def test_summary_and_its_json(tmp_path: Path) -> None:
    outcomes = [Outcome("build", "ok", "", 61.25, 90.0), Outcome("x", "skipped", "y", 0.0, 3.0)]
    assert summary(outcomes).splitlines() == [
        "build  ok         61.2 s",
        "x      skipped     0.0 s  y",
    ]
    write_summary(tmp_path / "suite.json", {"gpu": "A GPU"}, outcomes)
    content = json.loads((tmp_path / "suite.json").read_text())
    assert content["gpu"] == "A GPU"
    assert content["stages"][1] == {
        "name": "x", "status": "skipped", "reason": "y", "seconds": 0.0, "limit_s": 3.0,
    }  # fmt: skip


@NO_GPU
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finds no GPU; need a machine with an NVIDIA GPU"):
        query_gpu()
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu_suite.sh", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "finds no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_stages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(STAGES)
    assert main(["out", "nothing"]) == 2
    assert "stage 'nothing' is unknown" in capsys.readouterr().err


def test_the_gpus_own_architecture_and_hoppers_are_built() -> None:
    assert architectures((9, 0)) == "90a-real"
    assert architectures((8, 6)) == "90a-real;86-real"


def test_tables_and_plots_of_gpu_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch)
    results, machine = tmp_path / "results", machine_info()
    for batch in (1, 2):
        result = run_unet_step(batch=batch, dtype="bfloat16", rounds=1, config=SMALL)
        result["rows"][0]["compiled_ms"] = 0.5  # one width alone was compiled
        result["rows"][0]["ratio_compiled"] = 1.25
        path = save_result(results, "inference", machine, result)
    training = run_training_step(2, "bfloat16", 1, config=SMALL)
    save_result(results, "training", machine, training)
    assert path.name == "nvidia-fake-bfloat16-inference.json"
    monkeypatch.setattr(
        sys, "argv", ["report.py", "--results", str(results), "--out", str(tmp_path)]
    )
    load("benchmarks_report", ROOT / "benchmarks" / "report.py").main()
    assert "NVIDIA Fake" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "unet-step-nvidia-fake-bfloat16-inference.png").stat().st_size > 10_000

    own = load_results(ROOT / "benchmarks" / "results")
    assert len(gpu_headlines(load_results(results))) == 1
    text = " ".join(speed_section([*own, *load_results(results)]).split())
    assert "NVIDIA Fake (driver 580.1, CUDA" in text
    assert "us an image, bfloat16" in text
    assert "torch.compile with max-autotune and CUDA graphs" in text
    assert (
        "![Milliseconds an image against width, by batch size](docs/unet-step-nvidia-fake" in text
    )
    assert "weights beyond the network's own and graphs of all widths hold" in text
    assert text.count("Sandwich training step") == 2
    assert "Not yet measured" in all_tables(own)
    assert "Not yet measured" not in all_tables(load_results(results))
