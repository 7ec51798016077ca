"""Runs CMake and Ninja and places the libraries in ddsm_ext/; sources and flags: CMakeLists.txt."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def package_version() -> str:
    text = (ROOT / "ddsm_ext" / "__init__.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


class CMakeBuild(build_ext):
    """Builds all libraries of CMakeLists.txt as the one extension `ddsm_ext._native`."""

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp).resolve()
        configure = [
            "cmake",
            *("-S", str(ROOT)),
            *("-B", str(build)),
            *("-G", "Ninja"),
            # Named on every run: the build folder outlives pip's build environment, whose ninja
            # and pybind11 would otherwise be remembered, and so would the last run's options.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDDSM_VERSION={package_version()}",
            f"-DDDSM_CUDA={os.environ.get('DDSM_CUDA') or 'AUTO'}",
            f"-DDDSM_CUDA_ARCHITECTURES={os.environ.get('DDSM_CUDA_ARCHITECTURES', '')}",
            *os.environ.get("DDSM_CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        self.install_libraries(Path(self.get_ext_fullpath(ext.name)).resolve().parent)

    def copy_extensions_to_source(self) -> None:
        """Called for `--inplace` and editable installs."""
        self.install_libraries(ROOT / "ddsm_ext")

    def install_libraries(self, place: Path) -> None:
        for library in place.glob("libddsm_*.so"):
            library.unlink()  # a CUDA library of an earlier build would be taken for this one's
        build = Path(self.build_temp).resolve()
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(place)], check=True)


setup(
    ext_modules=[Extension("ddsm_ext._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
