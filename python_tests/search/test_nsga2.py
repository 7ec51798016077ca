"""Random strategies, asking and telling, and operators that change genes at their rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from search.synthetic import WIDTHS, genome_of, log_snrs

from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.genome import StrategySpace
from ddsm_ext.search.nsga2 import (
    Evolution,
    SameStrategy,
    SegmentCrossover,
    SegmentMutation,
    random_genomes,
)

SPACE = StrategySpace(log_snrs(200), WIDTHS, 4)
PROBLEM = Problem(n_var=SPACE.n_genes, n_obj=2, xl=0.0, xu=3.0)


def parents(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    cuts = np.sort(random.random((count, SPACE.n_cuts)), axis=1)
    return np.hstack([cuts, random.integers(0, 4, (count, SPACE.segments))])


def mutated(x: np.ndarray, prob: float, prob_var: float | None) -> np.ndarray:
    operator = SegmentMutation(SPACE, prob=prob, prob_var=prob_var)
    population = Population.new("X", x.copy())
    return operator.do(PROBLEM, population, random_state=np.random.default_rng(1)).get("X")


@pytest.mark.parametrize(("prob", "prob_var"), [(1.0, 0.1), (1.0, 0.4), (0.5, 0.25), (1.0, None)])
def test_rate_is_per_individual_times_per_gene(prob, prob_var):
    x = parents(4000)
    child = mutated(x, prob, prob_var)
    cuts = SPACE.n_cuts
    # cuts are sorted again after a mutation, so count those that no parent's cut equals
    new_cuts = (child[:, :cuts, None] != x[:, None, :cuts]).all(axis=2)
    new_widths = child[:, cuts:] != x[:, cuts:]
    gene_rate = min(0.5, 1.5 / 7) if prob_var is None else prob_var
    for changed in (new_cuts, new_widths):
        # five standard deviations of a binomial share, individuals counted as the units
        spread = 5 * np.sqrt(0.25 / 4000)
        assert changed.mean() == pytest.approx(prob * gene_rate, abs=spread)
    whole = np.hstack([new_cuts, new_widths]).any(axis=1).mean()
    assert whole == pytest.approx(prob * (1 - (1 - gene_rate) ** 7), abs=5 * np.sqrt(0.25 / 4000))


def test_rates_of_zero_and_one():
    x = parents(200)
    assert (mutated(x, 1.0, 0.0) == x).all()
    assert (mutated(x, 0.0, 1.0) == x).all()
    child = mutated(x, 1.0, 1.0)
    assert (child[:, SPACE.n_cuts :] != x[:, SPACE.n_cuts :]).all()
    assert child[:, : SPACE.n_cuts].min() >= 0
    assert child[:, : SPACE.n_cuts].max() <= 1
    assert (np.diff(child[:, : SPACE.n_cuts]) >= 0).all()
    assert set(np.unique(child[:, SPACE.n_cuts :])) == {0.0, 1.0, 2.0, 3.0}


def test_a_shift_is_one_level_or_more():
    space = StrategySpace(log_snrs(50), WIDTHS, 2)
    x = np.tile([0.4, 0.0, 1.0], (500, 1))
    child = SegmentMutation(space, prob_var=1.0).mutate(x, np.random.default_rng(2))
    moved = np.abs(np.rint(50 * child[:, 0]) - 20)
    assert moved.min() == 1
    assert moved.max() >= 20


def test_a_single_width_stays():
    space = StrategySpace(log_snrs(50), (1.0,), 2)
    child = SegmentMutation(space, prob_var=1.0).mutate(
        np.array([[0.4, 0, 0]]), np.random.default_rng(0)
    )
    assert child[0, 1:].tolist() == [0, 0]


def test_children_join_two_parents_at_one_level():
    a = genome_of(SPACE, (120, 2), (80, 0))
    b = genome_of(SPACE, (60, 3), (140, 1))
    random = np.random.default_rng(0)
    steps = {g: np.repeat(g.widths, np.diff([0, *g.boundaries, 200])) for g in (a, b)}
    for _ in range(50):
        first, second = SegmentCrossover(SPACE).cross(a, b, random)
        one, two = (np.repeat(g.widths, np.diff([0, *g.boundaries, 200])) for g in (first, second))
        level = next(i for i in range(1, 201) if (one[i:] == steps[b][i:]).all())
        assert (one[:level] == steps[a][:level]).all()
        assert ((two == steps[b]) | (two == steps[a])).all()


def test_children_have_at_most_the_segments():
    random = np.random.default_rng(0)
    genomes = random_genomes(SPACE, 60, [], random)
    for a, b in zip(genomes[::2], genomes[1::2], strict=True):
        for child in SegmentCrossover(SPACE).cross(a, b, random):
            assert len(child.widths) <= 4
            assert SPACE.decode(SPACE.encode(child)) == child
            assert set(child.widths) <= {*a.widths, *b.widths}


def test_parents_of_one_pattern_blend_their_boundaries():
    a, b = genome_of(SPACE, (40, 2), (160, 0)), genome_of(SPACE, (120, 2), (80, 0))
    random = np.random.default_rng(0)
    for _ in range(20):
        for child in SegmentCrossover(SPACE).cross(a, b, random):
            assert child.widths == (2, 0)
            assert 40 <= child.boundaries[0] <= 120


def test_duplicates_are_equal_strategies():
    same = [0.2, 0.5, 0.8, 1, 1, 0, 0], [0.1, 0.5, 0.9, 1, 1, 0, 0], [0.5, 0.5, 0.5, 1, 3, 2, 0]
    other = [0.2, 0.5, 0.8, 1, 1, 0, 2]
    kept = SameStrategy(SPACE, set()).do(Population.new("X", np.array([*same, other])))
    expected = [genome_of(SPACE, (100, 1), (100, 0)), genome_of(SPACE, (100, 1), (60, 0), (40, 2))]
    assert [SPACE.decode(x) for x in kept.get("X")] == expected
    seen = {SPACE.decode(other)}
    kept = SameStrategy(SPACE, seen).do(Population.new("X", np.array([*same, other])))
    assert len(kept) == 1
    known = Population.new("X", np.array([same[1]]))
    assert len(SameStrategy(SPACE, set()).do(Population.new("X", np.array([*same])), known)) == 0


def test_random_genomes_differ_and_a_small_space_runs_out():
    space = StrategySpace(log_snrs(100), WIDTHS, 4)
    known = space.constants()
    made = random_genomes(space, 50, known, np.random.default_rng(0))
    assert len({*made, *known}) == 54
    assert {len(g.widths) for g in made} == {1, 2, 3, 4} - {1}
    tiny = StrategySpace([0.0, 1.0], (1.0, 0.5), 2)
    assert len(random_genomes(tiny, 50, [], np.random.default_rng(0))) == 4


def evolution(initial, population, space=SPACE, bred=None):
    return Evolution(SearchConfig(), space, initial, population, bred or population, seed=1)


def every(genomes):
    return range(len(genomes))


def kept(run: Evolution) -> set:
    return {run.space.decode(x) for x in run._algorithm.pop.get("X")}


def test_asks_for_the_initial_ones_and_then_never_for_the_same_again():
    initial = random_genomes(SPACE, 9, [], np.random.default_rng(0))
    run, asked = evolution(initial, 6), []
    assert run.ask(every) == initial
    run.tell(lambda genome: (float(len(genome.widths)), float(genome.widths[0])))
    for _ in range(5):
        new = run.ask(every)
        assert len(new) == 6
        asked += new
        run.tell(lambda genome: (float(sum(genome.widths)), float(len(genome.widths))))
    assert len({*initial, *asked}) == 9 + 30


def test_children_that_were_not_chosen_may_come_again():
    tiny = StrategySpace([0.0, 1.0, 2.0], (1.0, 0.5), 3)  # of 8 strategies
    initial = tiny.constants()
    run, asked = evolution(initial, 2, tiny, bred=6), []
    assert run.ask(lambda genomes: pytest.fail("the initial ones are not chosen")) == initial
    offered = []

    def last(genomes):
        offered.append(genomes)
        return [len(genomes) - 1]

    run.tell(lambda genome: (float(len(genome.widths)), 1.0))
    while new := run.ask(last):
        assert new == offered[-1][-1:]
        asked += new
        run.tell(lambda genome: (float(len(genome.widths)), 1.0))
    assert len(offered[0]) > 1
    assert len({*initial, *asked}) == 2 + len(asked) == 8


def test_a_score_that_changed_counts_as_it_is_now():
    initial = random_genomes(SPACE, 8, [], np.random.default_rng(0))
    lucky = initial[3]
    points = {genome: (1.0 + i, 8.0 - i) for i, genome in enumerate(initial)}
    points[lucky] = (0.0, 0.0)  # dominates all others

    def tell():
        run.tell(lambda genome: points.setdefault(genome, (50.0, 50.0)))

    run = evolution(initial, 4)
    for _ in range(2):  # the first population is kept whole
        run.ask(every)
        tell()
    assert lucky in kept(run)
    points[lucky] = (99.0, 99.0)
    run.ask(every)
    tell()
    assert lucky not in kept(run)
    # one that failed later, too
    best = min(kept(run), key=lambda genome: points[genome])
    points[best] = (math.inf, 0.0)
    run.ask(every)
    tell()
    assert best not in kept(run)


def test_a_failed_one_loses_to_every_other():
    initial = random_genomes(SPACE, 6, [], np.random.default_rng(0))
    run = evolution(initial, 3)
    finite = set(initial[3:])
    for _ in range(2):  # the first population is kept whole
        run.ask(every)
        run.tell(lambda genome: (9.0 if genome in finite else math.inf, 1.0))
    assert kept(run) == finite


def test_a_space_that_is_used_up_asks_for_nothing():
    tiny = StrategySpace([0.0, 1.0], (1.0, 0.5), 2)
    run, seen = evolution(tiny.constants()[:1], 4, tiny), []
    while asked := run.ask(every):
        seen += asked
        run.tell(lambda genome: (float(len(genome.widths)), float(sum(genome.widths))))
    assert len(seen) == len(set(seen)) <= 4
    # a single strategy in all
    one = StrategySpace([0.0], (1.0,), 3)
    run = evolution(one.constants(), 4, one)
    assert run.ask(every) == one.constants()
    run.tell(lambda genome: (1.0, 1.0))
    assert run.ask(every) == []
