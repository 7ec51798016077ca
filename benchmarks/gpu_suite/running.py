"""Runs stages within a budget, whatever becomes of each."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_suite.process import Process
from gpu_suite.stages import Stage

# A command that knows its limit ends so much earlier: importing torch, a last timing.
MARGIN_S = 6.0
LEAST_S = 4.0
BESIDE = 8  # processes of a group at a time
TAIL_LINES = {"ok": 3, "failed": 12}
_POLL_S = 0.05


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: "ok", "failed" or "skipped", why, and its last line of JSON."""

    name: str
    status: str
    reason: str
    seconds: float
    limit_s: float
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class Place:
    """Where the suite works: repository, build folder, folder of what stages write, interpreter."""

    root: Path
    build: Path
    scratch: Path
    python: str

    def environment(self, stage: Stage, *, sm90a: bool) -> dict[str, str]:
        """The environment of a stage: the built package is found, the source folder is not."""
        paths = [str(self.build / "site")]
        if any(word.startswith(("gpu_suite.", "benchmarks/")) for word in stage.command):
            paths.append(str(self.root / "benchmarks"))
        own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        own |= {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(self.build / "inductor")}
        # Four stages, and two patient ones, compile beside each other on 16 cores.
        own["TORCHINDUCTOR_COMPILE_THREADS"] = "4"
        # cuDNN's and cuBLAS's: Triton's convolutions would be 400 kernels to compile for each
        # width, and its products alone took over three minutes for five steps beside each other.
        own["TORCHINDUCTOR_MAX_AUTOTUNE_CONV_BACKENDS"] = "ATEN"
        own["TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS"] = "ATEN"
        if not sm90a:
            own["DDSM_SM90A"] = "0"
        return {**os.environ, **own, **dict(stage.environment)}

    def command(self, stage: Stage, limit_s: float) -> list[str]:
        """The words of a stage's command."""
        seconds = max(limit_s - MARGIN_S, 1.0)
        values = {
            "out": str(self.scratch),
            "build": str(self.build),
            "python": self.python,
            "seconds": f"{seconds:.1f}",
            "minutes": f"{seconds / 60:.2f}",
        }
        words = [word.format_map(values) for word in stage.command]
        return words if stage.tool else [self.python, *words]


@dataclass
class _Running:
    stage: Stage
    process: Process
    begin_s: float
    limit_s: float
    end_s: float  # when its time is up


