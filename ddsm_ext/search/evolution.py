"""pymoo's NSGA-II on genomes through ask and tell; the caller owns evaluation and files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem

from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.operators import SameStrategy, SegmentCrossover, SegmentMutation
from ddsm_ext.search.pareto import Point


class Evolution:
    """NSGA-II over the strategies of a space; everything it does follows from its arguments.

    Args:
        config: the probabilities of crossover and mutation.
        space: the strategies.
        initial: first population, of different genomes; may exceed `population`.
        population: candidates kept from generation to generation.
        seed: seed of every random choice.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: StrategySpace,
        initial: Sequence[Genome],
        population: int,
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
            sampling=np.stack([space.encode(genome) for genome in initial]),
            crossover=SegmentCrossover(space, config.crossover_prob),
            mutation=SegmentMutation(space, config.mutation_prob, config.mutation_prob_gene),
            eliminate_duplicates=SameStrategy(space, self._seen),
        )
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=seed, verbose=False)
        self._asked: Population | None = None

    def ask(self) -> list[Genome]:
        """Return the next generation: genomes never returned before, none when they run out."""
        self._asked = self._algorithm.ask()
        if self._asked is None or len(self._asked) == 0:
            return []
        genomes = [self.space.decode(x) for x in self._asked.get("X")]
        self._seen.update(genomes)
        return genomes

    def tell(self, points: Sequence[Point]) -> None:
        """Give the (quality, cost) of the genomes that `ask` returned; inf marks a failure."""
        failed = np.array([[0.0 if math.isfinite(q) else 1.0] for q, _ in points])
        values = np.array([[q if math.isfinite(q) else 0.0, c] for q, c in points])
        static = StaticProblem(self._problem, F=values, G=failed)
        Evaluator().eval(static, self._asked)
        self._algorithm.tell(infills=self._asked)
