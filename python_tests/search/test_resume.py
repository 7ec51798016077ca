"""A killed and resumed search ends like an uninterrupted one; its settings alone decide."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from search import synthetic
from search.synthetic import FILES, SMALL, evaluations, run_search


def archived(run_dir: Path) -> list:
    """All that a search writes, but how long each evaluation took."""
    files = [(run_dir / "search" / file).read_bytes() for file in FILES]
    return [*files, *({**row, "seconds": 0} for row in evaluations(run_dir))]


def start(run_dir: Path, calls: int, delay: float, **environment: str) -> int:
    command = [sys.executable, synthetic.__file__, str(run_dir), str(calls), str(delay)]
    paths = os.pathsep.join(p for p in [os.getcwd(), *sys.path] if p)
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    ).returncode


def test_same_seed_same_files_other_seed_other_search(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run_search(tmp_path / name, replace(SMALL, seed=seed), 30)
    texts = {
        name: [(tmp_path / name / "search" / file).read_bytes() for file in FILES] for name in "abc"
    }
    assert texts["a"] == texts["b"]
    assert texts["a"] != texts["c"]


def test_hashing_decides_nothing(tmp_path):
    run_search(tmp_path / "here", synthetic.KILLED_CONFIG, synthetic.KILLED_STEPS)
    assert start(tmp_path / "there", -1, 0, PYTHONHASHSEED="1") == 0
    assert archived(tmp_path / "here") == archived(tmp_path / "there")


def test_a_second_run_evaluates_nothing(tmp_path):
    first = run_search(tmp_path, SMALL, 20)
    before = (tmp_path / "search" / "archive.jsonl").read_bytes()

    def forbid(samples):
        raise AssertionError(f"evaluated {samples} again")

    assert run_search(tmp_path, SMALL, 20, forbid) == first
    assert (tmp_path / "search" / "archive.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [{"generations": 6}, {"finalists": 0}, {"most_samples": 32}, {"final_samples": 64}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_continue_the_archive(tmp_path, change):
    run_search(tmp_path / "first", SMALL, 20)
    known = len(evaluations(tmp_path / "first"))
    calls = []
    run_search(tmp_path / "first", replace(SMALL, **change), 20, calls.append)
    run_search(tmp_path / "whole", replace(SMALL, **change), 20)
    assert len(evaluations(tmp_path / "first")) == known + len(calls)
    for file in FILES:
        first, whole = (tmp_path / n / "search" / file for n in ("first", "whole"))
        assert first.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_killed_searches_end_like_an_uninterrupted_one(tmp_path):
    assert start(tmp_path / "whole", -1, 0) == 0
    total = len(evaluations(tmp_path / "whole"))
    expected = [(tmp_path / "whole" / "search" / file).read_bytes() for file in FILES]
    source = random.Random(7)
    for trial in range(3):
        run_dir = tmp_path / f"killed-{trial}"
        # killed again and again, at an evaluation or some time after one began
        for _ in range(2):
            calls = source.randint(1, total // 3)
            delay = 0.0 if trial % 2 else source.uniform(0.0005, 0.05)
            assert start(run_dir, calls, delay) == -signal.SIGKILL
        assert start(run_dir, -1, 0) == 0
        assert [(run_dir / "search" / file).read_bytes() for file in FILES] == expected
        rows = evaluations(run_dir)
        assert len(rows) == total
        keys = {(json.dumps(r["genome"]), *r["samples"]) for r in rows}
        assert len(keys) == total


def test_interrupted_at_every_evaluation_and_resumed(tmp_path):
    run_search(tmp_path / "whole", SMALL, 12)
    expected = [(tmp_path / "whole" / "search" / file).read_bytes() for file in FILES]
    total = len(evaluations(tmp_path / "whole"))

    def interrupt_second():
        calls = 0

        def hook(samples):
            nonlocal calls
            calls += 1
            if calls == 4:
                raise KeyboardInterrupt

        return hook

    for _ in range(total):
        try:
            run_search(tmp_path / "cut", SMALL, 12, interrupt_second())
            break
        except KeyboardInterrupt:
            continue
    assert [(tmp_path / "cut" / "search" / file).read_bytes() for file in FILES] == expected
    assert len(evaluations(tmp_path / "cut")) == total


def test_a_torn_last_line_is_evaluated_again(tmp_path):
    run_search(tmp_path, SMALL, 12)
    archive = tmp_path / "search" / "archive.jsonl"
    expected = [(tmp_path / "search" / file).read_bytes() for file in FILES]
    whole = archive.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (last + 1, (last + len(whole)) // 2, len(whole) - 2):
        archive.write_bytes(whole[:end])
        calls = []
        run_search(tmp_path, SMALL, 12, calls.append)
        assert len(calls) == 1
        assert [(tmp_path / "search" / file).read_bytes() for file in FILES] == expected
        assert len(archive.read_bytes().splitlines()) == len(whole.splitlines())


def test_progress_can_end_a_search_and_the_same_call_continues(tmp_path):
    def stop(state):
        if state.evaluations == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(tmp_path, SMALL, 20, progress=stop)
    assert len(evaluations(tmp_path)) == 6
    run_search(tmp_path, SMALL, 20)
