"""What `ddsm checks` says of the libraries and the GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ddsm_ext import _library
from ddsm_ext.cli import checks


def lines_of(text: str) -> dict[str, str]:
    """First word of each line, up to the column of values -> its value."""
    return {line[:21].strip(): line[22:] for line in text.splitlines() if line.startswith("  ")}


def library(native: object = _library.native, reason: str = "") -> SimpleNamespace:
    """The package's libraries with another native one, or another reason for none for CUDA."""
    return SimpleNamespace(native=native, folder=_library.folder, cuda_missing_reason=reason)


def test_why_the_cuda_library_is_missing_and_what_builds_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = "ddsm_ext has no CUDA library: nvcc was not found; `DDSM_CUDA=ON pip install .` ..."
    assert checks.check_libraries(library(reason=reason), "torch finds none", {})
    lines = lines_of(capsys.readouterr().out)
    assert lines["CUDA kernels"] == f"not loaded, {reason}"
    assert lines["GPU"] == "torch finds none"
    assert lines["libraries"] == str(_library.folder)
    assert lines["cuda_architectures"] == _library.native.build_info()["cuda_architectures"]


def test_a_gap_follows_every_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "check_ops", lambda device: True)
    assert checks.run(SimpleNamespace(device="cpu")) == 0
    lines = capsys.readouterr().out.splitlines()
    names = (*checks.PACKAGES, *_library.native.build_info())
    for name in names:
        assert any(line.startswith(f"  {name} ") for line in lines), name


@pytest.mark.parametrize(
    ("architectures", "value", "expected"),
    [
        ("80-real 90a-real", None, "on, where"),
        ("80-real 90a-real", "1", "on, where"),
        ("80-real 90a-real", "0", "off: DDSM_SM90A=0"),
        ("80-real 80-virtual", None, "not built"),
        ("", "0", "not built; also off: DDSM_SM90A=0"),
    ],
)
def test_whether_the_sm_90a_path_is_on(
    architectures: str, value: str | None, expected: str
) -> None:
    environment = {} if value is None else {"DDSM_SM90A": value}
    assert checks.sm90a_path(architectures, environment).startswith(expected)


# NVIDIA's rules: machine code runs within its generation on the same or a later revision, that of
# an "a" architecture on exactly its own; PTX on all later ones.
@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("90a-real", (9, 0), True),
        ("90a-real", (10, 0), False),
        ("90a-real", (8, 9), False),
        ("86-real", (8, 6), True),
        ("86-real", (8, 9), True),
        ("86-real", (8, 0), False),
        ("80-real", (9, 0), False),
        ("80-virtual", (9, 0), True),
        ("80-virtual", (12, 0), True),
        ("80-virtual", (7, 5), False),
        ("86-real 90a-real", (9, 0), True),
        ("", (9, 0), False),
    ],
)
def test_which_gpus_a_library_serves(
    architectures: str, capability: tuple[int, int], expected: bool
) -> None:
    assert checks.serves(architectures, capability) is expected


@pytest.mark.parametrize(("built", "served"), [("86-real", False), ("90a-real", True)])
def test_a_gpu_that_the_library_is_not_built_for_fails(
    built: str, served: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    class Native:
        def build_info(self) -> dict[str, str]:
            return {**_library.native.build_info(), "cuda_architectures": built}

        def __getattr__(self, name: str) -> object:
            return getattr(_library.native, name)

    gpu = checks.FoundGpu((9, 0), "a GPU")
    assert checks.check_libraries(library(Native()), gpu, {}) is served
    text = capsys.readouterr().out
    assert lines_of(text)["GPU"] == "a GPU"
    problem = "compute capability is 9.0, the CUDA library is built for 86-real; run `pip"
    assert (problem in text) is not served


def test_a_wrong_op_fails(capsys: pytest.CaptureFixture[str]) -> None:
    cases = checks.op_cases()
    op, *others = cases["sliced_linear"]
    cases["sliced_linear"] = (lambda *x, **more: op(*x, **more) * 1.01, *others)
    assert not checks.check_ops("cpu", cases)
    lines = capsys.readouterr().out.splitlines()
    failed = [line.split()[1] for line in lines if line.startswith("FAILED")]
    assert set(failed) == {"sliced_linear"}
