"""Loads the compiled libraries once and explains a missing, stale or mismatched build.

Importing this module loads torch and the CPU library, and the CUDA library where both this build
and the running torch have CUDA. Nothing here touches a GPU.

The libraries lie beside this file, in an installed package and after an editable install. A source
folder without them borrows those of an installed ddsm_ext of the same version and C++ sources.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import platform
import sys
import warnings
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import torch

import ddsm_ext
from ddsm_ext.settings import MissingLibrary

_HERE = Path(__file__).resolve().parent
_NATIVE = "ddsm_ext._native"
_REINSTALL = "run `pip install .` again in the source folder"
_BUILD_CUDA = "`DDSM_CUDA=ON pip install .` in the source folder, with nvcc on PATH, builds it"


def _running() -> str:
    return (
        f"running: ddsm_ext {ddsm_ext.__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {platform.system()} {platform.machine()}"
    )


def _check_torch() -> None:
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < (2, 10):
        raise MissingLibrary(
            f"ddsm_ext: torch is {torch.__version__}, the compiled library needs torch >= 2.10; "
            "run `pip install 'torch>=2.10'`"
        )


def _native_spec(folder: Path) -> ModuleSpec | None:
    return PathFinder.find_spec(_NATIVE, [str(folder)])


def _holds_libraries(folder: Path) -> bool:
    """True if the CPU library and the module for this Python are there."""
    return (folder / "libddsm_cpu.so").exists() and _native_spec(folder) is not None


def _installed() -> list[tuple[str, Path]]:
    """Version and folder of each installed ddsm_ext with libraries, this package excepted."""
    found = []
    for distribution in metadata.distributions(name="ddsm_ext"):
        for file in distribution.files or ():
            if file.name == "libddsm_cpu.so":
                folder = Path(str(distribution.locate_file(file))).resolve().parent
                found.append((distribution.version, folder))
    return [(version, folder) for version, folder in found if folder != _HERE]


def _find_libraries() -> Path:
    """Return the folder of the libraries: this one, else an installed one of this version."""
    if _holds_libraries(_HERE):
        return _HERE
    installed = _installed()
    for version, folder in installed:
        if version == ddsm_ext.__version__ and _holds_libraries(folder):
            return folder
    others = ", ".join(f"ddsm_ext {version} in {folder}" for version, folder in installed)
    raise MissingLibrary(
        f"ddsm_ext: the compiled library is missing, built: nothing for this Python in {_HERE}, "
        f"installed: {others or 'none'}, {_running()}; {_REINSTALL}"
    )


def _import_native(folder: Path) -> ModuleType:
    spec = _native_spec(folder)
    if folder != _HERE and spec is not None and spec.loader is not None:
        # Not through the package's search path: of another folder, this one module alone is taken.
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[_NATIVE] = vars(ddsm_ext)["_native"] = module
    return importlib.import_module(_NATIVE)


def _load_native(folder: Path) -> ModuleType:
    try:
        torch.ops.load_library(folder / "libddsm_cpu.so")
        native = _import_native(folder)
    except (ImportError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise MissingLibrary(
            f"ddsm_ext: the compiled library does not load ({reason}), {_running()}; {_REINSTALL}"
        ) from error
    _check_build(native.build_info(), folder)
    return native


def _check_build(info: dict[str, str], folder: Path) -> None:
    """Refuse libraries of another version, and borrowed ones of other C++ sources.

    Raises:
        ImportError: they do not belong to this package.
    """
    built, sources = info["version"], _HERE.parent / "csrc"
    if built != ddsm_ext.__version__:
        # An installation does not replace libraries that lie in the source folder itself.
        first = f"delete {folder}/*.so and " if sources.exists() else ""
        raise MissingLibrary(
            f"ddsm_ext: the compiled library is stale, built: ddsm_ext {built}, {_running()}; "
            f"{first}{_REINSTALL}"
        )
    if folder != _HERE and sources.exists() and info.get("sources") != sources_hash(sources):
        raise MissingLibrary(
            f"ddsm_ext: the compiled library in {folder} was built from other C++ sources than "
            f"those in {sources}; {_REINSTALL}"
        )


def sources_hash(folder: Path) -> str:
    """Return the digest of all C++ and CUDA files, as csrc/bindings/sources_hash.cmake makes it."""
    kinds = (".h", ".cpp", ".cu", ".cuh")
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.suffix in kinds}
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    listing = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(listing.encode()).hexdigest()


def _load_cuda(folder: Path, not_built: str) -> str:
    """Load the CUDA library; return "" where it is loaded, else why not and what helps."""
    library = folder / "libddsm_cuda.so"
    problems = []
    if not library.exists():
        why = not_built or "the file is lost"
        problems.append(f"ddsm_ext has no CUDA library: {why}; {_BUILD_CUDA}")
    if torch.version.cuda is None:
        problems.append(
            f"torch {torch.__version__} is built without CUDA; "
            "`pip install --force-reinstall torch` installs PyPI's, which has it on Linux"
        )
    if problems:
        return "; ".join(problems)
    try:
        torch.ops.load_library(library)
    except OSError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        problem = f"the CUDA library does not load ({cause}); {_BUILD_CUDA} again"
        warnings.warn(f"ddsm_ext: {problem}, {_running()}", stacklevel=2)
        return problem
    return ""


_check_torch()
folder: Path = _find_libraries()  # where the libraries are
native: ModuleType = _load_native(folder)
_native = native  # which `from ddsm_ext import _native` takes
# "" or a phrase: why the CUDA library is not loaded, and the command that builds it.
cuda_missing_reason: str = _load_cuda(folder, native.build_info().get("cuda_missing", ""))


@cache
def has_kernel(op: str, device_type: str) -> bool:
    """True if the compiled libraries hold a kernel of `ddsm_ext::<op>` for "cpu" or "cuda"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"ddsm_ext::{op}", key)
