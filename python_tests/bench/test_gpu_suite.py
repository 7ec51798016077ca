"""The GPU suite's stages and command line, on a machine that may have no GPU."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bench.fake_gpu import on_fake_gpu
from bench.scripts import ROOT, load  # makes gpu_suite importable
from bench.small_network import SMALL
from bench.suite_stages import stage
from gpu_suite import archive
from gpu_suite.__main__ import SECOND_RUN_SECONDS, SECONDS, main, query_gpu
from gpu_suite.running import Place
from gpu_suite.stages import SM80, STAGES, choose, second_run
from gpu_suite.tiles import HEADER, constant, tiles
from published.readme import all_tables, device_of, gpu_headlines, speed_section
from published.results import load_results, save_result

import ddsm_ext
from ddsm_ext.bench.training_step import run_training_step
from ddsm_ext.bench.unet_step import run_unet_step
from ddsm_ext.machine import machine_info

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
PLANTED = (
    stage("build", "", needs=None),
    stage("hangs", "import signal; signal.pause()", limit_s=0.8),
    stage("crashes", "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"),
    stage("wrong", "print('error 0.5, allowed 0.01'); raise SystemExit(1)", group="families",
          proves_sm90a=True),
    stage("times", "import os; print(os.environ['DDSM_SM90A'])", again=2),
    stage("times-sm80", "", environment=SM80, again=1),
)  # fmt: skip


def fake_gpu(capability: str = "9.0") -> dict[str, str]:
    return {"gpu": "Fake GPU", "torch": "2.11.0", "cuda": "13.0", "capability": capability}


def kept_s() -> float:
    return sum({s.group or s.name: s.reserve_s for s in STAGES}.values())


def test_what_is_kept_for_all_stages_fits_beside_half_of_the_time_for_compiling() -> None:
    warm_s = max(s.limit_s for s in STAGES if s.background)
    assert kept_s() + warm_s / 2 <= SECONDS <= 560
    assert len({s.name for s in STAGES}) == len(STAGES)
    groups = [s.group or s.name for s in STAGES]
    runs = [group for i, group in enumerate(groups) if i == 0 or group != groups[i - 1]]
    assert len(set(runs)) == len(runs), "stages of a group are not adjacent"
    names = [s.name for s in STAGES]
    for s in STAGES:
        assert s.needs is None or names.index(s.needs) < names.index(s.name)
        assert all(names.index(other) < names.index(s.name) for other in s.after)
        assert s.group or s.reserve_s <= s.limit_s


def test_every_file_module_and_option_of_the_commands_is_there() -> None:
    there = Place(ROOT, Path("build"), Path("out"), "python3")
    for s in STAGES:
        words = there.command(s, 100.0)
        for word in words:
            assert "{" not in word
            if word.endswith(".py"):
                assert (ROOT / word).resolve().is_file(), f"{s.name}: {word}"
        if words[1] == "-m" and words[2].startswith("gpu_suite."):
            script = ROOT / "benchmarks" / (words[2].replace(".", "/") + ".py")
            options = [word for word in words if word.startswith("--")]
            for option in options:
                assert f'"{option}"' in script.read_text(), f"{s.name}: {option}"
        if words[1] == "benchmarks/bench_unet_step.py":
            module = load("bench_unet_step", ROOT / words[1])
            jobs = module.jobs_of(module.parsed(words[2:]))
            assert all(job.device == "cuda" for job in jobs)
            assert all(0 < job.rounds < 9 for job in jobs)


@pytest.mark.parametrize("name", ["training", "filters", "report"])
def test_scripts_start_in_the_environment_of_a_stage(name: str, tmp_path: Path) -> None:
    site = tmp_path / "build" / "site"
    site.mkdir(parents=True)
    (site / "ddsm_ext").symlink_to(Path(ddsm_ext.__file__).parent)
    (script,) = choose([name])
    there = Place(ROOT, site.parent, tmp_path, sys.executable)
    done = subprocess.run(
        [*there.command(script, 9.0)[:2], "--help"],
        env=there.environment(script, sm90a=True), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_each_tile_of_the_sm90a_path_has_a_family() -> None:
    """The header is the one list of tiles."""
    text = HEADER.read_text()
    body = re.search(r"kTiles\[\] = \{(.*?)\};", text, re.S).group(1)
    assert len(tiles()) == body.count("{") == int(constant("kTileCount"))
    hopper = [tile for tile in tiles() if tile.sm90a]
    assert len(hopper) == len(tiles()) - int(constant("kPortableTiles")) > 0
    names = {s.name for s in STAGES}
    for tile in hopper:
        assert f"sm90a-forward-{tile.algo}" in names
        # Narrower ones have no kernel of the gradient: serves_gradient in the header.
        assert (f"sm90a-grad-x-{tile.algo}" in names) == (tile.n >= 64)
    assert {s.name for s in STAGES if s.proves_sm90a} >= {"fused"}


def test_stages_are_chosen_by_name_or_group_in_the_suites_order() -> None:
    assert choose([]) == list(STAGES)
    assert [s.name for s in choose(["report", "build"])] == ["build", "report"]
    assert {s.group for s in choose(["families"])} == {"families"}
    with pytest.raises(ValueError, match="stage 'biuld' is unknown; need some of build, "):
        choose(["biuld"])


def test_the_stages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(STAGES)
    assert main(["out", "nothing"]) == 2
    assert "stage 'nothing' is unknown" in capsys.readouterr().err


@NO_GPU
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finds no GPU; need a machine with an NVIDIA GPU"):
        query_gpu()
    script = ROOT / "benchmarks" / "gpu_suite.sh"
    done = subprocess.run([script, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "finds no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_the_suite_lacks_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tabulate.py").write_text("raise ModuleNotFoundError('No module named tabulate')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ValueError, match="No module named tabulate; need torch with CUDA, and tab"):
        query_gpu()


def test_a_run_with_planted_faults_reports_all_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "out"), "--seconds", "60"]
    assert main(words, stages=PLANTED, query=fake_gpu) == 1
    summary = archive.read_summary(tmp_path / "out")
    assert summary["gpu"] == "Fake GPU"
    assert summary["sm90a_off"] == "wrong failed"
    assert [(s["name"], s["status"]) for s in summary["stages"]] == [
        ("build", "ok"), ("hangs", "failed"), ("crashes", "failed"), ("wrong", "failed"),
        ("times", "ok"), ("times-sm80", "skipped"),
    ]  # fmt: skip
    shown = capsys.readouterr().out
    assert "Fake GPU, torch 2.11.0, CUDA 13.0: 6 stages in 60 s" in shown
    assert "ended by signal 6" in shown
    assert "error 0.5, allowed 0.01" in shown
    # A second run in which nothing proves the path again keeps it off.
    words = [str(tmp_path / "second"), "times", "--after", str(tmp_path / "out"), "times-sm80"]
    assert main(words, stages=PLANTED[-2:], query=fake_gpu) == 0
    second = archive.read_summary(tmp_path / "second" / archive.ARCHIVE)
    assert second["sm90a_off"] == "wrong failed"
    assert [s["status"] for s in second["stages"]] == ["ok", "skipped"]
    assert main([str(tmp_path / "third"), "--after", str(tmp_path / "nothing")]) == 2


def test_a_stopped_suite_ends_what_it_started(tmp_path: Path) -> None:
    pid, out = tmp_path / "pid", tmp_path / "out"
    hang = f"import os, signal; open({str(pid)!r}, 'w').write(str(os.getpid())); signal.pause()"
    code = (
        "from gpu_suite.__main__ import main\n"
        "from gpu_suite.stages import Stage\n"
        f"hangs = Stage('hangs', '', 50, 0, ('-c', {hang!r}), needs=None)\n"
        f"raise SystemExit(main([{str(out)!r}], stages=[hangs], query=lambda: {fake_gpu()!r}))"
    )
    suite = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "benchmarks"), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
    )
    while not pid.exists() or not pid.read_text():
        time.sleep(0.05)
    suite.send_signal(signal.SIGTERM)
    assert suite.wait(10) == 128 + signal.SIGTERM
    state = Path("/proc") / pid.read_text() / "stat"
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize("reason", ["capability", "environment"])
def test_where_the_sm90a_path_is_off_from_the_start(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = stage("sm90a-tile", "raise SystemExit(1)", proves_sm90a=True, wants_sm90a=True)
    capability = "8.6"
    if reason == "environment":
        monkeypatch.setenv("DDSM_SM90A", "0")
        capability = "9.0"
    stages = (tile, *PLANTED[-2:])
    assert main([str(tmp_path)], stages=stages, query=lambda: fake_gpu(capability)) == 0
    summary = archive.read_summary(tmp_path)
    assert [s["status"] for s in summary["stages"]] == ["skipped", "ok", "skipped"]
    assert (
        summary["sm90a_off"]
        == {
            "capability": "the GPU is of compute capability 8.6",
            "environment": "DDSM_SM90A is 0",
        }[reason]
    )


def earlier(*failed: str) -> list[dict[str, object]]:
    return [{"name": s.name, "status": "failed" if s.name in failed else "ok"} for s in STAGES]


def test_a_second_run_begins_with_what_failed() -> None:
    nothing = [s.name for s in second_run(earlier(), SECOND_RUN_SECONDS)]
    assert nothing[:2] == ["build", "roofs"]
    assert {"graphs", "profile", "compare-128", "step"} <= set(nothing)
    assert "training" not in nothing
    mended = second_run(earlier("training", "fused", "filters"), SECOND_RUN_SECONDS)
    names = [s.name for s in mended]
    assert {"training", "filters", "build"} <= set(names)
    assert {s.name for s in STAGES if s.group == "families"} <= set(names)
    for chosen in (mended, second_run(earlier(*(s.name for s in STAGES)), SECOND_RUN_SECONDS)):
        kept = {s.group or s.name: s.reserve_s for s in chosen}
        assert sum(kept.values()) <= SECOND_RUN_SECONDS <= 200
        assert not any(s.background or s.after for s in chosen)


def test_the_script_for_a_second_run_wants_two_folders(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu_rerun.sh"
    done = subprocess.run([script, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2, "gpu_rerun.sh: 1 arguments; need the earlier run and OUT_DIR\n",
    )  # fmt: skip
    done = subprocess.run([script, tmp_path, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds no earlier run" in done.stderr
    assert done.stderr.count("\n") == 1


def test_tables_and_plots_of_gpu_results(tmp_path: Path) -> None:
    results, machine = tmp_path / "results", machine_info()
    for batch in (1, 2):
        result = run_unet_step(batch=batch, rounds=1, setting=on_fake_gpu("bfloat16"), config=SMALL)
        result["rows"][0]["compiled_ms"] = 0.5  # one width alone was compiled
        result["rows"][0]["ratio_compiled"] = 1.25
        path = save_result(results, "inference", machine, result)
    training = run_training_step(2, 1, setting=on_fake_gpu("bfloat16"), config=SMALL)
    save_result(results, "training", machine, training)
    assert path.name == "nvidia-fake-bfloat16-inference.json"
    report = load("benchmarks_report", ROOT / "benchmarks" / "report.py")
    report.main(["--results", str(results), "--out", str(tmp_path)])
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
    of_cpu = [file for file in own if device_of(file) == "cpu"]
    assert text.count("Sandwich training step") == 2 + len(gpu_headlines(own))
    assert "Not yet measured" in all_tables(of_cpu)
    assert "Not yet measured" not in all_tables(load_results(results))
