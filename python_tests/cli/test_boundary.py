"""The one place where errors become sentences, and where what is printed becomes harmless."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddsm_ext.cli import main as cli
from ddsm_ext.cli.console import printable, say, told
from ddsm_ext.settings import Refusal

PWNED = "\x1b[31mred\x07 \x9b2J \u202eevil\u2066 caf\udce9\r"
HARMLESS = r"\x1b[31mred\x07 \x9b2J \u202eevil\u2066 caf\udce9\r"


def raising(error: Exception) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def recursion() -> int:
    return recursion()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (lambda: torch.empty(2**62, dtype=torch.uint8, device="cpu"), "bytes failed for want of"),
        (lambda: torch.empty((2**40, 2**40), device="cpu"), "want of memory; need a smaller batch"),
        (lambda: np.empty(2**62, np.uint8), "EiB failed for want of memory"),
        (lambda: bytearray(2**62), "want of memory"),
        (raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
         "an allocation of 20.00 GiB failed"),
        (lambda: float(10**400), "a number is too large"),
        (recursion, "nested too deeply"),
        (lambda: "caf\udce9".encode(), r"'caf\udce9' is no utf-8 text; need names that are"),
        (raising(OSError(errno.ENOSPC, "No space left on device", "a/b")),
         "ddsm: a/b: No space left on device\n"),
        (raising(OSError(errno.ENAMETOOLONG, "File name too long", "a", None, "b")),
         "ddsm: a -> b: File name too long\n"),
        (raising(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")),
         "ddsm: the system: Resource temporarily unavailable\n"),
        (raising(Refusal("x is 1;\n   need 2")), "ddsm: x is 1; need 2\n"),
        (raising(Refusal(f"x is {'9' * 10**6}; need 2")), "9; need 2\n"),
        (raising(Refusal(f"x is {PWNED}; need 2")), f"ddsm: x is {HARMLESS[:-2].rstrip()}"),
    ],
)  # fmt: skip
def test_errors_become_one_sentence(
    command: Callable[[], Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(command) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert len(said) < 1100


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("x"), TypeError("x"), KeyError("x")]
)
def test_faults_of_the_program_keep_their_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.exit_code(raising(error)) == 1
    assert "Traceback" in capsys.readouterr().err


def test_printable_texts_are_left_alone() -> None:
    text = "Ärger mit 写真\tund\n日本 – 3 µs × 2²"
    assert printable(text) == text
    assert printable(PWNED) == HARMLESS


def test_warnings_lines_and_logs_are_harmless(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest-xdist cannot carry what pytest captures of such a log
    monkeypatch.setattr(logging.getLogger("ddsm_ext"), "propagate", False)

    def command() -> int:
        warnings.warn(f"w {PWNED}\nmore", stacklevel=1)
        say(f"s {PWNED}")
        with told():
            logging.getLogger("ddsm_ext.data").warning("l %s\nmore", PWNED)
        return 0

    assert cli.exit_code(command) == 0
    one_line = HARMLESS[:-2]
    assert capsys.readouterr().err.splitlines() == [
        f"ddsm: warning: w {one_line} more", f"s {HARMLESS}", f"ddsm: warning: l {one_line} more",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_escapes_and_a_program_the_path() -> None:
    for stream, expected in ((Terminal(), f"{HARMLESS}\n"), (io.StringIO(), f"{PWNED}\n")):
        with contextlib.redirect_stdout(stream):
            assert cli.exit_code(lambda: print(PWNED) or 0) == 0
            assert sys.stdout is stream
        assert stream.getvalue() == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_of_stdout_fails(encoding: str) -> None:
    """What the encoding lacks goes out as the bytes of the file name."""
    name = os.fsdecode("bild-\N{SNOWMAN}-".encode() + b"\xe9")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(stream):
        assert cli.exit_code(lambda: print("a") or print(name) or print("b") or 0) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"a\n" + os.fsencode(name) + b"\nb\n"  # type: ignore[attr-defined]


def test_no_output_at_all_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert cli.exit_code(lambda: print("x") or 0) == 0


def test_work_goes_on_where_nobody_hears_of_it_any_more() -> None:
    """As in `ddsm search 2>&1 | head -1`: the lines go nowhere, the result is there."""
    code = """
import subprocess
import sys
import tempfile
from ddsm_ext.cli.main import exit_code
def work():
    for number in range(10000):
        print("a line of what is going on", file=sys.stderr)
    open(sys.argv[1], "w").close()
    return 7
sys.exit(exit_code(work))
"""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        done = Path(folder) / "done"
        command = [sys.executable, "-c", code, str(done)]
        with subprocess.Popen(command, stderr=writer) as process:
            os.close(writer)
            os.read(reader, 1)
            os.close(reader)
        assert (process.returncode, done.exists()) == (7, True)


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_messages_that_go_nowhere_stop_no_work(stderr: str) -> None:
    code = (
        "import sys; from ddsm_ext.cli.main import exit_code; from ddsm_ext.cli.console import say;"
        "sys.exit(exit_code(lambda: say('a message') or print('a result') or 7))"
    )
    command = ["sh", "-c", f'"$0" -c "$1" {stderr}', sys.executable, code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (7, "a result\n")
