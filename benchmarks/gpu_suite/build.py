"""Builds the package into FOLDER/site for the GPU of this machine and sm_90a; needs no network.

python benchmarks/gpu_suite/build.py FOLDER
"""

from __future__ import annotations

import shutil
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


def version() -> str:
    """Return the package's version; importing it loads no library."""
    sys.path.insert(0, str(ROOT))
    import ddsm_ext

    return ddsm_ext.__version__


def build(folder: Path, targets: str) -> None:
    """Do what `pip install` does but without setuptools, whose version here may be too old."""
    import pybind11  # of a build alone: who imports the rest need not have it

    cmake, package = folder / "cmake", folder / "site" / "ddsm_ext"
    options = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "DDSM_VERSION": version(),
        "DDSM_CUDA": "ON",
        "DDSM_CUDA_ARCHITECTURES": targets,
    }
    configure = ["cmake", "-S", str(ROOT), "-B", str(cmake), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(cmake)], check=True)
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        ROOT / "ddsm_ext", package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    subprocess.run(["cmake", "--install", str(cmake), "--prefix", str(package)], check=True)


def main() -> int:
    """Build, then check that both libraries load."""
    folder, start = Path(sys.argv[1]).resolve(), time.monotonic()
    targets = architectures(torch.cuda.get_device_capability())
    build(folder, targets)
    print(f"built for {targets} in {time.monotonic() - start:.0f} s", flush=True)
    loads = "import sys; from ddsm_ext import _library; sys.exit(_library.cuda_missing_reason or 0)"
    return subprocess.run([sys.executable, "-c", loads], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
