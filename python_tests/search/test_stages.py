"""What noise does to a search: whom it scores, on which samples, and what it then reports."""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from pymoo.indicators.hv import HV
from search.synthetic import COSTS, WIDTHS, errors, full_of, log_snrs, noisy, run_search

from ddsm_ext.intervals import standard_error
from ddsm_ext.io.files import read_json
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.engine import Search
from ddsm_ext.search.front import Front
from ddsm_ext.search.genome import StrategySpace

STEPS = 12
CONFIG = SearchConfig(
    segments=3, proxy_budgets=8, pool=16, population=8, generations=4, samples=16,
    most_samples=64, finalists=6, final_samples=128, budget_macs=0.5,
)  # fmt: skip
FULL_LOSS = full_of([1.0] * STEPS)
TRUE_WORST = full_of([0.25] * STEPS) - FULL_LOSS


def true_loss(strategy: Strategy) -> float:
    return full_of(strategy.widths_for(log_snrs(STEPS))) - FULL_LOSS


def searched(run_dir, config: SearchConfig, quality=noisy) -> tuple[Front, list]:
    """The front, and every request with its score."""
    told = []

    def remember(widths, samples):
        values = quality(widths, samples)
        told.append((tuple(widths), samples, values))
        return values

    return run_search(run_dir, config, STEPS, quality=remember), told


def test_doubled_scores_count_their_new_samples_only(tmp_path):
    front, told = searched(tmp_path, CONFIG)
    fresh, known = 0, {}
    for widths, samples, _ in told:
        if samples.start == 0:
            fresh += len(samples) - known.get(widths, 0)
            known[widths] = len(samples)
        else:
            fresh += len(samples)
    assert max(known.values()) > min(known.values())
    assert front.network_evaluations == fresh * STEPS
    # what a resumed search says, too
    assert run_search(tmp_path, CONFIG, STEPS, pytest.fail).network_evaluations == fresh * STEPS
    history = read_json(tmp_path / "search" / "history.json")["generations"]
    assert history[-1]["network_evaluations"] == fresh * STEPS


def test_choosing_among_many_children_finds_a_better_front(tmp_path):
    def volume(children: int, seed: int) -> float:
        config = replace(CONFIG, children=children, seed=seed, pool=6, samples=64, finalists=0)
        folder = tmp_path / f"{children}-{seed}"
        front = run_search(folder, config, STEPS, quality=functools.partial(noisy, own=0.01))
        points = [(true_loss(p.strategy), p.cost_relative) for p in front.points]
        return float(HV(ref_point=np.array([TRUE_WORST, 1.1]))(np.array(points)))

    gained = [volume(20, seed) - volume(1, seed) for seed in range(6)]
    assert statistics.fmean(gained) > 3 * standard_error(gained) > 0


def test_finalists_are_scored_on_samples_that_chose_nothing(tmp_path):
    front, told = searched(tmp_path, CONFIG)
    ranges = list(dict.fromkeys(samples for _, samples, _ in told))
    assert ranges == [range(16), range(32), range(64), range(64, 192), range(192, 320)]
    final = [widths for widths, samples, _ in told if samples == range(64, 192)]
    assert len(final) == len(set(final)) <= len(WIDTHS) + 6
    assert {tuple(p.strategy.widths_for(log_snrs(STEPS))) for p in front.points} <= {*final}
    # and the chosen one of them on others again, with the full width
    again = {widths: values for widths, samples, values in told if samples == range(192, 320)}
    chosen = tuple(front.chosen.strategy.widths_for(log_snrs(STEPS)))
    assert list(again) == [(1.0,) * STEPS, chosen]
    losses = [a - b for a, b in zip(again[chosen], again[(1.0,) * STEPS], strict=True)]
    assert front.chosen.loss == pytest.approx(statistics.fmean(losses), rel=1e-9)
    assert front.chosen.quality == pytest.approx(front.full_quality + front.chosen.loss)
    assert front.chosen.samples == 128
    found = [p for p in front.points if p.strategy.widths_for(log_snrs(STEPS)) == list(chosen)]
    assert [p.samples for p in found] == [128]
    assert found[0].quality != front.chosen.quality


def test_a_paper_search_scores_population_times_generations(tmp_path):
    config = replace(CONFIG, method="paper", population=10, generations=5)
    front, told = searched(tmp_path, config)
    # of one range each, never twice; the four constant widths come on top, where they are not
    # among the population
    assert {samples for _, samples, _ in told} == {range(16)}
    widths = [widths for widths, _, _ in told]
    assert len(widths) == len(set(widths))
    assert 50 <= len(widths) <= 54
    assert front.network_evaluations == len(widths) * 16 * STEPS
    assert {p.samples for p in front.points} == {16}
    # from random starts, whatever the errors say
    other = run_search(tmp_path / "other", config, STEPS, errors=None)
    assert [p.strategy.widths for p in other.points] == [p.strategy.widths for p in front.points]
    # the front is that of all its scores, and only of them
    points = [
        (statistics.fmean(values), sum(COSTS[w] for w in widths) / (6070.0 * STEPS))
        for widths, _, values in told
    ]
    best = [p for p in points if not any(q < p and q[1] <= p[1] for q in points if q != p)]
    best.sort(key=lambda p: p[1])
    assert [p.quality for p in front.points] == pytest.approx([q for q, _ in best])
    assert [p.cost_relative for p in front.points] == pytest.approx([c for _, c in best])


