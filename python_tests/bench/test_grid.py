"""Jobs of the grids, their estimates, and results that end up in the right file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bench.scripts import ROOT, load  # makes published importable
from bench.small_network import SMALL
from published.grid import Job, grid_jobs
from published.results import load_results, save_result

from ddsm_ext.machine import machine_info

JOB = Job("inference", 2, "float32", 1, 1, (1.0, 0.5), ("slicing", "ours"), SMALL)


def test_grids() -> None:
    quick, full = grid_jobs("quick", 2), grid_jobs("full", 2)
    assert {(j.mode, j.batch, j.dtype, j.rounds) for j in quick} == {
        ("inference", 8, "float32", 3),
        ("inference", 1, "float32", 3),
        ("training", 8, "float32", 3),
        ("layers", 8, "float32", 3),
        ("layers", 1, "float32", 3),
    }
    assert {(j.batch, j.dtype) for j in full if j.mode == "inference"} == {
        (batch, dtype) for batch in (1, 8, 64) for dtype in ("float32", "bfloat16")
    }
    assert {j.threads for j in full} == {2}
    with pytest.raises(ValueError, match="'slow'"):
        grid_jobs("slow", 1)


def test_estimates_grow_with_the_work() -> None:
    """6.22 G MACs an image at width 1: 10 runs of 8 images of one candidate at 10 G a second."""
    job = replace(grid_jobs("quick", 1)[0], widths=(1.0,), candidates=("ours",), rounds=7)
    assert job.estimate_s(1e10) == pytest.approx(10 * 8 * 0.622, rel=1e-3)
    compiled = replace(job, candidates=("compiled",))
    assert compiled.estimate_s(1e10) > job.estimate_s(1e10) + 30
    # forward and backward of widths 1, .5 and .25, two candidates
    training = replace(job, mode="training")
    assert training.estimate_s(1e10) == pytest.approx(80 * 6 * (0.622 + 0.160 + 0.042), rel=2e-3)


@pytest.mark.parametrize("mode", ["inference", "training", "layers"])
def test_every_mode_runs_and_is_kept(mode: str, tmp_path: Path) -> None:
    job, machine = replace(JOB, mode=mode), machine_info()
    one = replace(job, batch=1).run()
    path = save_result(tmp_path, mode, machine, job.run())
    assert path.name.endswith(f"-float32-1t-{mode}.json")
    for result in (one, {**one, "rows": []}):  # the second takes the place of the first
        assert save_result(tmp_path, mode, machine, result) == path
    ((found, content),) = load_results(tmp_path)
    assert found == path
    assert content["mode"] == mode
    assert [r["conditions"]["batch"] for r in content["results"]] == [1, 2]
    assert [r["rows"] == [] for r in content["results"]] == [True, False]
    saved = content["results"][0]["machine"]
    assert saved["versions"]["torch"]
    assert not {"machine", "command"} & set(saved)


def test_the_script_estimates_measures_and_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("bench_unet_step", ROOT / "benchmarks" / "bench_unet_step.py")
    words = ["--widths", "0.25", "--candidates", "slicing", "ours", "--rounds", "1"]
    words += ["--batch", "1", "--threads", "1", "--json"]
    assert script.main([*words, str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "min: inference, batch 1, float32, 1 threads" in shown
    ((_, content),) = load_results(tmp_path)
    assert [row["width"] for row in content["results"][0]["rows"]] == [0.25]
    script.main(["--batch", "1", "--limit-minutes", "0", "--json", str(tmp_path / "nothing")])
    assert "left out, would pass 0 min: inference, batch 1" in capsys.readouterr().out
    assert not (tmp_path / "nothing").exists()
