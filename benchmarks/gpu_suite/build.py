"""Builds the package into FOLDER/site for the GPU of this machine and sm_90a; needs no network.

python benchmarks/gpu_suite/build.py FOLDER
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def architectures(capability: tuple[int, int]) -> str:
    """Return CMake's names of a GPU's own architecture and of Hopper's, whose kernels are apart."""
    own = f"{capability[0]}{capability[1]}"
    return ";".join(dict.fromkeys(["90a-real", "90a-real" if own == "90" else f"{own}-real"]))


def main() -> int:
    """Build, then check that both libraries load."""
    folder, start = Path(sys.argv[1]).resolve(), time.monotonic()
    targets = architectures(torch.cuda.get_device_capability())
    options = f"-DDDSM_CUDA=ON -DDDSM_CUDA_ARCHITECTURES={targets}"
    build = ["build", "--build-temp", str(folder / "cmake"), "--build-lib", str(folder / "site")]
    subprocess.run(
        [sys.executable, "setup.py", "-q", *build],
        cwd=ROOT,
        env={**os.environ, "DDSM_CMAKE_ARGS": options},
        check=True,
    )
    print(f"built for {targets} in {time.monotonic() - start:.0f} s", flush=True)
    loads = "import sys; from ddsm_ext import _library; sys.exit(_library.cuda_missing_reason or 0)"
    return subprocess.run([sys.executable, "-c", loads], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