def test_common_noise_does_not_order_strategies_of_different_samples(tmp_path):
    """The race alone makes the front; only noise that all strategies share is added."""
    config = replace(CONFIG, finalists=0)

    def shared_only(widths, samples):
        return noisy(widths, samples, seed=5, own=1e-4, shared=30.0)

    front, _ = searched(tmp_path, config, shared_only)
    exact = run_search(tmp_path / "exact", config, STEPS, quality=lambda w, n: full_of(w))
    assert front.chosen.strategy.widths == exact.chosen.strategy.widths
    assert front.chosen.loss == pytest.approx(true_loss(front.chosen.strategy), abs=1e-4)
    losses = [true_loss(p.strategy) for p in front.points]
    assert all(a > b for a, b in pairwise(losses))
    assert all(
        p.quality - front.full_quality == pytest.approx(p.loss, abs=1e-9) for p in front.points
    )


def test_what_is_reported_is_unbiased_and_the_races_best_is_too_good(tmp_path):
    reported, final, raced, regret = [], [], [], []
    for seed in range(24):
        config = replace(CONFIG, seed=seed, pool=12, proxy_budgets=4, generations=2)
        front, told = searched(
            tmp_path / str(seed),
            config,
            lambda widths, samples, seed=seed: noisy(widths, samples, seed, own=0.4),
        )
        true = true_loss(front.chosen.strategy)
        reported.append(front.chosen.loss - true)
        same = (p for p in front.points if p.cost == front.chosen.cost)
        final.append(next(same).loss - true)
        # the best score within the budget of all that chose
        latest = {widths: (s, v) for widths, s, v in told if s.start == 0}
        within = [w for w in latest if sum(COSTS[x] for x in w) <= 0.5 * 6070.0 * STEPS]

        def loss(widths, latest=latest, told=told):
            samples, values = latest[widths]
            full = next(v for w, s, v in told if set(w) == {1.0} and s == samples)
            return statistics.fmean(values) - statistics.fmean(full)

        best = min(within, key=loss)
        raced.append(loss(best) - (full_of(best) - FULL_LOSS))
        regret.append(true - min(full_of(w) - FULL_LOSS for w in within))
    # the error of one loss at 128 samples: two strategies' own noise
    error = 0.4 * math.sqrt(2 / 128)
    assert abs(statistics.fmean(reported)) < 2 * standard_error(reported)
    assert statistics.stdev(reported) == pytest.approx(error, rel=0.5)
    # the winner's curse: lower than the truth by several times its error, and so is, by less, the
    # best of the finalists' scores
    assert statistics.fmean(raced) < -3 * standard_error(raced)
    assert statistics.fmean(final) < -2 * standard_error(final)
    assert statistics.fmean(regret) < 2 * error


def test_a_dominated_strategy_is_no_finalist_by_the_luck_of_few_samples(tmp_path):
    # the first 16 samples flatter everything by the same: who went on to 64 looks worse since
    def flattered(widths, samples):
        first = min(16, samples.stop) - min(16, samples.start)
        bonus = 5.0 * first / len(samples)
        return [value - bonus for value in noisy(widths, samples, own=0.2)]

    front, _ = searched(tmp_path, CONFIG, flattered)
    plain, _ = searched(tmp_path / "plain", CONFIG, lambda w, n: noisy(w, n, own=0.2))
    assert [p.strategy.widths for p in front.points] == [p.strategy.widths for p in plain.points]
    assert front.chosen == plain.chosen


@pytest.mark.parametrize("stop", [16, 32, 192, 320])
def test_a_full_width_that_fails_ends_the_search(tmp_path, stop):
    def quality(widths, samples):
        failed = set(widths) == {1.0} and samples.stop == stop
        return math.nan if failed else noisy(widths, samples, own=0.4)

    for _ in range(2):  # and again when it is resumed
        with pytest.raises(ValueError, match="the full width's quality is not a finite number"):
            run_search(tmp_path, CONFIG, STEPS, quality=quality)
    arguments = {"cost_table": COSTS, "log_snrs": log_snrs(STEPS), "errors": errors(STEPS)}
    with Search(CONFIG, **arguments, run_dir=tmp_path, identity={"checkpoint": "synthetic"}) as run:
        with pytest.raises(ValueError, match="the full width's quality is not a finite number"):
            run.ask()
        assert run.ask() == []
        with pytest.raises(ValueError, match="finish while scores are missing"):
            run.finish()


def test_a_constant_that_fails_late_is_left_out(tmp_path):
    def quality(widths, samples):
        failed = set(widths) == {0.5} and samples.start > 0
        return math.inf if failed else noisy(widths, samples)

    front = run_search(tmp_path, CONFIG, STEPS, quality=quality)
    assert [p.strategy.widths for p in front.constants] == [(1.0,), (0.75,), (0.25,)]
    assert (0.5,) not in {p.strategy.widths for p in front.points}
    assert front.full_quality == pytest.approx(
        statistics.fmean(noisy([1.0] * STEPS, range(64, 192)))
    )


def test_scores_of_one_value_race_without_intervals(tmp_path):
    front, told = searched(tmp_path, CONFIG, lambda w, n: statistics.fmean(noisy(w, n)))
    # nothing is known of the error, so that nothing is sampled on
    assert {samples for _, samples, _ in told} == {range(16), range(64, 192), range(192, 320)}
    assert {p.standard_error for p in front.points} == {None}
    assert {p.loss_half_width for p in front.points} == {0.0}


def test_the_pool_is_the_first_to_be_scored(tmp_path):
    _, told = searched(tmp_path, CONFIG)
    space = StrategySpace(log_snrs(STEPS), WIDTHS, 3)
    pool = [widths for widths, samples, _ in told[:16] if samples == range(16)]
    assert len(pool) == CONFIG.pool
    assert [set(widths) for widths in pool[:4]] == [{w} for w in WIDTHS]
    assert all(len(space.from_levels([WIDTHS.index(w) for w in p]).widths) <= 3 for p in pool)