@dataclass
class Run:
    """One run of the suite.

    Stages of one group run beside each other, others one after the other; each has its own limit,
    cut to what is left beyond the reserves of those after it or, where that is less, to its own
    reserve. Work in the background goes on
    meanwhile and stands still while something is timed.

    Args:
        stages: what to run.
        place: where.
        budget_s: seconds for all of them.
        sm90a_off: why the sm_90a path is off from the start; "": it is on.
        clock: time in seconds.
        sleep: lets seconds of it pass.
        start: begins a process; arguments as `Process`.
        record: called with the run after each stage.
    """

    stages: Sequence[Stage]
    place: Place
    budget_s: float
    sm90a_off: str = ""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    start: Callable[..., Process] = Process
    record: Callable[[Run], None] = lambda run: None
    outcomes: list[Outcome] = field(default_factory=list)
    _background: list[_Running] = field(default_factory=list)
    _start_s: float = 0.0

    def all(self) -> list[Outcome]:
        """Run the stages; returns what became of each, in the order in which they ended."""
        self._start_s = self.clock()
        groups = [
            list(group) for _, group in itertools.groupby(self.stages, lambda s: s.group or s.name)
        ]
        try:
            for number, group in enumerate(groups):
                later_s = sum(max(s.reserve_s for s in g) for g in groups[number + 1 :])
                self._run_group(group, later_s)
            self._await(self._background, self.left_s())
        finally:
            self._end_background()
        return self.outcomes

    def left_s(self, later_s: float = 0.0) -> float:
        """Seconds of the budget left beyond those kept for later stages."""
        return max(self.budget_s - (self.clock() - self._start_s) - later_s, 0.0)

    def _share_s(self, stage: Stage, later_s: float) -> float:
        """What later stages leave, or what is kept for this one: where time is short, they wait."""
        return max(self.left_s(later_s), min(stage.reserve_s, self.left_s()))

    def _run_group(self, group: Sequence[Stage], later_s: float) -> None:
        awaited = {name for stage in group for name in stage.after}
        if awaited:
            own_s = max(stage.reserve_s for stage in group)
            running = [job for job in self._background if job.stage.name in awaited]
            self._await(running, self.left_s(later_s + own_s))
        if group[0].background:
            later_s = 0.0  # it goes on beside them
        waiting = []
        for stage in group:
            reason = self._reason_to_skip(stage, self._share_s(stage, later_s))
            if reason is None:
                waiting.append(stage)
            else:
                self._end_with(Outcome(stage.name, "skipped", reason, 0.0, 0.0))
        if group[0].background:
            self._background += [self._begin(stage, later_s) for stage in waiting]
        elif waiting:
            with self._quiet(any(stage.quiet for stage in group)):
                self._run_beside(waiting, later_s)

    def _run_beside(self, waiting: list[Stage], later_s: float) -> None:
        running: list[_Running] = []
        try:
            while waiting or running:
                while waiting and len(running) < BESIDE:
                    running.append(self._begin(waiting.pop(0), later_s))
                running = self._look_after(running)
                self._background = self._look_after(self._background)
        finally:
            for job in running:
                job.process.end()

    def _begin(self, stage: Stage, later_s: float) -> _Running:
        limit_s = min(stage.limit_s, self._share_s(stage, later_s))
        print(f"== {stage.name}: {stage.about} (up to {limit_s:.0f} s)", flush=True)
        logs = self.place.scratch / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        process = self.start(
            self.place.command(stage, limit_s),
            self.place.root,
            self.place.environment(stage, sm90a=not self.sm90a_off),
            logs / f"{stage.name}.txt",
        )
        now = self.clock()
        return _Running(stage, process, now, limit_s, now + limit_s)

    def _look_after(self, running: Sequence[_Running]) -> list[_Running]:
        """Note what has ended, end what is over its limit; return what still runs."""
        still = []
        for job in running:
            code = job.process.exit_code()
            if code is None and self.clock() < job.end_s:
                still.append(job)
            else:
                self._finish(job, code, f"stopped after {job.limit_s:.0f} s")
        if still:
            self.sleep(_POLL_S)
        return still

    def _finish(self, job: _Running, code: int | None, stopped: str) -> None:
        job.process.end()  # children that outlive it, too
        status = "ok" if code == 0 else "failed"
        reason = stopped if code is None else "" if code == 0 else _meaning(code)
        if status == "failed" and job.stage.proves_sm90a and not self.sm90a_off:
            self.sm90a_off = f"{job.stage.name} failed"
        seconds, result = self.clock() - job.begin_s, job.process.result()
        print(f"   {job.stage.name}: {status} {reason} ({seconds:.1f} s)", flush=True)
        for line in job.process.tail(TAIL_LINES[status]):
            print("     ", line[:200], flush=True)
        self._end_with(Outcome(job.stage.name, status, reason, seconds, job.limit_s, result))

    def _end_with(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.record(self)

    def _await(self, jobs: Sequence[_Running], most_s: float) -> None:
        """Wait for work in the background, then end what still runs."""
        names = {job.stage.name for job in jobs}
        end_s = self.clock() + most_s
        while True:
            self._background = self._look_after(self._background)
            running = [job for job in self._background if job.stage.name in names]
            if not running:
                return
            if self.clock() >= end_s:
                break
        for job in running:
            self._finish(job, None, "stopped, as the stages after it need the time")
        self._background = [job for job in self._background if job not in running]

    @contextmanager
    def _quiet(self, wanted: bool) -> Iterator[None]:
        held = self._background if wanted else []
        begin = self.clock()
        left_s = [job.end_s - begin for job in held]
        for job in held:
            job.process.hold()
            job.end_s = math.inf
        try:
            yield
        finally:
            for job, left in zip(held, left_s, strict=True):
                job.end_s = self.clock() + left
                job.process.go_on()

    def _end_background(self) -> None:
        for job in self._background:
            job.process.end()

    def _reason_to_skip(self, stage: Stage, left_s: float) -> str | None:
        for outcome in self.outcomes:
            if outcome.name == stage.needs and outcome.status != "ok":
                return f"{outcome.name} {outcome.status}"
        if self.sm90a_off and stage.wants_sm90a:
            return f"the sm_90a path is off: {self.sm90a_off}"
        if self.sm90a_off and dict(stage.environment).get("DDSM_SM90A") == "0":
            return "the sm_90a path is off everywhere"
        if stage.tool is not None and shutil.which(stage.tool) is None:
            return f"{stage.tool} is not on PATH"
        return f"{left_s:.0f} s are left" if left_s < LEAST_S else None


def _meaning(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"ended by signal {-code}"


def table(outcomes: Sequence[Outcome]) -> str:
    """Return one line a stage."""
    size = max(len(outcome.name) for outcome in outcomes)
    return "\n".join(
        f"{o.name:<{size}}  {o.status:<7}  {o.seconds:6.1f} s  {o.reason}".rstrip()
        for o in outcomes
    )
