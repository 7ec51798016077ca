"""The search finds known fronts, and asks and tells as its loop does."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest
import scipy.stats
from search import synthetic
from search.synthetic import (
    COSTS,
    FILES,
    SMALL,
    WIDTHS,
    all_points,
    cheap_of,
    errors,
    evaluations,
    exact,
    log_snrs,
    noisy,
    run_search,
    started,
)

from ddsm_ext.io.files import read_json
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import CostTable
from ddsm_ext.search.engine import search
from ddsm_ext.search.front import Front


def area(points: list[tuple[float, float]], quality_end: float, cost_end: float) -> float:
    """Area dominated by points up to a corner, by a sum of rectangles."""
    total, best = 0.0, quality_end
    for quality, cost in sorted(points, key=lambda p: (p[1], p[0])):
        if quality < best and cost < cost_end:
            total += (best - quality) * (cost_end - cost)
            best = quality
    return total


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", ["evolution", "paper"])
def test_reaches_the_known_front(tmp_path, seed, method):
    steps, segments = 10, 3
    config = SearchConfig(
        method=method, segments=segments, pool=30, population=20, generations=16, finalists=100,
        seed=seed,
    )  # fmt: skip
    front = run_search(tmp_path, config, steps, quality=exact)
    known = all_points(steps, segments, synthetic.full_of)
    worst = max(synthetic.full_of([w] * steps) for w in WIDTHS)
    found = area([(p.quality, p.cost_relative) for p in front.points], worst, 1.01)
    assert found >= 0.99 * area(known, worst, 1.01)
    # from a part of the space only
    genomes = {json.dumps(row["genome"]) for row in evaluations(tmp_path)}
    assert len(genomes) < 0.5 * len(known)


def test_evolution_finds_what_the_proxy_misjudges(tmp_path):
    # the proxy knows nothing of the last steps, of which the quality takes half
    steps = 10
    blind = errors(steps).copy()
    blind[-3:] = 0.0
    config = SearchConfig(
        segments=3, pool=12, population=16, generations=15, finalists=100, budget_macs=0.42
    )
    front = run_search(tmp_path, config, steps, quality=exact, errors=blind)
    best = min(q for q, c in all_points(steps, 3, synthetic.full_of) if c <= 0.42)
    assert front.chosen.quality <= best + 0.01
    first = [r for r in evaluations(tmp_path) if r["stage"] == "race" and r["cost_relative"] < 0.42]
    assert min(r["quality"] for r in first) > best + 0.02


def test_the_proxy_alone_is_exact_and_asks_for_nothing(tmp_path):
    steps = 10
    config = SearchConfig(method="proxy", segments=3, proxy_budgets=12, budget_macs=0.42)
    front = run_search(tmp_path, config, steps, hook=pytest.fail)
    known = all_points(steps, 3)
    assert front.chosen.quality == pytest.approx(min(q for q, c in known if c <= 0.42), rel=1e-12)
    for point in front.points:
        widths = point.strategy.widths_for(log_snrs(steps))
        assert point.quality == point.proxy == pytest.approx(cheap_of(widths), rel=1e-12)
        assert point.samples == 0
        assert point.standard_error is None
        assert point.loss == point.quality  # the full width has no error
        relative = point.cost_relative * (1 + 1e-9)
        assert not [q for q, c in known if c <= relative and q < point.quality - 1e-12]
    assert front.network_evaluations == 0
    assert not (tmp_path / "search" / "archive.jsonl").exists()  # of others' scores, if any
    with started(tmp_path / "asked", config, steps, errors=errors(steps)) as asking:
        with pytest.raises(ValueError, match="finish while scores are missing"):
            asking.finish()
        assert asking.ask() == []
        assert asking.finish().points == front.points
    assert Front.load(tmp_path / "search" / "front.json") == front
    assert search(
        config, cost_table=COSTS, log_snrs=log_snrs(steps), run_dir=tmp_path / "none",
        errors=errors(steps), identity={"checkpoint": "synthetic"},
    ) == front  # fmt: skip


def test_front_is_nondominated_sorted_and_scored_on_its_own_samples(tmp_path):
    front = run_search(tmp_path, replace(SMALL, segments=3), 20)
    costs = [p.cost for p in front.points]
    assert costs == sorted(costs)
    assert all(a.quality > b.quality for a, b in zip(front.points, front.points[1:], strict=False))
    final = range(16, 16 + 32)
    full = noisy([1.0] * 20, final)
    for point in [*front.points, *front.constants]:
        widths = point.strategy.widths_for(log_snrs(20))
        blocks = noisy(widths, final)
        assert point.quality == pytest.approx(statistics.fmean(blocks), rel=1e-12)
        assert point.standard_error == pytest.approx(scipy.stats.sem(blocks), rel=1e-9)
        assert point.samples == 32
        if widths != [1.0] * 20:
            # of the difference on the same samples, which is known far better
            low, high = scipy.stats.ttest_rel(blocks, full).confidence_interval(0.95)
            assert point.loss == pytest.approx((low + high) / 2, rel=1e-9)
            assert point.loss_half_width == pytest.approx((high - low) / 2, rel=1e-9)
            assert point.loss_half_width < 0.5 * point.standard_error
        assert point.proxy == pytest.approx(cheap_of(widths), rel=1e-12)
        assert point.cost == pytest.approx(sum(COSTS[w] for w in widths), rel=1e-12)
    assert [p.strategy.widths for p in front.constants] == [(w,) for w in WIDTHS]
    assert front.full_cost == 20 * 6070.0
    assert (front.constants[0].loss, front.constants[0].loss_half_width) == (0.0, 0.0)


def test_scores_are_spent_by_the_rule(tmp_path):
    config = replace(SMALL, segments=3, generations=4, most_samples=30)
    run_search(tmp_path, config, 20)
    rows = evaluations(tmp_path)
    keys = [(json.dumps(r["genome"]), *r["samples"]) for r in rows]
    assert len(keys) == len(set(keys))
    taken: dict[str, list[int]] = {}
    for row in rows:
        first, last = row["samples"]
        if row["stage"] == "finalists":
            assert (first, last) == (30, 30 + 32)
            continue
        if row["stage"] == "chosen":
            assert (first, last) == (62, 62 + 32)
            continue
        assert first == 0
        taken.setdefault(json.dumps(row["genome"]), []).append(last)
    # every one from few samples on, doubled up to the cap
    assert all(counts == [8, 16, 30][: len(counts)] for counts in taken.values())
    assert {len(counts) for counts in taken.values()} >= {1, 2}
    assert all(r["quality"] == statistics.fmean(r["values"]) for r in rows)
    assert all(r["seconds"] >= 0 and 0 <= r["generation"] < 4 for r in rows)
    finalists = [r for r in rows if r["stage"] == "finalists"]
    assert len(WIDTHS) < len(finalists) <= len(WIDTHS) + 3
    # the widest first, and the full width once
    assert [r["genome"]["widths"] for r in finalists[:4]] == [[w] for w in WIDTHS]


def test_hypervolume_grows_and_files_agree(tmp_path):
    config = replace(SMALL, segments=3, generations=5, finalists=100, budget_macs=0.5)
    front = run_search(tmp_path, config, 20, quality=exact)
    history = read_json(tmp_path / "search" / "history.json")
    rows = history["generations"]
    assert [(g["stage"], g["generation"]) for g in rows] == [
        ("race", 0), *(("evolution", i) for i in range(1, 5)), ("finalists", 4),
        ("chosen", 4),
    ]  # fmt: skip
    volumes = [g["hypervolume"] for g in rows]
    assert volumes == sorted(volumes)
    assert 0 < volumes[0] < 1.2
    # by hand: the box from the constants, losses by costs
    losses = [synthetic.full_of([w] * 20) - synthetic.full_of([1.0] * 20) for w in WIDTHS]
    ends = [1.1 * max(losses), 382.5 / 6070 + 1.1 * (1 - 382.5 / 6070)]
    points = [(q - synthetic.full_of([1.0] * 20), c) for q, c in rows[-1]["front"]]
    share = area(points, *ends) / (ends[0] * (ends[1] - 382.5 / 6070))
    assert volumes[-1] == pytest.approx(share, rel=1e-9)
    assert history["hypervolume_points"]["reference"] == pytest.approx(ends)
    counts = [g["network_evaluations"] for g in rows]
    assert counts == sorted(counts)
    assert counts[-1] == front.network_evaluations
    assert rows[-1]["evaluations"] == len(evaluations(tmp_path))
    assert rows[-1]["front"] == [[p.quality, p.cost_relative] for p in front.points]
    assert Front.load(tmp_path / "search" / "front.json") == front
    strategy = Strategy.load(tmp_path / "search" / "strategy.json")
    assert strategy == front.chosen.strategy
    assert front.chosen.cost_relative <= 0.5
    assert strategy.origin["checkpoint"] == "synthetic"
    assert strategy.origin["samples"] == 32


@pytest.mark.parametrize("method", ["evolution", "paper"])
def test_failed_candidates_lose_and_are_not_repeated(tmp_path, method):
    def quality(widths, samples):
        values = noisy(widths, samples)
        return [*values[:-1], math.nan] if 0.25 in widths else values

    config = replace(SMALL, method=method, segments=3)
    front = run_search(tmp_path, config, 12, quality=quality)
    assert all(0.25 not in p.strategy.widths for p in [*front.points, *front.constants])
    failed = [r for r in evaluations(tmp_path) if r["failed"]]
    assert failed
    assert all(r["quality"] is None and r["values"] is None for r in failed)
    # a failure is not sampled on; a constant width is asked once more, on the new samples
    assert {tuple(r["samples"]) for r in failed} <= {(0, 8), (16, 48)}
    assert run_search(tmp_path, config, 12, pytest.fail) == front


def test_a_search_in_which_almost_everything_fails(tmp_path):
    def quality(widths, samples):
        return noisy(widths, samples) if set(widths) == {1.0} else math.inf

    for method in ("evolution", "paper"):
        config = replace(SMALL, method=method, budget_macs=None)
        front = run_search(tmp_path / method, config, 12, quality=quality)
        assert front.points == front.constants == (front.chosen,)
        assert front.chosen.strategy.widths == (1.0,)


def test_refusals_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"the budget is .*cheapest strategy costs .*0\.06301"):
        run_search(tmp_path, replace(SMALL, budget_macs=0.05), 20)
    assert not (tmp_path / "search").exists()
    with pytest.raises(ValueError, match=r"method is 'evolution' without a quality; need one"):
        search(SMALL, cost_table=COSTS, log_snrs=log_snrs(20), run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"method is 'proxy' without errors; need the weighted"):
        run_search(tmp_path, replace(SMALL, method="proxy"), 20, errors=None)
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
    config = replace(SMALL, objectives=("quality", "ms"), budget_macs=None, budget_ms=50.0)
    front = run_search(tmp_path, config, 20, cost_table=ms)
    assert front.cost_unit == "ms"
    assert front.full_cost == 80.0
    assert front.chosen.cost <= 50.0
    strict = replace(config, max_quality_loss=1e-9)
    search = tmp_path / "search"
    kept = {file: (search / file).read_bytes() for file in FILES if file != "history.json"}
    with pytest.raises(ValueError, match="need a larger budget or loss"):
        run_search(tmp_path, strict, 20, cost_table=ms)
    for file, content in kept.items():  # the earlier choice stays, and its front with it
        assert (search / file).read_bytes() == content
    with pytest.raises(ValueError, match="need a larger budget or loss"):
        run_search(tmp_path / "first", strict, 20, cost_table=ms)
    assert Front.load(tmp_path / "first" / "search" / "front.json").chosen is None


@pytest.mark.parametrize("method", ["evolution", "paper", "proxy"])
@pytest.mark.parametrize(
    ("steps", "change"),
    [
        (1, {"segments": 4}),
        (10, {"segments": 1}),
        (10, {"widths": (1.0,)}),
        (1, {"widths": (1.0,)}),
        (2, {"widths": (1.0, 0.5)}),  # four strategies, less than pool and population
        (10, {"generations": 1}),
        (10, {"finalists": 0}),
        (10, {"finalists": 1, "budget_macs": 0.5}),
        (10, {"pool": 1, "population": 2}),
        (10, {"samples": 64}),  # more than most_samples
        (10, {"budget_macs": 382.5 / 6070}),
        (10, {"budget_macs": 382.5 / 6070 * (1 - 5e-10)}),
        (10, {"budget_macs": 1.0}),
    ],
)
def test_at_the_edges(tmp_path, method, steps, change):
    config = replace(SMALL, **{"method": method, "budget_macs": None, **change})
    table = errors(steps)[:, [WIDTHS.index(w) for w in config.widths]]
    front = run_search(tmp_path, config, steps, errors=table)
    assert front.chosen is not None
    assert front.chosen.cost_relative <= (config.budget_macs or 1.0) * (1 + 1e-9)
    assert [p.strategy.widths for p in front.constants] == [(w,) for w in config.widths]
    if steps == 1:
        assert {p.strategy.widths for p in front.points} <= {(w,) for w in config.widths}
        assert len(evaluations(tmp_path)) <= 3 * len(config.widths)
    assert max(len(p.strategy.widths) for p in front.points) <= min(config.segments, steps)
    assert run_search(tmp_path, config, steps, pytest.fail, errors=table) == front
    if method == "evolution" and config.finalists:
        assert {p.samples for p in front.points} == {32}
        assert not overlapping(evaluations(tmp_path))


def overlapping(rows: list[dict]) -> bool:
    """Whether the finalists or the chosen one were scored on samples that chose."""
    ends = {"race": 0, "evolution": 0, "finalists": 0, "chosen": 0}
    for row in rows:
        ends[row["stage"]] = max(ends[row["stage"]], row["samples"][1])
    first = {row["stage"]: row["samples"][0] for row in rows}
    race, final = max(ends["race"], ends["evolution"]), ends["finalists"]
    return first["finalists"] < race or first.get("chosen", final) < final


def test_progress_reaches_its_end(tmp_path):
    states = []
    front = run_search(tmp_path, SMALL, 20, progress=states.append)
    last = states[-1]
    assert last.evaluations == len(evaluations(tmp_path))
    assert last.samples == last.expected_samples == front.network_evaluations / 20
    counts = [s.samples for s in states]
    assert counts == sorted(counts)
    assert all(s.samples <= s.expected_samples for s in states)
    assert all(s.generations == 3 for s in states)
    assert {s.generation for s in states} == {0, 1, 2}
    assert list(dict.fromkeys(s.stage for s in states)) == [
        "race",
        "evolution",
        "finalists",
        "chosen",
    ]
    assert states[0].hypervolume is None
    assert last.hypervolume > 0


def test_without_errors_the_pool_is_random(tmp_path):
    front = run_search(tmp_path, SMALL, 12, errors=None)
    assert front.points[0].proxy is None
    first = [r for r in evaluations(tmp_path) if r["stage"] == "race" and r["samples"] == [0, 8]]
    assert len(first) == 8
    assert len({json.dumps(r["genome"]) for r in first}) == 8
    assert first[-1]["proxy"] is None
