"""Runs the commands of the plan, each until its own point in time."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.5
GRACE_S = 12.0  # for a checkpoint of 330 MB; then the process is killed
LEAST_S = 3.0  # a step with less time is not begun
TAIL_LINES = 3


@dataclass(frozen=True)
class Budget:
    """Seconds of a call, and what of them is left for what.

    Building and reading images take what they take at the beginning, from the training's time.
    """

    start_s: float
    minutes: float
    search_share: float = 0.15
    scores_share: float = 0.22
    closing_s: float = 5.0  # the last files

    def until(self, step: str) -> float:
        """Return the point in time at which "train", "search" or "scores" has to end."""
        total_s = 60 * self.minutes - self.closing_s
        later = {
            "train": self.search_share + self.scores_share,
            "search": self.scores_share,
            "scores": 0.0,
        }
        # Training is asked to stop, saves and ends; the others are simply ended.
        saving_s = min(GRACE_S, 0.05 * total_s) if step == "train" else 0.0
        return self.start_s + total_s * (1 - later[step]) - saving_s


@dataclass(frozen=True)
class Outcome:
    """What became of a step: "ok", "stopped" at the end of its time, "failed" or "skipped"."""

    name: str
    status: str
    reason: str
    seconds: float
    limit_s: float


def _end_with_parent() -> None:
    """A killed plan leaves no training behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run_step(
    name: str,
    words: Sequence[str],
    until_s: float,
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    on_tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a command of this Python until a point in time; then SIGTERM, later SIGKILL.

    Args:
        name: what to call the step.
        words: what follows `python3`.
        until_s: when its time is up, on `time.monotonic`'s clock.
        log: gets what it prints; the last lines also go to the screen.
        environment: variables beside this process's own.
        on_tick: called a few times a second while it runs, and once after it.
    """
    begin = time.monotonic()
    limit_s = until_s - begin
    if limit_s < LEAST_S:
        return Outcome(name, "skipped", f"{max(limit_s, 0):.0f} s are left", 0.0, limit_s)
    print(f"== {name} (up to {limit_s:.0f} s)", flush=True)
    with log.open("ab") as file:
        file.write(f"\n==== {name}: {' '.join(words)}\n".encode())
        file.flush()
        first = file.tell()
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,  # no other thread of this process holds a lock then
        )
        try:
            code, stopped = _wait(process, until_s, on_tick)
        except BaseException:
            _stop(process)
            raise
        finally:
            on_tick()
    seconds = time.monotonic() - begin
    lines = _last_lines(log, first)
    if stopped:
        return Outcome(name, "stopped", "its time was up", seconds, limit_s)
    if code == 0:
        return Outcome(name, "ok", "", seconds, limit_s)
    reason = f"exit code {code}: {lines[-1] if lines else 'no output'}"
    return Outcome(name, "failed", reason, seconds, limit_s)


def _wait(
    process: subprocess.Popen[bytes], until_s: float, on_tick: Callable[[], None]
) -> tuple[int, bool]:
    """Exit code, and whether the time was up first."""
    while True:
        try:
            return process.wait(_POLL_S), False
        except subprocess.TimeoutExpired:
            on_tick()
        if time.monotonic() >= until_s:
            return _stop(process), True


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _last_lines(log: Path, first: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(first)
        every = (line.decode(errors="replace").rstrip()[:300] for line in file)
        lines = list(deque((line for line in every if line[:1].isalnum()), TAIL_LINES))
    for line in lines:
        print(f"    {line}", flush=True)
    return lines
