"""`SearchConfig`: everything that decides a search for the width of every denoising step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ddsm_ext.settings import Refusal, Settings, TypeRefusal, is_int, is_number
from ddsm_ext.width import sorted_widths

COSTS = ("macs", "ms")
STAGES = ("cheap", "full")


@dataclass(frozen=True)
class SearchConfig(Settings):
    """Settings of a search.

    The search minimises two objectives, quality (a score, lower is better) and cost. With both
    stages every candidate gets the cheap quality, NSGA-II selects on it, and the full quality is
    spent on the candidates that `full_per_generation` and `full_final` let through; the front is
    then made of full qualities only. With one stage that quality alone selects and makes the front.

    Args:
        widths: widths that a step may have, each in (0, 1]; the full width 1.0 must be among them.
        segments: most segments of constant width in a strategy, >= 1.
        population: candidates kept from generation to generation, >= 2.
        generations: generations selected on the first stage, the initial population included, >= 1.
        refine_generations: further generations selected on the full quality, begun from the best
            fully scored candidates; only with both stages.
        refine_population: candidates in those; None means half of `population`, at least 4.
        full_per_generation: full scores that one generation of the cheap stage may spend, >= 0.
        full_final: full scores spent at the end on members of the cheap front without one, >= 0.
        seed: seed of the search's random choices, >= 0.
        objectives: ("quality", "macs") or ("quality", "ms").
        stages: ("cheap", "full"), ("cheap",) or ("full",).
        mutation_prob: probability that a child is mutated at all.
        mutation_prob_gene: probability that a gene of a mutated child changes; None means
            1.5 / number of genes (at most 0.5).
        crossover_prob: probability that two parents are crossed rather than copied.
        seed_budgets: fractions of the full width's cost at which the budget solver puts strategies
            into the first population, when a sensitivity is given.
        budget_macs: budget of the chosen strategy as a fraction of the full width's MACs, (0, 1].
        budget_ms: budget of the chosen strategy in ms an image over all steps of the sampler.
        budget_time: budget of the chosen strategy as a fraction of the full width's time, (0, 1].
        max_quality_loss: most that the chosen strategy's quality may be above the full width's, in
            the quality's own unit. None with no budget: no loss.

    Raises:
        ValueError: a value is outside the range named above, or two settings contradict each other.
        TypeError: what is to be a list is none.
    """

    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    segments: int = 4
    population: int = 32
    generations: int = 20
    refine_generations: int = 0
    refine_population: int | None = None
    full_per_generation: int = 3
    full_final: int = 12
    seed: int = 0
    objectives: tuple[str, ...] = ("quality", "macs")
    stages: tuple[str, ...] = ("cheap", "full")
    mutation_prob: float = 1.0
    mutation_prob_gene: float | None = None
    crossover_prob: float = 0.9
    seed_budgets: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    budget_macs: float | None = None
    budget_ms: float | None = None
    budget_time: float | None = None
    max_quality_loss: float | None = None

    def __post_init__(self) -> None:
        for name in _LISTS:
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise TypeRefusal(f"search.{name} is {value!r}; need a list")
            object.__setattr__(self, name, tuple(value))
        self._check_widths()
        for name, least in _LEAST.items():
            value = getattr(self, name)
            optional = value is None and name == "refine_population"
            if not optional and not is_int(value, least):
                raise Refusal(f"search.{name} is {value!r}; need a whole number >= {least}")
        for name in ("mutation_prob", "mutation_prob_gene", "crossover_prob"):
            self._check_range(name, f"0 <= {name} <= 1", zero=True)
        for name in ("budget_macs", "budget_time"):
            self._check_range(name, f"a fraction, 0 < {name} <= 1")
        self._check_range("budget_ms", "budget_ms > 0 ms", most=math.inf)
        self._check_range("seed_budgets", "fractions, 0 < seed_budget <= 1")
        self._check_choices()

    def _check_range(self, name: str, needs: str, *, most: float = 1.0, zero: bool = False) -> None:
        """Check one number, or each of several; None is none to check, where it is the default."""
        given = getattr(self, name)
        if given is None and getattr(SearchConfig, name) is None:
            return
        for value in given if name in _LISTS else (given,):
            if not is_number(value, 0.0, most) or (value == 0.0 and not zero):
                raise Refusal(f"search.{name} holds {value!r}; need {needs}")

    def _check_widths(self) -> None:
        object.__setattr__(self, "widths", sorted_widths("SearchConfig", self.widths))
        self._check("widths", self.widths[0] == 1.0, "the full width 1.0 among them")

    def _check_choices(self) -> None:
        if self.objectives not in tuple(("quality", cost) for cost in COSTS):
            raise Refusal(
                f"search.objectives is {list(self.objectives)}; need quality,macs or quality,ms"
            )
        if self.stages not in (STAGES, STAGES[:1], STAGES[1:]):
            raise Refusal(f"search.stages is {list(self.stages)}; need cheap,full or cheap or full")
        if self.refine_generations and self.stages != STAGES:
            raise Refusal(
                f"search.refine_generations is {self.refine_generations} with stages "
                f"{list(self.stages)}; need stages cheap,full"
            )
        given = [n for n in ("budget_macs", "budget_ms", "budget_time") if getattr(self, n)]
        if len(given) > 1:
            raise Refusal(f"search: {' and '.join(given)} are both set; need one budget at most")
        wanted = "macs" if self.budget_macs else "ms"
        if given and self.cost != wanted:
            raise Refusal(
                f"search.{given[0]} is {getattr(self, given[0])} while search.objectives counts "
                f"{self.cost}; need objectives quality,{wanted}"
            )
        loss = self.max_quality_loss
        if loss is not None and not is_number(loss, 0.0):
            raise Refusal(f"search.max_quality_loss is {loss!r}; need 0 or more")

    @property
    def cost(self) -> str:
        """Unit of the cost objective: "macs" or "ms"."""
        return self.objectives[1]

    @property
    def quality_stage(self) -> str:
        """Stage whose quality makes the front: "full" where it is used, else "cheap"."""
        return self.stages[-1]

    @property
    def refine_size(self) -> int:
        """Candidates in a refining generation."""
        return self.refine_population or max(4, self.population // 2)

    def most_evaluations(self, initial: int | None = None) -> dict[str, int]:
        """Return the most evaluations of each stage that the search can make.

        Args:
            initial: size of the first population; None means `population`.
        """
        first = self.population if initial is None else initial
        main = first + (self.generations - 1) * self.population
        if len(self.stages) == 1:
            return {self.stages[0]: main}
        refined = self.refine_generations * self.refine_size
        promoted = self.generations * self.full_per_generation + self.full_final
        return {"cheap": main + refined, "full": len(self.widths) + promoted + refined}


_LISTS = ("widths", "objectives", "stages", "seed_budgets")
_LEAST = {
    "segments": 1,
    "population": 2,
    "generations": 1,
    "refine_generations": 0,
    "refine_population": 2,
    "full_per_generation": 0,
    "full_final": 0,
    "seed": 0,
}
