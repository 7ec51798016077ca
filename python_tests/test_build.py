"""CMakeLists.txt and setup.py: which GPUs a build is for, and that options arrive."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddsm_ext import _library

ROOT = Path(__file__).resolve().parent.parent
ALL = "80-real;86-real;89-real;90a-real;80-virtual"
# What CMakeLists.txt does before and after it includes the file under test.
SCRIPT = f"""
set(DDSM_CUDA_ALL_ARCHITECTURES "{ALL}")
include({ROOT}/csrc/cuda/architectures.cmake)
message("chosen: ${{cuda_architectures}}|${{cuda_missing}}")
"""
# A driver library that sees the GPUs of FAKE_GPUS, such as "90,86"; "driver 803" is an error.
DRIVER = """
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
static std::vector<int> gpus() {
  std::vector<int> found;
  std::string text = std::getenv("FAKE_GPUS");
  for (char* part = std::strtok(&text[0], ","); part; part = std::strtok(nullptr, ",")) {
    found.push_back(std::atoi(part));
  }
  return found;
}
extern "C" {
int cuInit(unsigned) {
  const char* text = std::getenv("FAKE_GPUS");
  if (std::strncmp(text, "error ", 6) == 0) return std::atoi(text + 6);
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return gpus().empty() || (visible && !*visible) ? 100 : 0;
}
int cuDeviceGetCount(int* count) { *count = static_cast<int>(gpus().size()); return 0; }
int cuDeviceGet(int* device, int index) { *device = index + 7; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const int gpu = gpus().at(device - 7);
  *value = attribute == 75 ? gpu / 10 : attribute == 76 ? gpu % 10 : -1;
  return 0;
}
}
"""
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH")


def choose(
    folder: Path, choice: str, given: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the script with DDSM_CUDA and DDSM_CUDA_ARCHITECTURES."""
    script = folder / "choose.cmake"
    script.write_text(SCRIPT)
    options = {"CUDA": choice, "CUDA_ARCHITECTURES": given}
    defines = [f"-DDDSM_{name}={value}" for name, value in options.items()]
    return subprocess.run(
        ["cmake", *defines, f"-DPython_EXECUTABLE={sys.executable}", "-P", str(script)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def chosen(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """(architectures, reason)."""
    assert done.returncode == 0, done.stderr
    architectures, reason = done.stderr.strip().removeprefix("chosen: ").split("|")
    return architectures, reason


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a fake libcuda.so.1."""
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "driver.cpp"
    source.write_text(DRIVER)
    command = ["g++", "-shared", "-fPIC", str(source), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True)
    return folder


@needs_cmake
@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ("90", "90a-real"),
        ("80", "80-real"),
        ("86,86,89", "86-real;89-real"),
        ("75,86", "86-real"),
        ("87", "80-virtual"),  # not in the list: portable code
        ("100,120", "80-virtual"),  # newer than the list
        ("90,120", "90a-real;80-virtual"),
    ],
)
def test_auto_builds_for_the_gpus_of_the_machine(
    tmp_path: Path, driver: Path, gpus: str, expected: str
) -> None:
    done = choose(tmp_path, "AUTO", LD_LIBRARY_PATH=str(driver), FAKE_GPUS=gpus)
    assert chosen(done) == (expected, "")


@needs_cmake
def test_the_build_is_for_hidden_gpus_too(tmp_path: Path, driver: Path) -> None:
    environment = {"LD_LIBRARY_PATH": str(driver), "FAKE_GPUS": "90", "CUDA_VISIBLE_DEVICES": ""}
    assert chosen(choose(tmp_path, "AUTO", **environment)) == ("90a-real", "")


@needs_cmake
@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        ("", "no GPU was seen when it was built"),
        ("error 803", "no GPU was seen when it was built, the driver reports error 803"),
        (
            "75",
            "the GPU seen when it was built has compute capability 7.5, the kernels need 8.0",
        ),
    ],
)
def test_auto_builds_nothing_for_a_reason(
    tmp_path: Path, driver: Path, gpus: str, reason: str
) -> None:
    done = choose(tmp_path, "AUTO", LD_LIBRARY_PATH=str(driver), FAKE_GPUS=gpus)
    assert chosen(done) == ("", reason)


@needs_cmake
def test_a_driver_that_does_not_load_is_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("not an ELF file")
    done = choose(tmp_path, "AUTO", LD_LIBRARY_PATH=str(tmp_path))
    reason = "no GPU was seen when it was built, the driver's libcuda.so.1 does not load"
    assert chosen(done) == ("", reason)


@needs_cmake
@pytest.mark.parametrize(
    ("choice", "given", "expected"),
    [
        ("ON", "", (ALL, "")),
        ("ON", "90a-real", ("90a-real", "")),
        ("AUTO", "86-real;80-virtual", ("86-real;80-virtual", "")),
        ("OFF", "90a-real", ("", "it was built with DDSM_CUDA=OFF")),
    ],
)
def test_what_is_named_is_built(
    tmp_path: Path, driver: Path, choice: str, given: str, expected: tuple[str, str]
) -> None:
    done = choose(tmp_path, choice, given, LD_LIBRARY_PATH=str(driver), FAKE_GPUS="89")
    assert chosen(done) == expected


@needs_cmake
def test_another_choice_is_refused(tmp_path: Path) -> None:
    done = choose(tmp_path, "yes")
    assert done.returncode != 0
    assert "DDSM_CUDA is 'yes'; need AUTO, ON or OFF" in done.stderr


@needs_cmake
def test_both_digests_of_the_sources_agree(tmp_path: Path) -> None:
    files = {"b.cpp": "b", "a/z.h": "z\n", "a.cu": "", "a-b/c.cuh": "c", "notes.txt": "not code"}
    for name, text in files.items():
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    script = tmp_path / "hash.cmake"
    script.write_text(
        f"include({ROOT}/csrc/bindings/sources_hash.cmake)\nmessage(${{sources_hash}})"
    )

    def digests() -> tuple[str, str]:
        command = ["cmake", "-P", str(script)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stderr.strip(), _library.sources_hash(tmp_path / "csrc")

    first = digests()
    assert first[0] == first[1]
    (tmp_path / "csrc" / "a" / "z.h").write_text("y\n")
    second = digests()
    assert second[0] == second[1] != first[0]


FAKE_CMAKE = """#!/bin/sh
printf '%s\\n' "$@" >> "$LOG"
if [ "$1" = --install ]; then mkdir -p "$4" && touch "$4/libddsm_cpu.so"; fi
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What setup.py needs, and a `cmake` that notes its arguments and installs an empty file."""
    pytest.importorskip("pybind11")
    pytest.importorskip("setuptools")
    folder = tmp_path / "project"
    (folder / "ddsm_ext").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "ddsm_ext/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text(FAKE_CMAKE)
    cmake.chmod(0o755)
    return folder


def build_in_place(project: Path, **environment: str) -> list[str]:
    """Run setup.py; return all arguments that cmake got."""
    log = project.parent / "log"
    log.unlink(missing_ok=True)
    path = f"{project.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DDSM_")}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=project,
        env={**kept, "PATH": path, "LOG": str(log), **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return log.read_text().splitlines()


@pytest.mark.parametrize(
    ("environment", "cuda", "architectures"),
    [
        ({}, "AUTO", ""),
        ({"DDSM_CUDA": ""}, "AUTO", ""),
        ({"DDSM_CUDA": "ON"}, "ON", ""),
        ({"DDSM_CUDA": "ON", "DDSM_CUDA_ARCHITECTURES": "80-real;90a-real"}, "ON",
         "80-real;90a-real"),
        ({"DDSM_CUDA": "ON", "DDSM_CMAKE_ARGS": "-DDDSM_CUDA=OFF"}, "OFF", ""),
    ],
)  # fmt: skip
def test_options_of_the_environment_reach_cmake_every_time(
    project: Path, environment: dict[str, str], cuda: str, architectures: str
) -> None:
    options = dict(
        argument.removeprefix("-D").split("=", 1)
        for argument in build_in_place(project, **environment)
        if argument.startswith("-DDDSM_")
    )
    assert options["DDSM_CUDA"] == cuda
    assert options["DDSM_CUDA_ARCHITECTURES"] == architectures


def test_a_cuda_library_of_an_earlier_build_goes(project: Path) -> None:
    package = project / "ddsm_ext"
    (package / "libddsm_cuda.so").touch()
    build_in_place(project)
    assert {file.name for file in package.glob("*.so")} == {"libddsm_cpu.so"}
