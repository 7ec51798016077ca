"""CMake's CUDA library links: beside a stand-in for libtorch_cuda.so it loads with all its ops."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_kernels import emulated

# One with code of its own for every kernel, Hopper's included.
ARCHITECTURE = "90a-real"
# What the library takes from libtorch_cuda.so, which a torch for the CPU lacks: functions of C.
FROM_TORCH_CUDA = ("aoti_torch_get_current_cuda_stream",)
LOAD = """
import ctypes, sys, torch
from ddsm_ext import _library
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
torch.ops.load_library(sys.argv[2])
for schema in torch._C._jit_get_all_schemas():
    if schema.name.startswith("ddsm_ext::") and _library.has_kernel(schema.name[10:], "cuda"):
        print(schema.name[10:])
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("nvcc", "cmake", "ninja")),
        reason="nvcc, cmake or ninja is not on PATH",
    ),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libddsm_cuda.so as an installation builds it, for one architecture."""
    pybind11 = pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("build")
    options = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "DDSM_CUDA": "ON",
        "DDSM_CUDA_ARCHITECTURES": ARCHITECTURE,
    }
    configure = ["cmake", "-S", str(emulated.ROOT), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    for command in (configure, ["cmake", "--build", str(folder), "--target", "ddsm_cuda"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder / "libddsm_cuda.so"


@pytest.fixture(scope="module")
def torch_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libtorch_cuda.so with the functions above, none of which is called here."""
    folder = tmp_path_factory.mktemp("torch_cuda")
    source, built = folder / "torch_cuda.c", folder / "libtorch_cuda.so"
    source.write_text("".join(f"int {name}() {{ return 1; }}\n" for name in FROM_TORCH_CUDA))
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", str(source)]
    subprocess.run([*command, "-o", str(built)], check=True)
    return built


def test_every_symbol_resolves_and_every_cuda_op_is_registered(
    library: Path, torch_cuda: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(torch_cuda), str(library)],
        env={**os.environ, "LD_BIND_NOW": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    bindings = (emulated.ROOT / "csrc" / "bindings").glob("cuda_*.cpp")
    text = "".join(file.read_text() for file in bindings)
    named = set(re.findall(r'm\.impl\("(\w+)"', text))
    assert len(named) > 8
    assert set(done.stdout.split()) == named


def test_it_names_no_folder_of_the_build(library: Path) -> None:
    named = re.findall(rb"[ -~]*csrc/[ -~]*", library.read_bytes())
    assert len(named) > 5
    assert [text for text in named if not text.startswith(b"csrc/")] == []
