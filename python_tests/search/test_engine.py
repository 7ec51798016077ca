"""The search finds known fronts, and a killed and resumed one ends like an uninterrupted one."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from search import synthetic
from search.synthetic import COSTS, WIDTHS, all_points, errors, log_snrs, run_search

from ddsm_ext.io.files import read_json, read_jsonl
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import CostTable
from ddsm_ext.search.engine import Search, search
from ddsm_ext.search.front import Front

SMALL = SearchConfig(segments=2, population=8, generations=3, full_final=3)
FILES = ("front.json", "history.json", "strategy.json")


def area(points: list[tuple[float, float]], quality_end: float, cost_end: float) -> float:
    """Area dominated by points up to a corner, by a sum of rectangles."""
    total, best = 0.0, quality_end
    for quality, cost in sorted(points, key=lambda p: (p[1], p[0])):
        if quality < best and cost < cost_end:
            total += (best - quality) * (cost_end - cost)
            best = quality
    return total


def evaluations(run_dir: Path) -> list[dict]:
    return [r for r in read_jsonl(run_dir / "search" / "archive.jsonl") if r["kind"] != "header"]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("stages", [("cheap",), ("full",)])
def test_reaches_the_known_front(tmp_path, seed, stages):
    steps, segments = 10, 3
    config = SearchConfig(
        segments=segments, population=24, generations=25, seed=seed, stages=stages
    )
    front = run_search(tmp_path, config, steps)
    quality = synthetic.cheap_of if stages == ("cheap",) else synthetic.full_of
    known = all_points(steps, segments, quality)
    worst = max(quality([w] * steps) for w in WIDTHS)
    found = area([(p.quality, p.cost_relative) for p in front.points], worst, 1.01)
    assert found >= 0.99 * area(known, worst, 1.01)
    # and it looked at a part of the space only
    assert len(evaluations(tmp_path)) < 0.5 * len(known)


def test_seeds_of_the_budget_solver_give_the_exact_optimum(tmp_path):
    steps = 10
    config = SearchConfig(
        segments=3, population=16, generations=1, stages=("cheap",), budget_macs=0.42
    )
    front = run_search(tmp_path, config, steps, errors=errors(steps))
    best = min(q for q, c in all_points(steps, 3) if c <= 0.42)
    assert front.chosen.quality == pytest.approx(best, rel=1e-12)


def test_front_is_nondominated_sorted_and_fully_scored(tmp_path):
    front = run_search(tmp_path, SearchConfig(population=12, generations=4, segments=3), 20)
    costs = [p.cost for p in front.points]
    assert costs == sorted(costs)
    assert all(a.quality > b.quality for a, b in zip(front.points, front.points[1:], strict=False))
    for point in front.points:
        widths = point.strategy.widths_for(log_snrs(20))
        assert point.full == point.quality == synthetic.full_of(widths)
        assert point.cheap == synthetic.cheap_of(widths)
        assert point.cost == pytest.approx(sum(COSTS[w] for w in widths), rel=1e-12)
    assert [p.strategy.widths for p in front.constants] == [(w,) for w in WIDTHS]
    assert front.full_cost == 20 * 6070.0
    assert front.full_quality == synthetic.full_of([1.0] * 20)


def test_full_scores_are_spent_by_the_rule(tmp_path):
    config = SearchConfig(
        segments=3, population=12, generations=4, full_per_generation=2, full_final=3
    )
    run_search(tmp_path, config, 20)
    rows = evaluations(tmp_path)
    full = [r for r in rows if r["stage"] == "full"]
    cheap = [r for r in rows if r["stage"] == "cheap"]
    assert len(full) <= len(WIDTHS) + 4 * 2 + 3
    assert len(cheap) == 12 * 4
    keys = [(json.dumps(r["genome"]), r["stage"]) for r in rows]
    assert len(keys) == len(set(keys))
    assert {json.dumps(r["genome"]) for r in full} <= {json.dumps(r["genome"]) for r in cheap}
    assert all(r["cheap"] is not None and r["quality"] == r["full"] for r in full)
    assert all(r["full"] is None and r["quality"] is None for r in cheap)
    assert all(r["seconds"] >= 0 and 0 <= r["generation"] < 4 for r in rows)


def test_hypervolume_grows_and_files_agree(tmp_path):
    config = SearchConfig(
        segments=3, population=12, generations=5, budget_macs=0.5, refine_generations=2
    )
    front = run_search(tmp_path, config, 20)
    history = read_json(tmp_path / "search" / "history.json")
    assert [g["generation"] for g in history["generations"]] == list(range(7))
    volumes = [g["hypervolume"] for g in history["generations"]]
    assert volumes == sorted(volumes)
    assert 0 < volumes[0] < volumes[-1] < 1.2
    for row in history["generations"]:
        assert row["hypervolume"] == row["hypervolumes"]["full"]
        assert row["evaluations"]["cheap"] >= row["evaluations"]["full"]
    last = history["generations"][-1]["fronts"]["full"]
    assert last == [[p.quality, p.cost_relative] for p in front.points]
    assert Front.load(tmp_path / "search" / "front.json") == front
    strategy = Strategy.load(tmp_path / "search" / "strategy.json")
    assert strategy == front.chosen.strategy
    assert front.chosen.cost_relative <= 0.5
    assert strategy.origin["checkpoint"] == "synthetic"


def test_same_seed_same_files_other_seed_other_search(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run_search(tmp_path / name, SearchConfig(population=10, generations=3, seed=seed), 30)
    texts = {
        name: [(tmp_path / name / "search" / file).read_bytes() for file in FILES] for name in "abc"
    }
    assert texts["a"] == texts["b"]
    assert texts["a"] != texts["c"]


def test_a_second_run_evaluates_nothing(tmp_path):
    first = run_search(tmp_path, SMALL, 20)
    before = (tmp_path / "search" / "archive.jsonl").read_bytes()

    def forbid(stage):
        raise AssertionError(f"evaluated at stage {stage} again")

    assert run_search(tmp_path, SMALL, 20, forbid) == first
    assert (tmp_path / "search" / "archive.jsonl").read_bytes() == before


def test_more_generations_continue_the_archive(tmp_path):
    run_search(tmp_path / "short", SMALL, 20)
    known = len(evaluations(tmp_path / "short"))
    calls = []
    longer = replace(SMALL, generations=6, full_final=0)
    run_search(tmp_path / "short", longer, 20, calls.append)
    run_search(tmp_path / "whole", longer, 20)
    assert len(evaluations(tmp_path / "short")) == known + len(calls)
    for file in FILES:
        short, whole = (tmp_path / n / "search" / file for n in ("short", "whole"))
        assert short.read_bytes() == whole.read_bytes()


def start(run_dir: Path, calls: int, delay: float) -> int:
    command = [sys.executable, synthetic.__file__, str(run_dir), str(calls), str(delay)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in [os.getcwd(), *sys.path] if p),
    }
    return subprocess.run(
        command, check=False, capture_output=True, timeout=120, env=environment
    ).returncode


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
        keys = {(json.dumps(r["genome"]), r["stage"]) for r in rows}
        assert len(keys) == total


def test_interrupted_at_every_evaluation_and_resumed(tmp_path):
    run_search(tmp_path / "whole", SMALL, 12)
    expected = [(tmp_path / "whole" / "search" / file).read_bytes() for file in FILES]
    total = len(evaluations(tmp_path / "whole"))

    def interrupt_second():
        calls = 0

        def hook(stage):
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


def test_failed_candidates_lose_and_are_not_repeated(tmp_path):
    levels, calls = log_snrs(12), []

    def quality(strategy):
        calls.append(strategy)
        widths = strategy.widths_for(levels)
        return math.nan if 0.25 in widths else synthetic.cheap_of(widths)

    config = SearchConfig(segments=3, population=12, generations=4, stages=("cheap",))
    arguments = {"cost_table": COSTS, "log_snrs": levels, "run_dir": tmp_path}
    front = search(config, quality_cheap=quality, **arguments)
    assert all(0.25 not in p.strategy.widths for p in front.points)
    assert any(r["failed"] for r in evaluations(tmp_path))
    count = len(calls)
    assert search(config, quality_cheap=quality, **arguments) == front
    assert len(calls) == count
    with pytest.raises(ValueError, match="the full width's cheap quality is not a finite number"):
        search(
            config,
            quality_cheap=lambda strategy: math.inf,
            **{**arguments, "run_dir": tmp_path / "other"},
        )


def test_refusals_name_what_is_wrong(tmp_path):
    with pytest.raises(
        ValueError, match=r"the budget is .* the cheapest strategy costs .*0\.06301"
    ):
        run_search(tmp_path, replace(SMALL, budget_macs=0.05), 20)
    assert not (tmp_path / "search").exists()
    with pytest.raises(ValueError, match=r"without quality_full"):
        run_search(tmp_path, SMALL, 20, quality_full=None)
    with pytest.raises(ValueError, match=r"cost table has no width 0\.25"):
        run_search(tmp_path, SMALL, 20, cost_table={1.0: 1.0, 0.75: 0.6, 0.5: 0.3})
    with pytest.raises(ValueError, match=r"cost table is in ms, objectives counts macs"):
        run_search(tmp_path, SMALL, 20, cost_table=CostTable("ms", COSTS))
    with pytest.raises(ValueError, match=r"errors has shape \[19, 4\]"):
        run_search(tmp_path, SMALL, 20, errors=errors(19))
    run_search(tmp_path, SMALL, 20)
    with pytest.raises(ValueError, match=r"made with seed 0, this search has 5"):
        run_search(tmp_path, replace(SMALL, seed=5), 20)
    with pytest.raises(ValueError, match=r'made with checkpoint "synthetic", this search has "b"'):
        run_search(tmp_path, SMALL, 20, identity={"checkpoint": "b"})


def test_budget_in_ms_and_loss_that_cannot_be_met(tmp_path):
    ms = CostTable("ms", {1.0: 4.0, 0.75: 3.0, 0.5: 2.0, 0.25: 1.5})
    config = SearchConfig(
        segments=2, population=8, generations=2, objectives=("quality", "ms"), budget_ms=50.0
    )
    front = run_search(tmp_path, config, 20, cost_table=ms)
    assert front.cost_unit == "ms"
    assert front.full_cost == 80.0
    assert front.chosen.cost <= 50.0
    strict = SearchConfig(
        segments=2,
        population=8,
        generations=2,
        objectives=("quality", "ms"),
        budget_ms=50.0,
        max_quality_loss=1e-9,
    )
    with pytest.raises(ValueError, match="need a larger budget or loss"):
        run_search(tmp_path, strict, 20, cost_table=ms)
    assert Front.load(tmp_path / "search" / "front.json").chosen is None


def test_one_step_and_one_segment(tmp_path):
    config = SearchConfig(segments=4, population=8, generations=3)
    front = run_search(tmp_path / "step", config, 1)
    assert [p.strategy.widths for p in front.points] == [(w,) for w in reversed(WIDTHS)]
    config = SearchConfig(segments=1, population=8, generations=3)
    front = run_search(tmp_path / "segment", config, 10)
    assert {p.strategy.widths for p in front.points} <= {(w,) for w in WIDTHS}


def test_progress_reaches_its_end(tmp_path):
    states = []
    run_search(tmp_path, SMALL, 20, progress=states.append)
    assert states[-1].evaluations == states[-1].expected == len(evaluations(tmp_path))
    counts = [s.evaluations for s in states]
    assert counts == sorted(counts)
    assert all(s.evaluations <= s.expected for s in states)
    assert {s.generation for s in states} == {0, 1, 2}


def started(run_dir, config=SMALL, steps=12, **more) -> Search:
    arguments = {"cost_table": COSTS, "log_snrs": log_snrs(steps), "run_dir": run_dir}
    return Search(config, **arguments, identity={"checkpoint": "synthetic"}, **more)


def scores_of(asked, steps=12) -> list[float]:
    by_stage = {"cheap": synthetic.cheap_of, "full": synthetic.full_of}
    return [by_stage[stage](strategy.widths_for(log_snrs(steps))) for strategy, stage in asked]


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_told_in_parts_it_ends_like_the_loop(tmp_path, at_once):
    config = replace(SMALL, refine_generations=2, budget_macs=0.5)
    expected = run_search(tmp_path / "loop", config, 12, errors=errors(12))
    rounds = 0
    with started(tmp_path / "told", config, errors=errors(12)) as asking:
        while asked := asking.ask():
            rounds += 1
            assert asking.ask() == asked
            asking.tell(scores_of(asked)[:at_once])
            known = len(evaluations(tmp_path / "told"))
            assert known == asking.progress.evaluations
        assert asking.finish() == expected
    for file in FILES:
        loop, told = (tmp_path / name / "search" / file for name in ("loop", "told"))
        assert loop.read_bytes() == told.read_bytes()
    rows = [[{**r, "seconds": 0} for r in evaluations(tmp_path / n)] for n in ("loop", "told")]
    assert rows[0] == rows[1]
    if at_once == 1000:
        # two of constants, two a generation of the cheap stage, one a refining one, the finalists
        assert rounds <= 2 + 2 * config.generations + config.refine_generations + 1


def test_whole_generations_are_asked_for_and_known_scores_are_not(tmp_path):
    with started(tmp_path) as asking:
        asked = asking.ask()
        assert [(s.widths, stage) for s, stage in asked] == [((w,), "cheap") for w in WIDTHS]
        asking.tell(scores_of(asked))
        assert {stage for _, stage in asking.ask()} == {"full"}
        asking.tell(scores_of(asking.ask()))
        generation = asking.ask()
        # the constant widths are among the population of 8 and known
        assert [stage for _, stage in generation] == ["cheap"] * 4
        asking.tell(scores_of(generation)[:1], [0.25])
    assert evaluations(tmp_path)[-1]["seconds"] == 0.25
    with started(tmp_path) as asking:
        assert asking.ask() == generation[1:]


def test_use_out_of_turn_is_refused(tmp_path):
    with started(tmp_path) as asking:
        with pytest.raises(ValueError, match="told 1 scores while 0 are asked for; need"):
            asking.tell([1.0])
        with pytest.raises(ValueError, match="finish while scores are missing; need"):
            asking.finish()
        asked = asking.ask()
        with pytest.raises(ValueError, match="told 5 scores while 4 are asked for; need"):
            asking.tell([1.0] * 5)
        with pytest.raises(ValueError, match="told 2 scores and 1 times; need one a score"):
            asking.tell([1.0, 2.0], [0.1])
        for told in (([1.0, None],), (1.0,), ([1.0], [None])):
            with pytest.raises(TypeError, match="need a number a score"):
                asking.tell(*told)
        assert evaluations(tmp_path) == []
        with pytest.raises(ValueError, match="another search is using it"):
            started(tmp_path)
        asking.tell([math.nan, *scores_of(asked)[1:]])
        with pytest.raises(ValueError, match="the full width's cheap quality is not a finite"):
            asking.ask()
        with pytest.raises(ValueError, match="finish while scores are missing"):
            asking.finish()
