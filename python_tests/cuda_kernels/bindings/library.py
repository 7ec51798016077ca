"""The CUDA bindings for CPU tensors, with the emulated kernels below them, as one library.

With python_tests on PYTHONPATH, `python -m cuda_kernels.bindings.library FOLDER` builds it there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from cuda_kernels import emulated

import ddsm_ext

HERE = Path(__file__).parent
OPS = (
    "activation", "attention", "conv2d", "group_norm", "layer_norm", "linear", "resample",
    "sinusoidal_embedding",
)  # fmt: skip


def build(folder: Path) -> Path:
    """Compile and link it in `folder`."""
    bindings = emulated.ROOT / "csrc" / "bindings"
    sources = [HERE / "on_cpu.cpp", *(bindings / f"cuda_{op}.cpp" for op in OPS)]
    torch_headers = emulated.ROOT / "csrc" / "third_party" / "torch" / "include"
    flags = ("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-isystem{torch_headers}")
    swap = ("-include", str(HERE / "on_cpu.h"))
    objects = emulated.compile_objects(folder, sources, *flags, *swap)
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return emulated.link(folder, [*objects, *emulated.objects()], str(torch_cpu))


def run_with(library: Path, script: str, *arguments: str) -> str:
    """Run a script of this folder in a process of its own; its output."""
    package = Path(ddsm_ext.__file__).resolve().parents[1]
    paths = os.pathsep.join([str(package), str(HERE.parents[1])])
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(library), *arguments],
        env={**os.environ, "PYTHONPATH": paths, "DDSM_TEST_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    print(build(Path(sys.argv[1])))
