"""The race: strategies sampled from the same seeds, the beaten ones dropped, the others sampled on.

A strategy is beaten when one that costs no more is better by the paired 95 % interval. Which pairs
are still open decides who is sampled on, with twice the samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ddsm_ext.intervals import Interval, paired_interval, standard_error
from ddsm_ext.search.cost import StepCost
from ddsm_ext.search.front import Point
from ddsm_ext.search.genome import Genome


@dataclass(frozen=True)
class Score:
    """A score of one strategy, lower is better.

    Args:
        values: one a block of samples, with the same blocks for every strategy; a single one for a
            score whose error is not known; a single inf for an evaluation that failed.
        samples: how many samples it was made of.
    """

    values: tuple[float, ...]
    samples: int

    @property
    def mean(self) -> float:
        """The score."""
        return math.fsum(self.values) / len(self.values)

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None where it is not known."""
        return standard_error(self.values)


def difference(a: Score, b: Score) -> Interval:
    """Return a - b with its paired interval; one without a width unless both have the same blocks.

    A failed evaluation is infinitely worse.
    """
    if math.isfinite(a.mean) and math.isfinite(b.mean) and len(a.values) == len(b.values):
        return paired_interval(a.values, b.values)
    return Interval(a.mean - b.mean if a.mean != b.mean else 0.0, 0.0)


class Race:
    """Scores of strategies on the first n samples, for growing n, and what they say.

    Args:
        cost: cost of a strategy.
        samples: how many the first score of each takes.
        most_samples: no score takes more.
    """

    def __init__(self, cost: StepCost, samples: int, most_samples: int) -> None:
        self.cost = cost
        self.samples = samples
        self.most_samples = max(samples, most_samples)
        self._scores: dict[Genome, dict[int, Score]] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def take(self, genome: Genome, score: Score) -> None:
        """Take a score."""
        self._scores.setdefault(genome, {})[score.samples] = score

    def latest(self, genome: Genome) -> Score | None:
        """Return the score with the most samples; None where there is none."""
        scores = self._scores.get(genome)
        return scores[max(scores)] if scores else None

    def point(self, genome: Genome) -> Point:
        """Return (latest score, cost as a fraction of the full width's) of a scored strategy."""
        score = self.latest(genome)
        assert score is not None
        return score.mean, self.cost.relative(genome)

    def scored(self) -> list[Genome]:
        """Return every strategy with a finite score, in the order of their first scores."""
        return [g for g in self._scores if math.isfinite(self.point(g)[0])]

    def alive(self, genomes: Iterable[Genome]) -> list[Genome]:
        """Return those of some strategies that no scored one beats."""
        every = self.scored()
        return [g for g in genomes if g in every and not any(self._beats(d, g) for d in every)]

    def open(
        self, genomes: Sequence[Genome], against: Iterable[Genome] = ()
    ) -> list[tuple[Genome, int]]:
        """Return who is to be sampled on, with how many samples in all.

        A pair is open while its cheaper one may be better and may be worse; its one with fewer
        samples goes on, or both.

        Args:
            genomes: scored strategies, each in pairs with the others and with
            against: further ones.
        """
        wanted: dict[Genome, int] = {}
        for candidate in genomes:
            for other in {*genomes, *against} - {candidate}:
                if not self._difference(candidate, other).holds_zero:
                    continue
                pair = {g: self._count(g) for g in (candidate, other)}
                fewest = min(pair.values())
                if fewest < self.most_samples:
                    more = min(2 * fewest, self.most_samples)
                    wanted |= {g: more for g, n in pair.items() if n == fewest}
        return sorted(wanted.items(), key=lambda item: (item[0].widths, item[0].boundaries))

    def _count(self, genome: Genome) -> int:
        score = self.latest(genome)
        return 0 if score is None else score.samples

    def _beats(self, a: Genome, b: Genome) -> bool:
        """Whether strategy a costs no more than b and is better beyond the interval."""
        if a == b or self.cost(a) > self.cost(b):
            return False
        return self._difference(b, a).above_zero

    def _difference(self, a: Genome, b: Genome) -> Interval:
        """a - b on the most samples that both have."""
        common = self._scores[a].keys() & self._scores[b].keys()
        if not common:
            return Interval(0.0, math.inf)
        n = max(common)
        return difference(self._scores[a][n], self._scores[b][n])
