"""What a Gaussian process on the scores so far says of strategies, and what is chosen by it."""

from __future__ import annotations

import numpy as np
import pytest
from pymoo.indicators.hv import HV
from scipy.stats import spearmanr
from search.synthetic import COSTS, WIDTHS, full_of, log_snrs

from ddsm_ext.search.cost import StepCost
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.nsga2 import random_genomes
from ddsm_ext.search.race import Race, Score
from ddsm_ext.search.surrogate import (
    hypervolume_gains,
    predicted_qualities,
    promising,
    width_features,
)

SPACE = StrategySpace(log_snrs(20), WIDTHS, 4)


def quality(genome: Genome) -> float:
    return full_of(SPACE.strategy(genome).widths_for(log_snrs(20)))


def test_features_are_shares_of_the_levels_below_each_width():
    space = StrategySpace([0.0, 1.0, 2.0], (1.0, 0.5, 0.25), 3)
    found = width_features(space, [Genome((1, 2), (2, 0, 1)), *space.constants()])
    # of each level: narrower than 1, narrower than 0.5
    expected = [[1, 1, 0, 0, 1, 0], [0] * 6, [1, 0] * 3, [1] * 6]
    np.testing.assert_array_equal(found, expected)
    # many levels are taken together, in equal parts
    many = StrategySpace(log_snrs(1000), (1.0, 0.5), 2)
    half = width_features(many, [Genome((500,), (0, 1))])
    assert half.shape == (1, 32)
    assert half.mean() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_it_learns_what_the_widths_do(noise):
    random = np.random.default_rng(0)
    genomes = random_genomes(SPACE, 120, [], random)
    true = np.array([quality(genome) for genome in genomes])
    scores = true + noise * random.standard_normal(120)
    found = predicted_qualities(SPACE, genomes[:60], scores[:60].tolist(), genomes[60:])
    assert found.shape == (60,)
    assert spearmanr(found, true[60:]).statistic > 0.9
    assert np.abs(found - true[60:]).mean() < 0.3 * true.std()


def test_equal_scores_promise_nothing_else():
    genomes = random_genomes(SPACE, 6, [], np.random.default_rng(0))
    found = predicted_qualities(SPACE, genomes[:4], [2.0] * 4, genomes[4:])
    assert found == pytest.approx([2.0, 2.0], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_gain_is_what_the_hypervolume_grows_by(seed):
    random = np.random.default_rng(seed)
    front, candidates = random.random((7, 2)), random.random((20, 2)) * 1.5
    reference = (0.9, 1.1)
    volume = HV(ref_point=np.array(reference))

    def pairs(points):
        return [(float(q), float(c)) for q, c in points]

    grown = [volume(np.vstack([front, point])) - volume(front) for point in candidates]
    found = hypervolume_gains(pairs(candidates), pairs(front), reference)
    np.testing.assert_allclose(found, grown, rtol=0, atol=1e-12)
    assert hypervolume_gains([(0.4, 0.1)], [], reference) == pytest.approx([0.5])


def scored_race(genomes: list[Genome]) -> Race:
    race = Race(StepCost(COSTS, SPACE), 8, 8)
    for genome in [*SPACE.constants(), *genomes]:
        race.take(genome, Score((quality(genome),), 8))
    return race


def test_what_promises_most_is_better_than_what_comes_first():
    genomes = random_genomes(SPACE, 260, SPACE.constants(), np.random.default_rng(1))
    race, children = scored_race(genomes[:60]), genomes[60:]
    loss = quality(SPACE.constants()[-1]) - quality(SPACE.constants()[0])
    reference = (1.1 * loss, 1.1)
    chosen = promising(race, children, reference, 10)
    assert len(chosen) == len(set(chosen)) == 10
    full = quality(SPACE.constants()[0])
    volume = HV(ref_point=np.array([full + reference[0], reference[1]]))

    def with_children(some: list[Genome]) -> float:
        points = [(quality(g), race.cost.relative(g)) for g in [*race.scored(), *some]]
        return float(volume(np.array(points)))

    alone = with_children([])
    first, best = with_children(children[:10]), with_children([children[i] for i in chosen])
    assert best - alone > 3 * (first - alone)


def test_there_may_be_fewer_than_wanted_and_none_that_promises_anything():
    race = scored_race(random_genomes(SPACE, 30, SPACE.constants(), np.random.default_rng(2)))
    children = random_genomes(SPACE, 40, race.scored(), np.random.default_rng(3))
    assert sorted(promising(race, children[:3], (1.0, 1.1), 10)) == [0, 1, 2]
    # beyond the reference nothing counts: then in their order
    assert promising(race, children, (-99.0, 1.1), 4) == [0, 1, 2, 3]
