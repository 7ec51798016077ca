"""NSGA-II on strategies: random ones, the operators, and pymoo's loop by ask and tell.

pymoo's `prob` is the chance that an individual is mutated at all and `prob_var` that each of its
genes is; both are set here, and a gene that is chosen does change. pymoo takes a second to import,
so that this module is imported where a search has been accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.individual import Individual
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem

from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.front import Point
from ddsm_ext.search.genome import Genome, StrategySpace

Choice = Callable[[Sequence[Genome]], Sequence[int]]

# Random genomes tried for each place before a small space counts as used up
_TRIES = 50
# Longest shift of a cut by one mutation, as a fraction of the axis
_LONGEST_SHIFT = 0.5
# Share of width mutations that go to a neighbouring width; the others go to any other width
_NEIGHBOUR_SHARE = 0.7


def random_genomes(
    space: StrategySpace, count: int, known: Sequence[Genome], random: np.random.Generator
) -> list[Genome]:
    """Return `count` different random strategies that are not among `known`, fewer if the space
    runs out."""
    seen, made = set(known), list[Genome]()
    for _ in range(_TRIES * count):
        if len(made) == count:
            break
        segments = int(random.integers(1, space.segments + 1))
        cuts = np.sort(random.integers(0, len(space.levels) + 1, segments - 1))
        widths = random.integers(0, len(space.widths), segments)
        genome = space.canonical(cuts.tolist(), widths.tolist())
        if genome not in seen:
            seen.add(genome)
            made.append(genome)
    return made


class SegmentMutation(Mutation):
    """Shift each cut and change each width with probability `prob_var`.

    A shift's length is log-uniform from one level to half of the axis, so that coarse and fine
    moves are equally likely at any number of steps.

    Args:
        space: the strategies searched.
        prob: probability that an individual is mutated.
        prob_var: probability that a gene of it is; None means 1.5 / genes, at most 0.5.
    """

    def __init__(self, space: StrategySpace, prob: float = 1.0, prob_var: float | None = None):
        rate = min(0.5, 1.5 / space.n_genes) if prob_var is None else prob_var
        super().__init__(prob=prob, prob_var=rate)
        self.space = space
        self.rate = rate

    def mutate(self, X: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return mutated copies of vectors.

        Args:
            X: [N, n_genes] vectors.
            random: source of randomness.
        """
        cuts = self.space.n_cuts
        chosen = random.random(X.shape) < self.rate  # [N, n_genes]
        child = X.copy()
        shifted = _shift(X[:, :cuts], len(self.space.levels), random)
        child[:, :cuts] = np.where(chosen[:, :cuts], shifted, X[:, :cuts])
        other = _other_width(X[:, cuts:], len(self.space.widths), random)
        child[:, cuts:] = np.where(chosen[:, cuts:], other, X[:, cuts:])
        child[:, :cuts] = np.sort(child[:, :cuts], axis=1)
        return child

    def _do(self, problem: Any, X: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        return self.mutate(np.asarray(X, dtype=np.float64), kwargs["random_state"])


def _shift(cuts: np.ndarray, levels: int, random: np.random.Generator) -> np.ndarray:
    """Move every cut by a log-uniform length of at least one level, reflected at the ends."""
    shortest = min(1.0 / levels, _LONGEST_SHIFT)
    length = shortest * (_LONGEST_SHIFT / shortest) ** random.random(cuts.shape)
    moved = cuts + length * np.where(random.random(cuts.shape) < 0.5, -1.0, 1.0)
    moved = np.where(moved < 0.0, cuts + length, moved)
    return np.where(moved > 1.0, cuts - length, moved)


def _other_width(widths: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Change every width index to another one, mostly a neighbour."""
    if count == 1:
        return widths
    step = np.where(random.random(widths.shape) < 0.5, -1.0, 1.0)
    neighbour = widths + step
    neighbour = np.where((neighbour < 0) | (neighbour > count - 1), widths - step, neighbour)
    # 1 .. count - 1 places on, so never the same width
    anywhere = np.mod(widths + random.integers(1, count, widths.shape), count)
    return np.where(random.random(widths.shape) < _NEIGHBOUR_SHARE, neighbour, anywhere)


class SegmentCrossover(Crossover):
    """Exchange what two parents do on both sides of one noise level.

    Each child is one parent below a random level and the other above it; if that makes too many
    segments, its shortest ones join a neighbour. Parents with the same sequence of widths have
    their boundaries blended instead, since an exchange would only return cuts they already have.

    Args:
        space: the strategies searched.
        prob: probability that two parents are crossed rather than copied.
    """

    def __init__(self, space: StrategySpace, prob: float = 0.9):
        super().__init__(2, 2, prob=prob)
        self.space = space

    def _do(self, problem: Any, X: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        random = kwargs["random_state"]
        children = np.empty_like(X, dtype=np.float64)  # [2, N, n_genes]
        for i in range(X.shape[1]):
            a, b = self.space.decode(X[0, i]), self.space.decode(X[1, i])
            for j, child in enumerate(self.cross(a, b, random)):
                children[j, i] = self.space.encode(child)
        return children

    def cross(self, a: Genome, b: Genome, random: np.random.Generator) -> tuple[Genome, Genome]:
        """Return the two children of two parents."""
        if a.widths == b.widths:
            share = random.random(len(a.boundaries))
            return self._blend(a, b, share), self._blend(b, a, share)
        level = int(random.integers(1, max(2, len(self.space.levels))))
        return self._splice(a, b, level), self._splice(b, a, level)

    def _blend(self, a: Genome, b: Genome, share: np.ndarray) -> Genome:
        mixed = np.asarray(a.boundaries) * (1 - share) + np.asarray(b.boundaries) * share
        return self.space.canonical(np.sort(np.rint(mixed)).astype(np.int64).tolist(), a.widths)

    def _splice(self, low: Genome, high: Genome, level: int) -> Genome:
        """`low` below the level, `high` from it on."""
        first = [b for b in low.boundaries if b < level]
        last = [b for b in high.boundaries if b > level]
        widths = [
            *low.widths[: len(first) + 1],
            *high.widths[len(high.widths) - len(last) - 1 :],
        ]
        genome = self.space.canonical([*first, level, *last], widths)
        while len(genome.widths) > self.space.segments:
            genome = self._without_shortest(genome)
        return genome

    def _without_shortest(self, genome: Genome) -> Genome:
        """Give the shortest segment to the longer of its neighbours."""
        edges = [0, *genome.boundaries, len(self.space.levels)]
        lengths = np.diff(edges)
        i = int(np.argmin(lengths))
        left = lengths[i - 1] if i > 0 else -1
        right = lengths[i + 1] if i + 1 < len(lengths) else -1
        boundaries = list(genome.boundaries)
        widths = list(genome.widths)
        del widths[i], boundaries[i - 1 if left >= right else i]
        return self.space.canonical(boundaries, widths)


class SameStrategy(DuplicateElimination):
    """Two vectors are equal when they decode to the same genome.

    Args:
        space: the strategies searched.
        seen: genomes that count as known already, e.g. all that were ever proposed; the caller may
            add to the set.
    """

    def __init__(self, space: StrategySpace, seen: set[Genome]):
        super().__init__()
        self.space = space
        self.seen = seen

    def _do(self, pop: Any, other: Any, is_duplicate: np.ndarray) -> np.ndarray:
        known = set(self.seen)
        if other is not None:
            known |= {self.space.decode(x) for x in other.get("X")}
        for i, x in enumerate(pop.get("X")):
            genome = self.space.decode(x)
            is_duplicate[i] = genome in known
            if other is None:
                known.add(genome)
        return is_duplicate


def _forget_violation(individual: Individual) -> None:
    """pymoo keeps the violation of the constraints of the first evaluation."""
    individual.CV = None


class Evolution:
    """NSGA-II over the strategies of a space; everything it does follows from its arguments.

    Args:
        config: the probabilities of crossover and mutation.
        space: the strategies.
        initial: first population, of different genomes; may exceed `population`.
        population: candidates kept from generation to generation.
        bred: children of a generation; some of them are chosen.
        seed: seed of every random choice.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: StrategySpace,
        initial: Sequence[Genome],
        population: int,
        bred: int,
        seed: int,
    ) -> None:
        self.space = space
        self._seen: set[Genome] = set()
        # bounds are those of the genes: cuts in [0, 1], then width indices
        upper = [1.0] * space.n_cuts + [len(space.widths) - 1.0] * space.segments
        # one constraint, so that a failed evaluation loses to every other one
        self._problem = Problem(
            n_var=space.n_genes, n_obj=2, n_ieq_constr=1, xl=np.zeros(space.n_genes), xu=upper
        )
        self._algorithm = NSGA2(
            pop_size=population,
            n_offsprings=bred,
            sampling=np.stack([space.encode(genome) for genome in initial]),
            crossover=SegmentCrossover(space, config.crossover_prob),
            mutation=SegmentMutation(space, config.mutation_prob, config.mutation_prob_gene),
            eliminate_duplicates=SameStrategy(space, self._seen),
        )
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=seed, verbose=False)
        self._asked: Population | None = None

    def ask(self, choose: Choice) -> list[Genome]:
        """Return the next generation: genomes never returned before, none when they run out.

        Args:
            choose: genomes -> indices of those to return; asked of children, not of the initial
                population.
        """
        first, self._asked = self._asked is None, self._algorithm.ask()
        if self._asked is None or len(self._asked) == 0:
            return []
        if not first:
            self._asked = self._asked[list(choose(self._genomes(self._asked)))]
        genomes = self._genomes(self._asked)
        self._seen.update(genomes)
        return genomes

    def _genomes(self, population: Population) -> list[Genome]:
        return [self.space.decode(x) for x in population.get("X")]

    def tell(self, point: Callable[[Genome], Point]) -> None:
        """Give the (quality, cost) of the genomes that `ask` returned; inf marks a failure.

        Those kept from earlier generations are looked up again too: their scores may have changed.
        """
        evaluator = Evaluator(skip_already_evaluated=False)
        for population in (self._asked, self._algorithm.pop):
            if population is None or len(population) == 0:
                continue
            points = [point(genome) for genome in self._genomes(population)]
            failed = np.array([[0.0 if math.isfinite(q) else 1.0] for q, _ in points])
            values = np.array([[q if math.isfinite(q) else 0.0, c] for q, c in points])
            evaluator.eval(StaticProblem(self._problem, F=values, G=failed), population)
            population.apply(_forget_violation)
        self._algorithm.tell(infills=self._asked)
