"""The CUDA bindings on CPU tensors, with the emulated kernels: checks, views, autograd, dtypes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from cuda_kernels import emulated

import ddsm_ext

OPS = ("attention", "conv2d", "group_norm", "linear", "sinusoidal_embedding")
BINDINGS = tuple(f"cuda_{op}.cpp" for op in OPS)


def test_bindings(tmp_path):
    here = Path(__file__).parent / "bindings"
    sources = [here / "on_cpu.cpp", *(emulated.ROOT / "csrc" / "bindings" / b for b in BINDINGS)]
    torch_headers = emulated.ROOT / "csrc" / "third_party" / "torch" / "include"
    flags = ("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-isystem{torch_headers}")
    swap = ("-include", str(here / "on_cpu.h"))
    objects = emulated.compile_objects(tmp_path, sources, *flags, *swap)
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    library = emulated.link(tmp_path, [*objects, *emulated.objects()], str(torch_cpu))
    package = Path(ddsm_ext.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, str(here / "run.py"), str(library)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(here.parents[1])])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
