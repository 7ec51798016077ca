"""Loading the compiled libraries: what is there is described, what is wrong is one sentence."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ddsm_ext
from ddsm_ext import _library

PACKAGE = Path(ddsm_ext.__file__).parent


def import_copy(folder: Path, statement: str = "import ddsm_ext._library") -> str:
    """Import the package copied to `folder` in a new process; return the last line of its error."""
    # The finder of an editable install would find there what the copy lacks.
    prepare = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]; "
        f"sys.path.insert(0, {str(folder)!r}); "
    )
    result = subprocess.run(
        [sys.executable, "-c", prepare + statement],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stderr.strip().splitlines()[-1] if result.stderr else result.stdout.strip()


@pytest.fixture
def package_copy(tmp_path: Path) -> Path:
    """A copy of what loading needs: the libraries and the top-level modules."""
    copy = tmp_path / "ddsm_ext"
    copy.mkdir()
    for file in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*.so")]:
        shutil.copy(file, copy)
    return copy


def test_build_information_is_complete() -> None:
    info = _library.native.build_info()
    assert info["version"] == ddsm_ext.__version__
    assert info["torch_target"] == "2.10"
    assert info["compiler"]


def test_active_isa_is_an_available_one() -> None:
    available = _library.native.available_isas()
    assert "portable" in available
    assert _library.native.active_isa() == available[-1]


def test_unknown_isa_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'sse9'; need portable, avx2, avx512 or avx512_bf16"):
        _library.native.set_isa("sse9")


def test_missing_library_says_what_to_do(package_copy: Path) -> None:
    (package_copy / "libddsm_cpu.so").unlink()
    error = import_copy(package_copy.parent)
    assert "compiled library is missing" in error
    assert f"torch {torch.__version__}" in error
    assert "run `pip install .` again" in error


def test_stale_library_names_both_versions(package_copy: Path) -> None:
    init = package_copy / "__init__.py"
    init.write_text(init.read_text().replace(ddsm_ext.__version__, "99.0.0"))
    error = import_copy(package_copy.parent)
    assert f"built: ddsm_ext {ddsm_ext.__version__}" in error
    assert "running: ddsm_ext 99.0.0" in error


def test_damaged_library_is_one_sentence(package_copy: Path) -> None:
    (package_copy / "libddsm_cpu.so").write_bytes(b"not an ELF file")
    error = import_copy(package_copy.parent)
    assert error.startswith("ImportError: ddsm_ext: the compiled library does not load (")
    assert "run `pip install .` again" in error


def test_module_of_another_python_is_refused(package_copy: Path) -> None:
    for module in package_copy.glob("_native*.so"):
        module.rename(package_copy / "_native.cpython-399-x86_64-linux-gnu.so")
    error = import_copy(package_copy.parent)
    assert "compiled library does not load" in error


def test_old_torch_is_refused_by_version(package_copy: Path) -> None:
    statement = "import torch; torch.__version__ = '2.9.1'; import ddsm_ext._library"
    error = import_copy(package_copy.parent, statement)
    assert "torch is 2.9.1, the compiled library needs torch >= 2.10" in error


def test_cuda_is_absent_with_a_reason_or_present() -> None:
    if _library.has_cuda():
        assert torch.version.cuda is not None
    else:
        assert _library.cuda_missing_reason


def test_top_level_import_loads_no_torch(tmp_path: Path) -> None:
    statement = (
        "import sys, ddsm_ext, ddsm_ext.models.config, ddsm_ext.models.macs, ddsm_ext.width;"
        "print(sorted(m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", statement],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
