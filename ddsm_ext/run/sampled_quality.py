"""The quality that a search ranks by: a distance of samples to the real images."""

from __future__ import annotations

import itertools
import math

import numpy as np

from ddsm_ext.intervals import jackknife
from ddsm_ext.run.scoring import Scorer
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal

BLOCKS = 16  # of samples, from whose differences a score's error is known


def blocks_of(classes: int) -> int:
    """Return into how many blocks samples go whose classes are in turn: `BLOCKS`, or the next
    number that shares no divisor with the classes.

    Block i holds the samples i, i + b ...: with a divisor in common it would hold some classes and
    not others, and leaving it out would change what the samples are of.

    Args:
        classes: in turn; 1 where there are none.
    """
    return next(b for b in itertools.count(BLOCKS) if math.gcd(b, classes) == 1)


class SampledQuality:
    """The quality that a search ranks by: a distance of samples to the real images.

    Called as (strategy, samples), it returns one value a block of samples. Features of samples 0
    to n are kept until the race is over, so that twice the samples take only the other half anew.

    Args:
        scorer: sampler, features and reference.
        first_seed: seed of the search's sample 0.
        fewest_samples: of any score, which decides the distance; 2 or more.
        race_samples: most of a race, after which nothing is kept.

    Attributes:
        blocks: into how many samples go, where there are two a block.

    Raises:
        ValueError: of so few samples there is no distance.
    """

    def __init__(
        self, scorer: Scorer, first_seed: int, fewest_samples: int, race_samples: int = 0
    ) -> None:
        if fewest_samples < 2:
            raise Refusal(f"search: a score takes {fewest_samples} samples; need 2 or more")
        self.scorer = scorer
        self.first_seed = first_seed
        self.distance = scorer.ranking_distance(fewest_samples)
        self._race_samples = race_samples
        self.blocks = blocks_of(scorer.sampler.class_count)
        self._raced: dict[Strategy, np.ndarray] = {}  # features of samples 0 to n

    @property
    def name(self) -> str:
        """What the scores are: a Fréchet distance of N samples is larger than they are."""
        biased = self.distance.name == "Fréchet distance"
        return self.distance.name + (", extrapolated to infinite N" if biased else "")

    def __call__(self, strategy: Strategy, samples: range) -> list[float]:
        known = self._raced.pop(strategy, None) if samples.start == 0 else None
        if known is None:
            rows = self.features(strategy, samples)
        else:
            more = self.features(strategy, range(len(known), samples.stop))
            rows = np.concatenate([known, more])
        if samples.start == 0 and samples.stop < self._race_samples:
            self._raced[strategy] = rows
        blocks = min(self.blocks, len(rows) // 2)
        if blocks < 2:
            return [self.distance(rows)]
        return jackknife(self.distance, rows, blocks)

    def features(self, strategy: Strategy, samples: range) -> np.ndarray:
        """Features of some samples, [n, D] float32."""
        seeds = [self.first_seed + i for i in samples]
        return np.asarray(self.scorer.sampler.features(strategy, seeds, self.scorer.extractor))
