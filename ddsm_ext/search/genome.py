"""The segment genome: cut points along the noise axis and a width for each segment.

A strategy is piecewise constant over log-SNR. On the steps of one sampler all cuts between two
neighbouring noise levels mean the same, so the axis of the genome is the rank of the level:
position u in [0, 1] is the boundary before level round(u L) of L levels, from most noise (lowest
log-SNR) to least. A `Genome` is the canonical form: boundaries that strictly increase inside
(0, L), with different widths on both sides; two strategies that compute the same have the same
genome. A vector for the genetic operators has a fixed number of genes, [cuts (segments - 1) |
widths (segments)], and holds its spare segments as cuts with the same width on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddsm_ext.sampling.strategy import Strategy, halfway
from ddsm_ext.settings import Refusal
from ddsm_ext.width import find_width


@dataclass(frozen=True)
class Genome:
    """Canonical strategy on the levels of one sampler.

    Args:
        boundaries: first level of every segment but the first, strictly increasing, in [1, L - 1].
        widths: index of the width of every segment; neighbours differ.
    """

    boundaries: tuple[int, ...]
    widths: tuple[int, ...]


class StrategySpace:
    """All strategies of at most `segments` segments on the steps of one sampler.

    Args:
        log_snrs: log-SNR of every step of the sampler, in any order; equal ones count each time.
        widths: widths to choose from; indices in genomes refer to this order.
        segments: most segments of a strategy, >= 1.
        runs: [S] how often the network runs at the width of each step; None: once.

    Raises:
        ValueError: no steps, a log-SNR that is not finite, no segment, or a step without a run.
    """

    def __init__(
        self,
        log_snrs: Sequence[float],
        widths: Sequence[float],
        segments: int,
        runs: Sequence[int] | None = None,
    ) -> None:
        values = np.asarray([float(v) for v in log_snrs], dtype=np.float64)  # [S]
        if values.size == 0 or not np.isfinite(values).all():
            raise Refusal(
                f"search: log_snrs has {values.size} values, "
                f"{int((~np.isfinite(values)).sum())} not finite; need one finite log-SNR a step"
            )
        if segments < 1:
            raise Refusal(f"search: segments is {segments}; need 1 or more")
        weights = np.ones(values.size, np.int64) if runs is None else np.asarray(runs)  # [S]
        if weights.shape != values.shape or (weights < 1).any():
            raise Refusal(
                f"search: runs has shape {list(weights.shape)}; need 1 or more of each of "
                f"{values.size} steps"
            )
        levels, level_of = np.unique(values, return_inverse=True)
        counts = np.zeros(len(levels), dtype=np.int64)
        np.add.at(counts, level_of, weights)
        self.levels = levels  # [L], ascending
        self.counts = counts  # [L], runs of the network at each level
        self.widths = tuple(float(w) for w in widths)
        self.segments = min(int(segments), len(levels))
        self.steps = values.size
        self.n_cuts = self.segments - 1
        self.n_genes = self.n_cuts + self.segments  # of a vector: cuts, then widths
        self.runs = int(counts.sum())  # of the network, an image
        # runs below each boundary, [L + 1]
        self._runs_below = np.concatenate(([0], np.cumsum(counts)))

    def canonical(self, boundaries: Sequence[int], widths: Sequence[int]) -> Genome:
        """Return the genome of segments given by any non-decreasing boundaries in [0, L]."""
        edges = [0, *(int(b) for b in boundaries), len(self.levels)]
        kept: list[tuple[int, int]] = []
        for start, end, width in zip(edges[:-1], edges[1:], widths, strict=True):
            if end > start and (not kept or kept[-1][1] != int(width)):
                kept.append((start, int(width)))
        return Genome(tuple(b for b, _ in kept[1:]), tuple(w for _, w in kept))

    def decode(self, vector: Sequence[float] | np.ndarray) -> Genome:
        """Return the genome of a vector; cuts are sorted, widths stay in their order.

        Args:
            vector: [n_genes] cuts in [0, 1], then width indices.
        """
        genes = np.asarray(vector, dtype=np.float64)
        cuts = np.sort(np.clip(genes[: self.n_cuts], 0.0, 1.0))
        boundaries = np.rint(cuts * len(self.levels)).astype(np.int64)
        widths = np.clip(np.rint(genes[self.n_cuts :]), 0, len(self.widths) - 1).astype(np.int64)
        return self.canonical(boundaries.tolist(), widths.tolist())

    def encode(self, genome: Genome) -> np.ndarray:
        """Return a vector of the genome; spare cuts halve the longest segment again and again.

        Returns:
            [n_genes] float64.
        """
        edges = [0.0, *(b / len(self.levels) for b in genome.boundaries), 1.0]
        widths = list(genome.widths)
        while len(widths) < self.segments:
            i = int(np.argmax(np.diff(edges)))
            edges.insert(i + 1, 0.5 * (edges[i] + edges[i + 1]))
            widths.insert(i, widths[i])
        return np.array([*edges[1:-1], *widths], dtype=np.float64)

    def constants(self) -> list[Genome]:
        """Return the constant-width strategies, in the order of the widths."""
        return [Genome((), (index,)) for index in range(len(self.widths))]

    def by_level(self, log_snrs: Sequence[float], errors: np.ndarray) -> np.ndarray:
        """Sum the errors of steps that share a noise level.

        Args:
            log_snrs: [S] log-SNR of every step.
            errors: [S, W] error of every step and width.

        Returns:
            [L, W] total error of every level.

        Raises:
            ValueError: the shape is another, or a value is not finite.
        """
        table = np.asarray(errors, dtype=np.float64)  # [S, W]
        shape = (self.steps, len(self.widths))
        if table.shape != shape or not np.isfinite(table).all():
            raise Refusal(
                f"search: errors has shape {list(table.shape)}; need finite values, {list(shape)}"
            )
        rank = np.searchsorted(self.levels, np.asarray(log_snrs, dtype=np.float64))
        total = np.zeros((len(self.levels), shape[1]))
        np.add.at(total, rank, table)
        return total

    def from_levels(self, choice: Sequence[int]) -> Genome:
        """Return the genome of a width index for every level.

        Args:
            choice: [L] width indices, from most noise to least.

        Raises:
            ValueError: it has more segments than the space.
        """
        genome = self.canonical(range(1, len(self.levels)), choice)
        count = len(genome.widths)
        if count > self.segments:
            raise Refusal(f"search: a strategy has {count} segments; need at most {self.segments}")
        return genome

    def from_strategy(self, strategy: Strategy) -> Genome:
        """Return the genome of what a strategy does on these levels.

        Raises:
            ValueError: it has a width or more segments than the space.
        """
        found = [find_width(self.widths, w) for w in strategy.widths_for(self.levels)]
        if None in found:
            raise Refusal(
                f"search: a strategy has widths {list(strategy.widths)}; need some of "
                f"{list(self.widths)}"
            )
        return self.from_levels([index for index in found if index is not None])

    def reverse(self, genome: Genome) -> Genome:
        """Return the genome that gives the widths in the opposite order, from least noise to most:
        the same cost where every level has as many steps."""
        boundaries = tuple(len(self.levels) - b for b in reversed(genome.boundaries))
        return Genome(boundaries, tuple(reversed(genome.widths)))

    def strategy(self, genome: Genome, origin: Mapping[str, Any] | None = None) -> Strategy:
        """Return the `Strategy` of a genome; each cut lies midway between its two levels.

        Args:
            genome: a genome of this space.
            origin: where the strategy comes from, stored in it; None stores nothing.
        """
        cuts = [
            halfway(float(self.levels[b - 1]), float(self.levels[b])) for b in genome.boundaries
        ]
        widths = [self.widths[i] for i in genome.widths]
        return Strategy(cuts=tuple(cuts), widths=tuple(widths), origin=dict(origin or {}))

    def width_counts(self, genome: Genome) -> np.ndarray:
        """Return [W] int64, how often the network runs at each width."""
        edges = [0, *genome.boundaries, len(self.levels)]
        counts = np.zeros(len(self.widths), dtype=np.int64)
        for start, end, width in zip(edges[:-1], edges[1:], genome.widths, strict=True):
            counts[width] += self._runs_below[end] - self._runs_below[start]
        return counts

    def to_row(self, genome: Genome) -> dict[str, Any]:
        """Return plain values for JSON: boundaries by rank of level, widths as fractions."""
        widths = [self.widths[i] for i in genome.widths]
        return {"boundaries": list(genome.boundaries), "widths": widths}

    def from_row(self, row: Mapping[str, Any]) -> Genome:
        """Return the genome of `to_row`'s values.

        Raises:
            ValueError: a width is not one of the space's, or it is no genome of these levels.
        """
        found = [find_width(self.widths, width) for width in row["widths"]]
        indices = tuple(index for index in found if index is not None)
        if len(indices) != len(found):
            raise Refusal(f"search: widths are {row['widths']}; need some of {list(self.widths)}")
        genome = Genome(tuple(row["boundaries"]), indices)
        if self.canonical(genome.boundaries, genome.widths) != genome:
            raise Refusal(f"search: boundaries are {row['boundaries']}; need those of segments")
        return genome
