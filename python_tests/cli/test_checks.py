"""What `ddsm checks` says of the libraries and the GPU."""

from __future__ import annotations

import pytest
import torch

from ddsm_ext import _library
from ddsm_ext.cli import checks
from ddsm_ext.cli.main import main


def lines_of(text: str) -> dict[str, str]:
    """First word of each line, up to the column of values -> its value."""
    return {line[:21].strip(): line[22:] for line in text.splitlines() if line.startswith("  ")}


def test_why_the_cuda_library_is_missing_and_what_builds_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "ddsm_ext has no CUDA library: nvcc was not found; `DDSM_CUDA=ON pip install .` ..."
    monkeypatch.setattr(_library, "cuda_missing_reason", reason)
    monkeypatch.setattr(checks, "_ops", lambda device: True)
    assert main(["checks"]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert lines["CUDA kernels"] == f"not loaded, {reason}"
    assert lines["torch"] == torch.__version__
    assert lines["libraries"] == str(_library.folder)
    assert lines["cuda_architectures"] == _library.native.build_info()["cuda_architectures"]


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


def test_a_gpu_that_the_library_is_not_built_for_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Native:
        def build_info(self) -> dict[str, str]:
            return {**_native.build_info(), "cuda_architectures": "86-real"}

        def __getattr__(self, name: str) -> object:
            return getattr(_native, name)

    _native = _library.native
    monkeypatch.setattr(_library, "native", Native())
    monkeypatch.setattr(_library, "cuda_missing_reason", "")
    monkeypatch.setattr(checks, "_gpu", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert main(["checks", "--device", "cpu"]) == 1
    text = capsys.readouterr().out
    assert "compute capability is 9.0, the CUDA library is built for 86-real; run `pip" in text
