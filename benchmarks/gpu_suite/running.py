"""Runs stages within a budget, one after the other, whatever becomes of each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_suite.stages import Stage

MARGIN_S = (
    15.0  # a command that knows its limit ends so much earlier: importing torch, a last timing
)
LEAST_S = 5.0
TAIL_LINES = {"ok": 4, "failed": 25}


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: "ok", "failed" or "skipped", and why."""

    name: str
    status: str
    reason: str
    seconds: float
    limit_s: float


@dataclass(frozen=True)
class Place:
    """Where the suite works: repository, output, build folder, interpreter."""

    root: Path
    out: Path
    build: Path
    python: str

    def environment(self, stage: Stage) -> dict[str, str]:
        """The environment of a stage: the built package is found, the source folder is not."""
        site = {"PYTHONPATH": str(self.build / "site"), "PYTHONSAFEPATH": "1"}
        return {**os.environ, **site, "PYTHONUNBUFFERED": "1", **dict(stage.environment)}

    def command(self, stage: Stage, limit_s: float) -> list[str]:
        """The words of a stage's command."""
        values = {
            "out": str(self.out),
            "build": str(self.build),
            "python": self.python,
            "minutes": f"{max(limit_s - MARGIN_S, 1.0) / 60:.2f}",
        }
        words = [word.format_map(values) for word in stage.command]
        return words if stage.tool else [self.python, *words]


def run_stages(
    stages: Sequence[Stage],
    place: Place,
    budget_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    record: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
) -> list[Outcome]:
    """Run the stages in order; each has what is left beyond the reserves of those after it.

    Args:
        stages: what to run.
        place: where.
        budget_s: seconds for all of them.
        clock: time in seconds.
        record: called with the outcomes so far after each stage.
    """
    start = clock()
    outcomes: list[Outcome] = []
    for number, stage in enumerate(stages):
        reserved_s = sum(later.reserve_s for later in stages[number + 1 :])
        # One that overran its share takes from the next ones, not from the last ones' chance.
        limit_s = max(budget_s - (clock() - start) - reserved_s, 0.0)
        reason = _reason_to_skip(stage, outcomes, limit_s)
        if reason is not None:
            outcomes.append(Outcome(stage.name, "skipped", reason, 0.0, limit_s))
        else:
            print(f"== {stage.name}: {stage.about} (up to {limit_s:.0f} s)", flush=True)
            begin = clock()
            status, reason = _run(stage, place, limit_s)
            outcomes.append(Outcome(stage.name, status, reason, clock() - begin, limit_s))
        record(outcomes)
    return outcomes


def _reason_to_skip(stage: Stage, outcomes: Sequence[Outcome], limit_s: float) -> str | None:
    for outcome in outcomes:
        if outcome.name == stage.needs and outcome.status != "ok":
            return f"{outcome.name} {outcome.status}"
    if stage.tool is not None and shutil.which(stage.tool) is None:
        return f"{stage.tool} is not on PATH"
    return f"{limit_s:.0f} s are left" if limit_s < LEAST_S else None


def _run(stage: Stage, place: Place, limit_s: float) -> tuple[str, str]:
    """Run one stage; its output goes to the log, its end to the screen."""
    log = place.out / "log.txt"
    with log.open("ab") as file:
        words = place.command(stage, limit_s)
        file.write(f"\n==== {stage.name}: {' '.join(words)}\n".encode())
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            words,
            cwd=place.root,
            env=place.environment(stage),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
    status, reason = ("ok", "") if code == 0 else ("failed", f"exit code {code}")
    _show_end(log, begin, TAIL_LINES[status])
    return status, f"stopped after {limit_s:.0f} s" if code is None else reason


def _show_end(log: Path, begin: int, count: int) -> None:
    with log.open("rb") as file:
        file.seek(begin)
        lines = deque(file, count)
    for line in lines:
        print("   ", line.decode(errors="replace").rstrip()[:200], flush=True)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return one line a stage."""
    size = max(len(outcome.name) for outcome in outcomes)
    return "\n".join(
        f"{o.name:<{size}}  {o.status:<7}  {o.seconds:6.1f} s  {o.reason}".rstrip()
        for o in outcomes
    )


def write_summary(path: Path, about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write what ran so far as JSON, in place of an earlier state."""
    content = {**about, "stages": [asdict(outcome) for outcome in outcomes]}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
