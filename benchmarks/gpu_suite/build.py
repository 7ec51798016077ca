"""Libraries for the GPU in FOLDER/site: those brought along if they load, else built here.

    python -m gpu_suite.build FOLDER               # for this machine's GPU and sm_90a
    python -m gpu_suite.build --prebuild FOLDER    # for sm_90a, on a machine that has no GPU

Needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ABOUT = "build.json"
_LIBRARIES = ("libddsm_cpu.so", "libddsm_cuda.so")
LOADS = """
import sys, torch
from ddsm_ext import _library
reason = _library.cuda_missing_reason
if reason: sys.exit(reason)
if torch.cuda.is_available():
    x = torch.ones(1, 8, 4, 4, device="cuda")
    torch.ops.ddsm_ext.sliced_conv2d(x, None, torch.ones(8, 8, 1, 1, device="cuda"), None, 8, 8,
                                     1, 0, False)
    torch.cuda.synchronize()
"""


def fingerprint(root: Path = ROOT) -> str:
    """Return a hash of all that the libraries are compiled from in a repository."""
    found = hashlib.sha256()
    files = [path for path in (root / "csrc").rglob("*") if path.is_file()]
    for path in sorted([*files, root / "CMakeLists.txt", *_atom_sources(root)]):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def _atom_sources(root: Path) -> list[Path]:
    return sorted((root / "python_tests" / "cuda_kernels" / "atoms").glob("*.*"))


def architectures(capability: tuple[int, int]) -> str:
    """Return CMake's names of a GPU's own architecture and of Hopper's, whose kernels are apart."""
    own = f"{capability[0]}{capability[1]}"
    return ";".join(dict.fromkeys(["90a-real", "90a-real" if own == "90" else f"{own}-real"]))


def version() -> str:
    """Return the package's version; importing it loads no library."""
    sys.path.insert(0, str(ROOT))
    import ddsm_ext

    return ddsm_ext.__version__


def put_sources(package: Path) -> None:
    """Copy the package's Python files as they are now; what was compiled or stands in stays."""
    for old in package.rglob("*.py"):
        if old != package / "_native.py":
            old.unlink()
    shutil.copytree(
        ROOT / "ddsm_ext",
        package,
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        dirs_exist_ok=True,
    )


def compile_libraries(folder: Path, targets: str, *, native: bool) -> None:
    """Do what `pip install` does but without setuptools, whose version here may be too old.

    Args:
        folder: gets cmake/ and site/.
        targets: GPU architectures as CMake has them.
        native: make the Python module, too; else a stand-in takes its place.
    """
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
    wanted = [] if native else ["--target", "ddsm_cpu", "ddsm_cuda"]
    subprocess.run(["cmake", "--build", str(cmake), *wanted], check=True)
    shutil.rmtree(package, ignore_errors=True)
    put_sources(package)
    if native:
        subprocess.run(["cmake", "--install", str(cmake), "--prefix", str(package)], check=True)
        return
    for name in _LIBRARIES:
        shutil.copy2(cmake / name, package / name)
        subprocess.run(["strip", "--strip-unneeded", str(package / name)], check=True)
    put_stand_in(package, targets)


def put_stand_in(package: Path, targets: str) -> None:
    """Write `_native.py`, which takes the Python module's place; see native_stand_in.py."""
    built = {
        "version": version(),
        "compiler": "",
        "torch_target": "2.10",
        "cuda_toolkit": "13.0",
        "cuda_architectures": targets.replace(";", " "),
        "sanitizer": "",
    }
    text = Path(__file__).with_name("native_stand_in.py").read_text(encoding="utf-8")
    text = text.replace("BUILT: dict[str, str] = {}", f"BUILT: dict[str, str] = {built!r}")
    (package / "_native.py").write_text(text, encoding="utf-8")


def compile_atoms(folder: Path) -> None:
    """Make FOLDER/atoms, a CUDA program without torch, and FOLDER/atoms.expected beside it."""
    work = folder / "cmake" / "atoms"
    work.mkdir(parents=True, exist_ok=True)
    include = [f"-I{ROOT / 'csrc' / 'include'}", "-std=c++17"]
    sources = [str(path) for path in _atom_sources(ROOT) if path.suffix == ".cpp"]
    emulator = [str(path) for path in sorted((ROOT / "csrc/cuda/emulator").glob("*.cpp"))]
    emulated = work / "emulated"
    flags = ["-O1", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"]
    for_cpu = subprocess.Popen(["g++", *include, *flags, *sources, *emulator, "-o", str(emulated)])
    target = "-gencode=arch=compute_90a,code=sm_90a"
    command = ["nvcc", *include, "-O3", "-Xlinker=-s", target, "-x", "cu", *sources]
    subprocess.run([*command, "-o", str(folder / "atoms")], check=True)
    if for_cpu.wait() != 0:
        raise subprocess.CalledProcessError(for_cpu.returncode, "g++")
    subprocess.run([str(emulated), "--dump", str(folder / "atoms.expected")], check=True)


def build(folder: Path, targets: str, *, native: bool = True) -> dict[str, Any]:
    """Build all; returns what is noted beside it."""
    start = time.monotonic()
    compile_libraries(folder, targets, native=native)
    compile_atoms(folder)
    about = {"targets": targets, "fingerprint": fingerprint(), "native": native}
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    return about | {"built_s": round(time.monotonic() - start, 1)}


def reason_against(folder: Path, trial: str = LOADS) -> str | None:
    """Return why what lies in a folder cannot be used as it is; None: it can.

    Args:
        folder: what `build` was given.
        trial: Python code that ends with an error where the libraries are of no use.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "nothing was brought along"
    if about.get("fingerprint") != fingerprint():
        return "the sources are others than those it was built from"
    put_sources(folder / "site" / "ddsm_ext")
    # The stage's environment has the site on its path.
    done = subprocess.run([sys.executable, "-c", trial], capture_output=True, text=True)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return None if done.returncode == 0 else lines[-1]


def prebuild(folder: Path) -> int:
    """Build for sm_90a without a GPU, for any version of Python; only what travels is left."""
    about = build(folder, "90a-real", native=False)
    shutil.rmtree(folder / "cmake")
    files = [path for path in folder.rglob("*") if path.is_file()]
    mebibytes = sum(path.stat().st_size for path in files) / 2**20
    print(f"built {len(files)} files of {mebibytes:.1f} MiB in {about['built_s']:.0f} s: {folder}")
    return 0


def main(words: Sequence[str]) -> int:
    """Use what was brought along or build, then check that both libraries load."""
    parser = argparse.ArgumentParser(prog="gpu_suite.build")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prebuild", action="store_true")
    arguments = parser.parse_args(words)
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.prebuild:
        return prebuild(folder)
    if os.environ.get("DDSM_TEST_DEVICE") == "cpu":
        print(json.dumps({"used": "the installed package"}))
        return 0
    reason = reason_against(folder)
    if reason is None:
        print(json.dumps({"used": "brought along"}))
        return 0
    print(f"building here: {reason}", flush=True)
    import torch

    about = build(folder, architectures(torch.cuda.get_device_capability()))
    loaded = reason_against(folder)
    print(loaded or "both libraries load")
    print(json.dumps({"used": "built here", "because": reason, **about}))
    return 0 if loaded is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
