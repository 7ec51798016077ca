"""`SearchConfig`: everything that decides a search for the width of every denoising step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ddsm_ext.settings import Refusal, Settings, TypeRefusal, is_int, is_number
from ddsm_ext.width import sorted_widths

COSTS = ("macs", "ms")
METHODS = ("evolution", "proxy", "paper")


@dataclass(frozen=True)
class SearchConfig(Settings):
    """Settings of a search.

    The search minimises two objectives, quality (a score of samples, lower is better) and cost.

    "evolution" begins with the strategies that are best under the additive proxy (the errors of
    the widths, weighted by the sampler), with the constant widths and with plain guesses. They race
    on samples from common seeds; the survivors are the first population of NSGA-II, of whose
    children the most promising are raced likewise. The finalists are scored again on new seeds, and
    so is the one that is chosen of them: its score is of seeds that chose nothing.
    "proxy" is the Pareto front of the proxy alone, solved exactly (of more than 100 steps, to a
    hundredth of them): no sample is scored.
    "paper" is the search of the DDSM paper, to compare with: NSGA-II from random strategies, a
    whole score for each.

    Args:
        widths: widths that a step may have, each in (0, 1]; the full width 1.0 must be among them.
        method: "evolution", "proxy" or "paper".
        segments: most segments of constant width in a strategy, >= 1.
        proxy_budgets: costs at which the proxy's front is solved, >= 2.
        pool: strategies that the race begins with, >= 1; the constant widths and those of the
            budget take part in any case.
        population: strategies kept from generation to generation, >= 2; None means 10 in
            "evolution" and 50 in "paper".
        generations: generations, the first population included, >= 1; None means 6 in "evolution"
            and 10 in "paper".
        children: children bred for each that is scored, >= 1, in "evolution": those are scored that
            a Gaussian process on the scores so far promises most of.
        samples: samples of a first score, >= 1; None means 512 in "evolution", 4096 in "paper".
        most_samples: samples at which a race ends without a decision; in "evolution" alone.
        finalists: strategies that are scored again on new seeds, beside the constant widths; with
            0 the race's own scores make the front, the luckiest of them too low.
        final_samples: samples of those scores.
        seed: seed of the search's random choices, >= 0.
        objectives: ("quality", "macs") or ("quality", "ms").
        mutation_prob: probability that a child is mutated at all.
        mutation_prob_gene: probability that a gene of a mutated child changes; None means
            1.5 / number of genes (at most 0.5).
        crossover_prob: probability that two parents are crossed rather than copied.
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
    method: str = "evolution"
    segments: int = 6
    proxy_budgets: int = 40
    pool: int = 40
    population: int | None = None
    generations: int | None = None
    children: int = 20
    samples: int | None = None
    most_samples: int = 1024
    finalists: int = 32
    final_samples: int = 2048
    seed: int = 0
    objectives: tuple[str, ...] = ("quality", "macs")
    mutation_prob: float = 1.0
    mutation_prob_gene: float | None = None
    crossover_prob: float = 0.9
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
        self._check_choice("method", METHODS)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            optional = value is None and getattr(SearchConfig, name) is None
            if not optional and not is_int(value, least):
                raise Refusal(f"search.{name} is {value!r}; need a whole number >= {least}")
        for name in ("mutation_prob", "mutation_prob_gene", "crossover_prob"):
            self._check_range(name, f"0 <= {name} <= 1", zero=True)
        for name in ("budget_macs", "budget_time"):
            self._check_range(name, f"a fraction, 0 < {name} <= 1")
        self._check_range("budget_ms", "budget_ms > 0 ms", most=math.inf)
        self._check_choices()

    def _check_range(self, name: str, needs: str, *, most: float = 1.0, zero: bool = False) -> None:
        """Check a number; None is none to check, where it is the default."""
        given = getattr(self, name)
        if given is None and getattr(SearchConfig, name) is None:
            return
        if not is_number(given, 0.0, most) or (given == 0.0 and not zero):
            raise Refusal(f"search.{name} is {given!r}; need {needs}")

    def _check_widths(self) -> None:
        object.__setattr__(self, "widths", sorted_widths("SearchConfig", self.widths))
        self._check("widths", self.widths[0] == 1.0, "the full width 1.0 among them")

    def _check_choices(self) -> None:
        if self.objectives not in tuple(("quality", cost) for cost in COSTS):
            raise Refusal(
                f"search.objectives is {list(self.objectives)}; need quality,macs or quality,ms"
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
    def population_size(self) -> int:
        """Strategies kept from generation to generation."""
        return self.population or _DEFAULTS[self.method][0]

    @property
    def generation_count(self) -> int:
        """Generations, the first population included."""
        return self.generations or _DEFAULTS[self.method][1]

    @property
    def children_per_score(self) -> int:
        """Children bred for each that is scored."""
        return self.children if self.method == "evolution" else 1

    @property
    def first_samples(self) -> int:
        """Samples of a strategy's first score."""
        return self.samples or _DEFAULTS[self.method][2]

    @property
    def fewest_samples(self) -> int:
        """Samples of the smallest score that the search takes."""
        final = self.method == "evolution" and self.finalists
        return min(self.first_samples, self.final_samples) if final else self.first_samples

    @property
    def race_samples(self) -> int:
        """Samples at which a race ends without a decision; the first ones in any case."""
        first = self.first_samples
        return max(first, self.most_samples) if self.method == "evolution" else first

    @property
    def loss_limit(self) -> float | None:
        """Most that the chosen strategy is to lose against the full width; None for any loss."""
        budgets = (self.budget_macs, self.budget_ms, self.budget_time)
        if self.max_quality_loss is None and not any(budgets):
            return 0.0
        return self.max_quality_loss

    def most_scored_samples(self) -> int:
        """Return about how many samples the search scores.

        "paper" scores every child, unless it is known. In "evolution" about half of a race is
        sampled on, so that each doubling takes as many as the first scores.
        """
        size, generations, first = self.population_size, self.generation_count, self.first_samples
        if self.method == "proxy":
            return 0
        if self.method == "paper":
            return size * generations * first
        doublings = math.log2(self.race_samples / first)
        raced = (max(self.pool, len(self.widths)) + (generations - 1) * size) * first
        finalists = self.finalists + len(self.widths) + 2 if self.finalists else 0
        return round(raced * (1 + doublings)) + finalists * self.final_samples


# population, generations and samples of each method; those of "paper" are the DDSM paper's
_DEFAULTS = {"evolution": (10, 6, 512), "proxy": (10, 6, 512), "paper": (50, 10, 4096)}
_LISTS = ("widths", "objectives")
_LEAST = {
    "segments": 1,
    "proxy_budgets": 2,
    "pool": 1,
    "population": 2,
    "generations": 1,
    "children": 1,
    "samples": 1,
    "most_samples": 1,
    "finalists": 0,
    "final_samples": 1,
    "seed": 0,
}
