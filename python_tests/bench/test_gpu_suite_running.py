"""The GPU suite's stages as processes: a hang, a crash or a fault costs its own figures only."""

from __future__ import annotations

import io
import json
import math
import tarfile
import time
from pathlib import Path

import pytest
from bench.suite_stages import place, stage
from gpu_suite import archive
from gpu_suite.running import Outcome, Place, Run, table
from gpu_suite.stages import SM80, Stage

CRASH = "import os, signal; print('before'); os.kill(os.getpid(), signal.SIGSEGV)"
HANG = "import signal; print('hangs', flush=True); signal.pause()"


def outcomes_of(stages: list[Stage], folder: Path, seconds: float = 60.0) -> list[Outcome]:
    return Run(stages, place(folder), seconds).all()


def test_what_hangs_crashes_or_is_wrong_does_not_end_the_others(tmp_path: Path) -> None:
    stages = [
        stage("good", "print('fine')"),
        stage("hangs", HANG, limit_s=0.7),
        stage("crashes", CRASH),
        stage("wrong", "import sys; print('error 0.5, allowed 0.01'); sys.exit(1)"),
        stage("dependent", "", needs="wrong"),
        stage("toolless", "", tool="no-such-program"),
        stage("reports", "import json; print(json.dumps(dict(ms=1.5))); print('after')"),
    ]
    found = outcomes_of(stages, tmp_path)
    assert [(o.name, o.status, o.reason) for o in found] == [
        ("good", "ok", ""),
        ("hangs", "failed", "stopped after 1 s"),
        ("crashes", "failed", "ended by signal 11"),
        ("wrong", "failed", "exit code 1"),
        ("dependent", "skipped", "wrong failed"),
        ("toolless", "skipped", "no-such-program is not on PATH"),
        ("reports", "ok", ""),
    ]
    assert found[-1].result == {"ms": 1.5}
    logs = tmp_path / "scratch" / "logs"
    for name, text in (("hangs", "hangs"), ("crashes", "before"), ("wrong", "error 0.5")):
        assert text in (logs / f"{name}.txt").read_text()


