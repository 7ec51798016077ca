"""Who is beaten, who is sampled on, and how often the race drops the best of known qualities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from search.synthetic import WIDTHS, log_snrs

from ddsm_ext.search.cost import StepCost
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.race import Race, Score, difference

# 6 steps whose widths cost 4, 3, 2 and 1: strategies of equal cost, and of every cost between
SPACE = StrategySpace(log_snrs(6), WIDTHS, 3)
COST = StepCost({1.0: 4.0, 0.75: 3.0, 0.5: 2.0, 0.25: 1.0}, SPACE)
FULL, WIDE, HALF, NARROW = SPACE.constants()
MIXED = Genome((3,), (3, 1))  # 12, as the half width
BLOCKS = np.array([-1.5, -0.5, 0.5, 1.5])  # noise that all strategies share


def race_of(scores, samples=8, most=32) -> Race:
    """A race that took {strategy: {samples: values or one value}}."""
    race = Race(COST, samples, most)
    for genome, taken in scores.items():
        for count, values in taken.items():
            race.take(genome, Score(tuple(np.atleast_1d(values).tolist()), count))
    return race


def around(mean: float, own: float = 0.0) -> np.ndarray:
    """Four blocks around a mean, of the common noise and some of its own."""
    return mean + BLOCKS + own * np.array([1.0, -1.0, -1.0, 1.0])


def test_a_score_has_its_mean_and_error():
    score = Score((1.0, 2.0, 3.0, 6.0), 64)
    assert score.mean == 3.0
    assert score.standard_error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert Score((2.0,), 64).standard_error is None


def test_a_difference_is_paired():
    # a spread of 1.3 in both, and none in the difference but that of their own
    found = difference(Score(tuple(around(3.0, 0.1)), 8), Score(tuple(around(2.0)), 8))
    assert found.mean == pytest.approx(1.0)
    # sd of (.1, -.1, -.1, .1) is .1155, its error .0577, t of 3 degrees 3.182
    assert found.half_width == pytest.approx(3.182446 * 0.0577350, rel=1e-5)
    for other in (Score((math.inf,), 8), Score((math.inf, 1.0, 1.0, 1.0), 8)):
        assert difference(other, Score(tuple(around(2.0)), 8)).mean == math.inf
        assert difference(Score(tuple(around(2.0)), 8), other).mean == -math.inf
    # other blocks: nothing is known of the error
    assert difference(Score((3.0, 4.0), 8), Score((1.0,), 8)).half_width == 0.0
    assert difference(Score((math.inf,), 8), Score((math.inf,), 8)).mean == 0.0


def test_beaten_is_who_is_surely_worse_at_no_less_cost():
    race = race_of(
        {
            FULL: {8: around(2.0)},
            WIDE: {8: around(3.0, 0.1)},  # cheaper than the full width
            HALF: {8: around(2.5)},  # cheaper than that and better
            MIXED: {8: around(2.6, 0.2)},  # of equal cost: worse by .1, but not surely
            NARROW: {8: around(9.0)},  # worst and cheapest
        }
    )
    assert race.alive([FULL, WIDE, HALF, MIXED, NARROW]) == [FULL, HALF, MIXED, NARROW]
    # by what was scored, whether it is asked about or not
    assert race.alive([WIDE]) == []
    # of equal cost and surely worse
    race.take(MIXED, Score(tuple(around(2.6, 0.01)), 8))
    assert race.alive([HALF, MIXED]) == [HALF]


def test_of_an_open_pair_the_one_with_fewer_samples_goes_on():
    scores = {
        FULL: {8: around(2.0)},
        HALF: {8: around(2.5)},
        MIXED: {8: around(2.6, 0.2)},
        NARROW: {8: around(9.0)},
    }
    race = race_of(scores)
    # the half width and the mixed one, and the full width, which goes along
    assert race.open([FULL, HALF, MIXED, NARROW]) == [(FULL, 16), (HALF, 16), (MIXED, 16)]
    assert race.open([MIXED]) == []
    assert race.open([MIXED], against=[HALF]) == [(FULL, 16), (HALF, 16), (MIXED, 16)]
    assert race.open([FULL, NARROW]) == []
    for genome in (FULL, HALF):
        race.take(genome, Score(tuple(around(2.0 + 0.5 * (genome == HALF))), 16))
    # compared on the eight that both have
    assert race.open([HALF, MIXED]) == [(MIXED, 16)]
    race.take(MIXED, Score(tuple(around(2.6, 0.2)), 16))
    assert race.open([HALF, MIXED]) == [(FULL, 32), (HALF, 32), (MIXED, 32)]
    for genome in (FULL, HALF, MIXED):
        race.take(genome, Score(tuple(around(2.5, 0.2 * (genome == MIXED))), 32))
    assert race.open([HALF, MIXED]) == []  # as many as there are


def test_the_cap_need_not_be_a_doubling():
    scores = {FULL: {8: around(2.0)}, HALF: {8: around(2.5)}, MIXED: {8: around(2.6, 0.2)}}
    assert race_of(scores, most=12).open([HALF, MIXED])[0] == (FULL, 12)
    assert race_of(scores, most=8).open([HALF, MIXED]) == []
    # more first samples than most ones
    assert race_of(scores, most=2).most_samples == 8
    assert race_of(scores, most=2).open([HALF, MIXED]) == []


def test_exact_scores_are_never_open():
    race = race_of({FULL: {8: 2.0}, HALF: {8: 2.5}, MIXED: {8: 2.5 + 1e-9}, WIDE: {8: 2.5}})
    everyone = [FULL, WIDE, HALF, MIXED]
    assert race.open(everyone) == []
    # the wide one is as good as a cheaper one, the mixed one worse by next to nothing
    assert race.alive(everyone) == [FULL, WIDE, HALF]


def test_equal_scores_beat_nobody():
    race = race_of({FULL: {8: 2.0}, HALF: {8: 2.5}, MIXED: {8: 2.5}})
    assert race.alive([HALF, MIXED]) == [HALF, MIXED]


def test_who_failed_is_out_and_beats_nobody():
    race = race_of(
        {FULL: {8: around(2.0)}, HALF: {8: math.inf}, MIXED: {8: around(2.4), 16: math.inf},
         NARROW: {8: around(9.0)}}
    )  # fmt: skip
    assert race.scored() == [FULL, NARROW]
    assert race.alive([FULL, HALF, MIXED, NARROW]) == [FULL, NARROW]
    assert race.open([FULL, NARROW], against=[FULL]) == []
    assert race.point(HALF) == (math.inf, 0.5)
    assert race.latest(MIXED).samples == 16
    assert race.latest(WIDE) is None


def test_points_of_different_samples_compare_on_the_same_ones():
    # on 16 samples everything looks better by .7 than on the first 8
    race = race_of(
        {
            FULL: {8: around(2.0), 16: around(1.3)},
            HALF: {8: around(2.5), 16: around(1.8)},
            NARROW: {8: around(2.4)},  # better than the half width on what both have
        }
    )
    points = [race.point(genome) for genome in (FULL, HALF, NARROW)]
    assert [q for q, _ in points] == pytest.approx([1.3, 1.8, 1.7])
    assert [c for _, c in points] == [1.0, 0.5, 0.25]
    assert [race.loss(g).mean for g in (FULL, HALF, NARROW)] == pytest.approx([0.0, 0.5, 0.4])


def simulated(true: dict[Genome, float], seed: int, own: float):
    """Race strategies of known qualities to the end; return who is left, and all samples."""
    race = Race(COST, 16, 128)

    def take(genome, samples):
        common = np.random.default_rng([seed, 0]).normal(size=samples)
        mine = np.random.default_rng([seed, 1, *genome.widths, *genome.boundaries])
        noise = common + own * mine.normal(size=samples)
        values = [true[genome] + float(noise[i::8].mean()) for i in range(8)]
        race.take(genome, Score(tuple(values), samples))

    for genome in true:
        take(genome, 16)
    alive, rounds = race.alive(true), 0
    while wanted := race.open(alive):
        rounds += 1
        assert rounds <= 20
        for genome, samples in wanted:
            take(genome, samples)
        alive = race.alive(alive)
    return alive, race


def test_the_best_is_seldom_dropped_and_the_dominated_always():
    # five strategies of equal cost: one is best by a twentieth of the noise of a sample or more
    equal = [Genome((a, a + 3), (1, 3, 1)) for a in (1, 2)]
    equal += [Genome((3,), (3, 1)), Genome((3,), (1, 3)), HALF]
    true = dict(zip(equal, (2.5, 2.55, 2.6, 2.7, 2.8), strict=True))
    true |= {FULL: 2.0, WIDE: 4.0}
    races, lost, kept_worst = 300, 0, 0
    for seed in range(races):
        alive, _ = simulated(true, seed, own=1.0)
        lost += equal[0] not in alive
        kept_worst += WIDE in alive  # 18, worse by 1.5 than what costs 12
        assert FULL in alive  # nothing is better, and nothing that costs less as good
    # 4 rivals of no more cost, 4 looks (16, 32, 64, 128 samples), 2.5 % each: at most
    assert lost / races < 4 * 4 * 0.025
    assert kept_worst == 0


def test_a_clear_race_takes_few_samples():
    true = {FULL: 1.0, WIDE: 2.0, HALF: 3.0, NARROW: 4.0}
    alive, race = simulated(true, 0, own=0.05)
    assert alive == [FULL, WIDE, HALF, NARROW]
    assert {race.latest(g).samples for g in true} == {16}


def test_the_order_of_taking_and_asking_does_not_matter():
    scores = {
        FULL: {8: around(2.0)},
        HALF: {8: around(2.5)},
        MIXED: {8: around(2.6, 0.2)},
        WIDE: {8: around(2.4, 0.3)},
    }
    expected = race_of(scores).open([FULL, WIDE, HALF, MIXED])
    backwards = race_of(dict(reversed(scores.items())))
    assert backwards.open([MIXED, HALF, WIDE, FULL]) == expected
    assert backwards.open([MIXED], [FULL, WIDE, HALF, HALF]) == race_of(scores).open(
        [MIXED], [HALF, FULL, WIDE]
    )
