"""Loading the compiled libraries: what is there is described, what is wrong is one sentence."""

import re
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
    # The finder of an editable install, or an installation, would give what the copy lacks.
    prepare = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]; "
        "from importlib import metadata; metadata.distributions = lambda **_: []; "
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
    for file in [*PACKAGE.glob("*.py"), *_library.folder.glob("*.so")]:
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
    assert f"compiled library is missing, built: nothing for this Python in {package_copy}" in error
    assert "installed: none" in error
    assert f"torch {torch.__version__}" in error
    assert "run `pip install .` again" in error


def test_stale_library_names_both_versions(package_copy: Path, tmp_path: Path) -> None:
    init = package_copy / "__init__.py"
    init.write_text(init.read_text().replace(ddsm_ext.__version__, "99.0.0"))
    error = import_copy(package_copy.parent)
    assert f"built: ddsm_ext {ddsm_ext.__version__}" in error
    assert "running: ddsm_ext 99.0.0" in error
    assert "delete" not in error
    (package_copy.parent / "csrc").mkdir()  # a source folder, whose libraries pip does not replace
    assert f"; delete {package_copy}/*.so and run `pip install .`" in import_copy(tmp_path)


def test_damaged_library_is_one_sentence(package_copy: Path) -> None:
    (package_copy / "libddsm_cpu.so").write_bytes(b"not an ELF file")
    error = import_copy(package_copy.parent)
    assert "MissingLibrary: ddsm_ext: the compiled library does not load (" in error
    assert "run `pip install .` again" in error


def test_module_of_another_python_is_refused(package_copy: Path) -> None:
    for module in package_copy.glob("_native*.so"):
        module.rename(package_copy / "_native.cpython-399-x86_64-linux-gnu.so")
    error = import_copy(package_copy.parent)
    assert "compiled library is missing, built: nothing for this Python" in error


def test_old_torch_is_refused_by_version(package_copy: Path) -> None:
    statement = "import torch; torch.__version__ = '2.9.1'; import ddsm_ext._library"
    error = import_copy(package_copy.parent, statement)
    assert "torch is 2.9.1, the compiled library needs torch >= 2.10" in error


def test_cuda_is_present_or_absent_with_a_reason_and_what_helps() -> None:
    built = _library.native.build_info()
    assert bool(built["cuda_architectures"]) != bool(built["cuda_missing"])
    if not _library.cuda_missing_reason:
        assert torch.version.cuda is not None
        assert built["cuda_architectures"]
        return
    if torch.version.cuda is None:
        assert f"torch {torch.__version__} is built without CUDA" in _library.cuda_missing_reason
    if built["cuda_missing"]:
        assert f"no CUDA library: {built['cuda_missing']}; " in _library.cuda_missing_reason
        assert "`DDSM_CUDA=ON pip install .`" in _library.cuda_missing_reason


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (None, "reason ddsm_ext has no CUDA library: "),
        (b"not an ELF file", "reason the CUDA library does not load ("),
    ],
)
def test_a_torch_with_cuda_is_told_what_builds_the_library(
    package_copy: Path, file: bytes | None, expected: str
) -> None:
    library = package_copy / "libddsm_cuda.so"
    library.unlink(missing_ok=True)
    if file:
        library.write_bytes(file)
    statement = (
        "import torch, warnings; warnings.simplefilter('ignore'); torch.version.cuda = '13.0'; "
        "from ddsm_ext import _library; print('reason', _library.cuda_missing_reason)"
    )
    reason = import_copy(package_copy.parent, statement)
    assert reason.startswith(expected)
    assert "`DDSM_CUDA=ON pip install .` in the source folder" in reason
    assert "is built without CUDA" not in reason


def test_native_module_is_there_without_the_library_module(package_copy: Path) -> None:
    statement = "from ddsm_ext import _native; print(_native.active_isa())"
    assert import_copy(package_copy.parent, statement) == _library.native.active_isa()


def test_libraries_name_no_folder_of_the_build() -> None:
    """Sources appear in error texts; of their paths only what lies below the source folder."""
    named = 0
    for library in _library.folder.glob("*.so"):
        for text in re.findall(rb"[ -~]*csrc/[ -~]*", library.read_bytes()):
            assert text.startswith(b"csrc/"), f"{library.name} holds {text.decode()}"
            named += 1
    assert named > 5
    with pytest.raises(
        RuntimeError, match=r"(^|\s)csrc/bindings/linear_args\.h:\d+, sliced_linear: "
    ):
        torch.ops.ddsm_ext.sliced_linear(torch.ones(2, 3), torch.ones(4, 2), None, 4)


def test_top_level_import_loads_no_torch(tmp_path: Path) -> None:
    statement = (
        "import sys, ddsm_ext, ddsm_ext.models.unet, ddsm_ext.graph.count, ddsm_ext.width;"
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
