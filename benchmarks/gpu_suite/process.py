"""A stage as a process group of its own: started, waited for, held, ended with its children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# A process that waits inside the driver may outlive SIGKILL; the suite goes on without it.
_END_S = 5.0


class Process:
    """A running command whose output goes to a file.

    Args:
        words: the command.
        folder: where it runs.
        environment: its environment variables.
        log: file for what it prints.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            file.write(f"$ {' '.join(words)}\n".encode())
            file.flush()
            self._process = subprocess.Popen(
                words,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def hold(self) -> None:
        """Let the group stand still until `go_on`."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a held group run again."""
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Kill the group and wait a little for it."""
        self._signal(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def result(self) -> dict[str, Any] | None:
        """Return the last line of the output that is a JSON object."""
        found = None
        for line in self._lines():
            if line.startswith("{"):
                with suppress(json.JSONDecodeError):
                    found = json.loads(line)
        return found

    def tail(self, count: int) -> list[str]:
        """Return the last lines of the output, JSON and the command left out."""
        lines = (line for line in self._lines() if line.strip())
        return list(deque((line for line in lines if not line.startswith(("{", "$ "))), count))

    def _lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()
