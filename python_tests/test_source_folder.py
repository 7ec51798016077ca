"""A source folder without libraries, as after `pip install .`, borrows the installed ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ddsm_ext
from ddsm_ext import _library

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(ddsm_ext.__file__).parent
WHERE = "from ddsm_ext import _library; print(_library.folder, _library.native.__file__)"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a source folder holds, without libraries."""
    folder = tmp_path / "source"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, folder / "ddsm_ext", ignore=ignored)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages that holds the libraries and their metadata alone."""
    return make_site(tmp_path / "site", ddsm_ext.__version__)


def make_site(folder: Path, version: str) -> Path:
    package, metadata = folder / "ddsm_ext", folder / f"ddsm_ext-{version}.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    for library in _library.folder.glob("*.so"):
        shutil.copy(library, package)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: ddsm_ext\nVersion: {version}\n"
    )
    listing = [f"ddsm_ext/{library.name},," for library in package.glob("*.so")]
    (metadata / "RECORD").write_text("\n".join(listing) + "\n")
    return folder


def run(arguments: list[str], source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in the source folder, which comes first on its path as without PYTHONSAFEPATH."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run_code(code: str, source: Path, site: Path) -> str:
    """Run code that sees the installations in `site` alone; return its last line."""
    prepare = (
        "from importlib import metadata; every = metadata.distributions; "
        f"metadata.distributions = lambda **named: every(**named, path=[{str(site)!r}]); "
    )
    done = run(["-c", prepare + code], source, site)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def test_installed_libraries_of_the_same_version_are_taken(source: Path, site: Path) -> None:
    folder, native = run_code(WHERE, source, site).split()
    assert Path(folder) == site / "ddsm_ext"
    assert Path(native).parent == site / "ddsm_ext"


def test_of_the_installation_only_the_libraries_are_taken(source: Path, site: Path) -> None:
    (site / "ddsm_ext" / "only_installed.py").touch()
    code = "from ddsm_ext import ops, _native; print(ops.__file__); import ddsm_ext.only_installed"
    assert run_code(code, source, site).startswith("ModuleNotFoundError")
    assert run_code(code.partition("; import")[0], source, site).startswith(str(source))


def test_native_module_is_importable_first(source: Path, site: Path) -> None:
    code = "from ddsm_ext import _native; import ddsm_ext._native; print(ddsm_ext._native.__file__)"
    assert run_code(code, source, site).startswith(str(site))


def test_own_libraries_come_first(source: Path, site: Path) -> None:
    for library in (site / "ddsm_ext").glob("*.so"):
        shutil.copy(library, source / "ddsm_ext")
    folder, native = run_code(WHERE, source, site).split()
    assert Path(folder) == Path(native).parent == source / "ddsm_ext"


def test_own_libraries_of_another_python_are_passed_over(source: Path, site: Path) -> None:
    shutil.copy(site / "ddsm_ext" / "libddsm_cpu.so", source / "ddsm_ext")
    (source / "ddsm_ext" / "_native.cpython-399-x86_64-linux-gnu.so").touch()
    assert Path(run_code(WHERE, source, site).split()[0]) == site / "ddsm_ext"


def test_another_version_is_named_and_refused(source: Path, tmp_path: Path) -> None:
    other = make_site(tmp_path / "other", "99.0.0")
    error = run_code(WHERE, source, other)
    assert "MissingLibrary: ddsm_ext: the compiled library is missing, built: nothing" in error
    assert f"installed: ddsm_ext 99.0.0 in {other / 'ddsm_ext'}, running: ddsm_ext" in error
    assert error.endswith("run `pip install .` again in the source folder")


def test_the_second_installation_may_fit(source: Path, site: Path, tmp_path: Path) -> None:
    other = make_site(tmp_path / "other", "99.0.0")
    os.symlink(other / "ddsm_ext-99.0.0.dist-info", site / "ddsm_ext-99.0.0.dist-info")
    assert Path(run_code(WHERE, source, site).split()[0]) == site / "ddsm_ext"


def test_libraries_of_other_sources_are_refused(source: Path, site: Path) -> None:
    (source / "csrc").mkdir()
    (source / "csrc" / "one.cpp").write_text("int one() { return 1; }\n")
    error = run_code(WHERE, source, site)
    assert "MissingLibrary: ddsm_ext: the compiled library in " in error
    assert f"was built from other C++ sources than those in {source / 'csrc'}; run `pip" in error


def test_the_readmes_example_runs_there(source: Path, site: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (example,) = (text for text in examples if "images = sample(" in text)
    done = run(["-c", example + "\nprint(images.shape)"], source, site)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "torch.Size([4, 3, 16, 16])"


def test_the_kernel_comparison_runs_there(source: Path, site: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`python (-m pytest benchmarks/bench_conv2d\.py)`", readme)
    one = ["-k", "0.25 and ours", "-p", "no:cacheprovider"]
    done = run([*command.split(), *one], source, site)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "slicing / ours and dense_cl / ours, interleaved" in done.stdout
