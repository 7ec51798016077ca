"""Libraries built beforehand for the GPU suite: whole, for any Python, and not used when stale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bench.scripts import ROOT  # makes gpu_suite importable
from gpu_suite import build
from gpu_suite.build import ABOUT, architectures, fingerprint, put_sources, put_stand_in

import ddsm_ext

LIBRARY = Path(ddsm_ext.__file__).parent / "libddsm_cpu.so"


def test_the_gpus_own_architecture_and_hoppers_are_built() -> None:
    assert architectures((9, 0)) == "90a-real"
    assert architectures((8, 6)) == "90a-real;86-real"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with a package as `--prebuild` leaves it, without CUDA."""
    folder = tmp_path_factory.mktemp("site")
    put_sources(folder / "ddsm_ext")
    put_stand_in(folder / "ddsm_ext", "90a-real")
    shutil.copy2(LIBRARY, folder / "ddsm_ext")
    return folder


def run_in(site: Path, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_what_the_suite_needs_runs_without_the_python_module(site: Path) -> None:
    code = f"""
import sys
sys.path.append({str(ROOT / "benchmarks")!r})
import ddsm_ext, torch
from ddsm_ext import _library
assert ddsm_ext.__file__.startswith({str(site)!r}), ddsm_ext.__file__
assert _library.native.build_info()["cuda_architectures"] == "90a-real"
import ddsm_ext.models, ddsm_ext.runtime.cuda, ddsm_ext.sampling, ddsm_ext.bench
import gpu_suite.compare, gpu_suite.counters, gpu_suite.graph_times, gpu_suite.kernel_table
import gpu_suite.roofs, gpu_suite.sweep, gpu_suite.whole_step
y = ddsm_ext.ops.sliced_linear(torch.ones(2, 4), torch.ones(8, 8), torch.ones(8), 3)
assert y.tolist() == [[5.0] * 3] * 2
try:
    _library.native.StepPlan
except AttributeError as error:
    print(error)
"""
    assert "StepPlan is not in libraries built beforehand" in run_in(site, code)


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not on PATH")
def test_the_libraries_know_no_python() -> None:
    done = subprocess.run(
        ["nm", "-D", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert names
    assert not [name for name in names if name.startswith(("Py", "_Py"))]


def test_sources_are_those_of_now_and_the_rest_stays(site: Path, tmp_path: Path) -> None:
    package = tmp_path / "ddsm_ext"
    shutil.copytree(site / "ddsm_ext", package)
    (package / "ops" / "old.py").write_text("raise SystemExit('an old file')")
    (package / "models" / "unet.py").write_text("raise SystemExit('an old version')")
    put_sources(package)
    assert not (package / "ops" / "old.py").exists()
    now = (ROOT / "ddsm_ext" / "models" / "unet.py").read_bytes()
    assert (package / "models" / "unet.py").read_bytes() == now
    assert (package / "_native.py").exists()
    assert (package / LIBRARY.name).exists()
    assert not list(package.rglob("_native.*.so"))


def test_what_was_brought_along_is_used_if_it_is_of_these_sources_and_loads(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = build.reason_against(tmp_path)
    assert reason == "nothing was brought along"
    (tmp_path / ABOUT).write_text("not JSON")
    assert build.reason_against(tmp_path) == "nothing was brought along"
    (tmp_path / ABOUT).write_text(json.dumps({"fingerprint": "of other sources"}))
    assert "the sources are others" in str(build.reason_against(tmp_path))
    (tmp_path / ABOUT).write_text(json.dumps({"fingerprint": fingerprint()}))
    shutil.copytree(site, tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    # All but the CUDA library is there.
    assert "without CUDA" in str(build.reason_against(tmp_path))
    without_cuda = "from ddsm_ext import _library"
    assert build.reason_against(tmp_path, without_cuda) is None
    (tmp_path / "site" / "ddsm_ext" / LIBRARY.name).write_bytes(b"for another machine")
    assert "does not load" in str(build.reason_against(tmp_path, without_cuda))


def test_the_fingerprint_is_that_of_what_is_compiled(tmp_path: Path) -> None:
    compiled = ("csrc/a.cpp", "CMakeLists.txt", "python_tests/cuda_kernels/atoms/b.cpp")
    for name in (*compiled, "ddsm_ext/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = fingerprint(tmp_path)
    (tmp_path / "ddsm_ext/c.py").write_text("2")
    assert fingerprint(tmp_path) == before
    for name in compiled:
        (tmp_path / name).write_text("2")
        assert fingerprint(tmp_path) != before
        before = fingerprint(tmp_path)