def test_a_stage_that_is_ended_takes_its_children_along(tmp_path: Path) -> None:
    child = "import time, pathlib; time.sleep(2); pathlib.Path('survived').touch()"
    code = (
        f"import os, subprocess, sys; os.chdir({str(tmp_path)!r}); "
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    start = time.monotonic()
    (outcome,) = outcomes_of([stage("slow", code, limit_s=0.8)], tmp_path)
    assert outcome.status == "failed"
    assert time.monotonic() - start < 2.0
    time.sleep(2.0)
    assert not (tmp_path / "survived").exists()


def test_a_red_sm90a_family_turns_that_path_off_for_what_follows(tmp_path: Path) -> None:
    show = "import os; print(dict(path=os.environ.get('DDSM_SM90A', 'on')))"
    stages = [
        stage("before", show),
        stage("right", "", group="families", proves_sm90a=True),
        stage("broken", "raise SystemExit(1)", group="families", proves_sm90a=True),
        stage("beside", show, group="families", environment=SM80),
        stage("timing", show),
        stage("timing-sm80", show, environment=SM80),
    ]
    run = Run(stages, place(tmp_path), 60.0)
    found = {outcome.name: outcome for outcome in run.all()}
    assert run.sm90a_off == "broken failed"
    assert found["timing-sm80"].reason == "the sm_90a path is off everywhere"
    logs = tmp_path / "scratch" / "logs"
    for name, value in (("before", "on"), ("beside", "0"), ("timing", "0")):
        assert f"'{value}'" in (logs / f"{name}.txt").read_text()
    carried = Run([stage("timing", show)], place(tmp_path), 60.0, sm90a_off="an earlier run")
    assert [o.status for o in carried.all()] == ["ok"]


def test_another_failure_leaves_the_path_on(tmp_path: Path) -> None:
    run = Run([stage("broken", "raise SystemExit(1)")], place(tmp_path), 60.0)
    run.all()
    assert run.sm90a_off == ""


def test_stages_of_a_group_run_beside_each_other(tmp_path: Path) -> None:
    """Each of two waits for a file of the other."""
    code = (
        "import pathlib, time; pathlib.Path(r'{out}/%s').touch()\n"
        "while not pathlib.Path(r'{out}/%s').exists(): time.sleep(0.01)"
    )
    stages = [stage(a, code % (a, b), group="both") for a, b in (("a", "b"), ("b", "a"))]
    assert [o.status for o in outcomes_of(stages, tmp_path)] == ["ok", "ok"]


def test_work_in_the_background_stands_still_while_something_is_timed(tmp_path: Path) -> None:
    beat = (
        "import pathlib, time\n"
        "for i in range(60):\n"
        "    with open(r'{out}/beats', 'a') as f: f.write('.')\n"
        "    time.sleep(0.02)"
    )
    watch = (
        "import os, pathlib, time; beats = pathlib.Path(r'{out}/beats')\n"
        "count = lambda: beats.stat().st_size if beats.exists() else 0\n"
        "time.sleep(0.1); before = count(); time.sleep(0.4)\n"
        "raise SystemExit(0 if (count() == before) == (%r == 'quiet') else 1)"
    )
    wait = "import pathlib, time\nwhile not pathlib.Path(r'{out}/beats').exists(): time.sleep(0.01)"
    stages = [
        stage("beats", beat, background=True),
        stage("wait", wait),
        stage("quiet", watch % "quiet", quiet=True),
        stage("loud", watch % "loud"),
        stage("after", "pass", after=("beats",)),
    ]
    found = outcomes_of(stages, tmp_path)
    assert {o.name: o.status for o in found} == dict.fromkeys(
        ("beats", "wait", "quiet", "loud", "after"), "ok"
    )
    assert [o.name for o in found][-2:] == ["beats", "after"]
    assert (tmp_path / "scratch" / "beats").stat().st_size == 60


def test_background_work_is_ended_when_its_time_or_the_others_is_up(tmp_path: Path) -> None:
    stages = [
        stage("limited", HANG, background=True, group="warm", limit_s=0.5),
        stage("awaited", HANG, background=True, group="warm", limit_s=50.0),
        stage("user", "pass", after=("limited", "awaited"), reserve_s=8.0),
    ]
    start = time.monotonic()
    found = {o.name: (o.status, o.reason) for o in outcomes_of(stages, tmp_path, 10.0)}
    assert time.monotonic() - start < 6.0
    assert found["limited"] == ("failed", "stopped after 0 s")
    assert found["awaited"] == ("failed", "stopped, as the stages after it need the time")
    assert found["user"] == ("ok", "")


class FakeClock:
    """Seconds that pass while the suite sleeps, and processes that last as long as they say."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def start(self, words: list[str], *_: object) -> FakeProcess:
        return FakeProcess(self, float(words[2]))


class FakeProcess:
    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self.clock, self.end_s = clock, clock() + seconds

    def exit_code(self) -> int | None:
        return 0 if self.clock() >= self.end_s else None

    def end(self) -> None:
        pass

    def hold(self) -> None:
        self.left_s, self.end_s = self.end_s - self.clock(), math.inf

    def go_on(self) -> None:
        self.end_s = self.clock() + self.left_s

    def result(self) -> None:
        return None

    def tail(self, count: int) -> list[str]:
        return []


def played(stages: list[Stage], folder: Path, seconds: float) -> tuple[list[Outcome], float]:
    """What becomes of stages by a fake clock, and what it shows then."""
    clock = FakeClock()
    run = Run(stages, place(folder), seconds, clock=clock, sleep=clock.sleep, start=clock.start)
    return run.all(), clock()


def test_each_stage_has_its_limit_cut_to_what_later_ones_do_not_need(tmp_path: Path) -> None:
    """100 s: `a` takes all of its 60, `b` may have 20 of what 30 kept leave, `c` its own 30."""
    stages = [
        stage("a", "70", limit_s=60.0, reserve_s=20.0),
        stage("b", "70", limit_s=50.0, reserve_s=10.0),
        stage("c", "5", limit_s=40.0, reserve_s=20.0),
        stage("d", "200", limit_s=900.0, reserve_s=0.0),
        stage("e", "1", limit_s=9.0, reserve_s=0.0),
    ]
    found, _ = played(stages, tmp_path, 100.0)
    limits = {o.name: round(o.limit_s) for o in found}
    assert limits == {"a": 60, "b": 20, "c": 20, "d": 15, "e": 0}
    assert [o.status for o in found] == ["failed", "failed", "ok", "failed", "skipped"]
    assert found[1].reason == "stopped after 20 s"
    assert found[4].reason == "0 s are left"


def test_where_time_is_short_the_most_telling_stages_have_it(tmp_path: Path) -> None:
    stages = [
        stage("a", "70", limit_s=60.0, reserve_s=20.0),
        stage("b", "70", limit_s=60.0, reserve_s=15.0),
        stage("c", "70", limit_s=60.0, reserve_s=0.0),
        stage("d", "1", limit_s=60.0, reserve_s=40.0),
    ]
    found = {o.name: o for o in played(stages, tmp_path, 42.0)[0]}
    assert round(found["a"].limit_s) == 20
    assert round(found["b"].limit_s) == 15
    assert found["c"].reason == "0 s are left"
    assert found["d"].status == "ok"


def test_a_group_is_kept_time_for_once(tmp_path: Path) -> None:
    stages = [
        stage("a", "1", limit_s=99.0, reserve_s=5.0),
        *(stage(f"g{i}", "3", limit_s=9.0, reserve_s=12.0, group="g") for i in range(10)),
    ]
    found, end_s = played(stages, tmp_path, 60.0)
    assert round(found[0].limit_s) == 48
    assert round(end_s) == 7  # 1 s, then 8 and 2 processes of 3 s each


@pytest.mark.parametrize(("warm_s", "limit_s", "all_s"), [("50", 60.0, 81), ("8", 20.0, 39)])
def test_time_that_work_in_the_background_is_held_does_not_count_for_it(
    tmp_path: Path, warm_s: str, limit_s: float, all_s: int
) -> None:
    """Nor while it stands still, where less was left to it than that lasts."""
    stages = [
        stage("warm", warm_s, background=True, limit_s=limit_s),
        stage("timing", "30", quiet=True, limit_s=40.0),
        stage("user", "1", after=("warm",), limit_s=10.0, reserve_s=5.0),
    ]
    outcomes, end_s = played(stages, tmp_path, 200.0)
    assert {o.name: o.status for o in outcomes}["warm"] == "ok"
    assert abs(end_s - all_s) < 1.5


def members(path: Path) -> set[str]:
    with tarfile.open(path) as packed:
        return set(packed.getnames())


def test_the_archive_holds_everything_after_each_stage(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    seen: list[tuple[list[str], set[str]]] = []

    def record(run: Run) -> None:
        archive.write_state(out, run.place.scratch, {"gpu": "A GPU"}, run.outcomes)
        content = json.loads((out / archive.SUMMARY).read_text())
        seen.append(([s["name"] for s in content["stages"]], members(out / archive.ARCHIVE)))

    stages = [
        stage("one", "open(r'{out}/one.json', 'w').write('[1]')"),
        stage("two", "raise SystemExit(1)"),
        stage("three", "import os; os.makedirs(r'{out}/results'); "
                       "open(r'{out}/results/three.json', 'w').write('[3]')"),
    ]  # fmt: skip
    Run(stages, place(tmp_path), 60.0, record=record).all()
    assert [names for names, _ in seen] == [["one"], ["one", "two"], ["one", "two", "three"]]
    assert seen[0][1] == {"summary.json", "one.json", "logs/one.txt"}
    assert seen[2][1] >= {"one.json", "logs/two.txt", "results/three.json"}
    assert sorted(path.name for path in out.iterdir()) == ["all.tar.gz", "summary.json"]
    assert archive.read_summary(out / archive.ARCHIVE) == archive.read_summary(out)


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"gpu": 1}', b"\x1f\x8b broken"])
def test_what_holds_no_earlier_run_is_named_in_one_sentence(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"holds no earlier run \(.*\); need its folder") as caught:
        archive.read_summary(tmp_path)
    assert "\n" not in str(caught.value)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz"):
        pass
    (tmp_path / "empty.tar.gz").write_bytes(packed.getvalue())
    with pytest.raises(ValueError, match="holds no earlier run"):
        archive.read_summary(tmp_path / "empty.tar.gz")


def test_the_table_has_a_line_a_stage() -> None:
    found = [Outcome("build", "ok", "", 61.25, 90.0), Outcome("x", "skipped", "y", 0.0, 3.0)]
    assert table(found).splitlines() == [
        "build  ok         61.2 s",
        "x      skipped     0.0 s  y",
    ]


def test_stages_find_what_was_built_and_not_the_sources(tmp_path: Path) -> None:
    there = Place(tmp_path, tmp_path / "build", tmp_path / "scratch", "python3")
    environment = there.environment(stage("a", ""), sm90a=True)
    assert environment["PYTHONPATH"] == str(tmp_path / "build" / "site")
    assert environment["PYTHONSAFEPATH"] == "1"
    assert "DDSM_SM90A" not in environment or environment["DDSM_SM90A"] != "0"
    own = stage("b", "", command=("-m", "gpu_suite.sweep", "--seconds", "{seconds}"), limit_s=30.0)
    assert str(tmp_path / "benchmarks") in there.environment(own, sm90a=False)["PYTHONPATH"]
    assert there.environment(own, sm90a=False)["DDSM_SM90A"] == "0"
    assert there.command(own, 30.0) == ["python3", "-m", "gpu_suite.sweep", "--seconds", "24.0"]
