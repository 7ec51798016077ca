"""The stages of a search: what is scored next, what the scores so far say, its files.

Staging, when both qualities are used:
1. Every candidate of a generation gets the cheap quality; NSGA-II selects on (cheap, cost).
2. The constant widths always get the full quality. After each generation so do those of its
   candidates that are on the front (cheap, cost) of all candidates so far, at most
   `full_per_generation` of them, spread over the front.
3. Optional `refine_generations` select on (full, cost), begun from the best fully scored ones.
4. At the end members of the cheap front without a full quality get it, at most `full_final`: with a
   budget first those nearest below it (up to half of them), then spread over the front.
The front is the non-dominated set of all candidates with the quality that makes the front.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddsm_ext.io.files import write_json
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import StepCost, budget_cost
from ddsm_ext.search.front import (
    BUDGET_TOLERANCE,
    Front,
    FrontPoint,
    HypervolumeMeter,
    Point,
    nondominated,
    spread_choice,
)
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.settings import Refusal

Request = tuple[Genome, str]  # what is to be scored, and at which stage


class Stages:
    """The algorithm of a search, which knows no archive: `rounds` asks, `take` is told.

    Args:
        config: settings.
        space: the strategies.
        cost: their cost.
        errors: [L, W] from `StrategySpace.by_level`; None for no first strategies from it.
        folder: where history.json and front.json go.
        origin: what every strategy of the front says of where it comes from.
        quality_name: what to call the front's quality.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: StrategySpace,
        cost: StepCost,
        errors: np.ndarray | None,
        *,
        folder: Path,
        origin: Mapping[str, Any],
        quality_name: str,
    ) -> None:
        self.config = config
        self.space = space
        self.cost = cost
        self.expected = 0  # most scores that the search can need
        self.generation = 0
        self.history: list[dict[str, Any]] = []
        self._errors = errors
        self._folder = folder
        self._origin = dict(origin)
        self._quality_name = quality_name
        self._scored: dict[str, dict[Genome, float]] = {"cheap": {}, "full": {}}
        self._first_seen: dict[Genome, int] = {}
        self._meters: dict[str, HypervolumeMeter] = {}
        self._news = False

    @property
    def count(self) -> int:
        """Scores taken so far."""
        return sum(len(scores) for scores in self._scored.values())

    def take(self, genome: Genome, stage: str, score: float, *, fresh: bool) -> None:
        """Take a score, inf for a failure; `fresh` ones are of this process, not of the archive."""
        self._first_seen.setdefault(genome, self.generation)
        self._scored[stage][genome] = score
        self._news = self._news or fresh

    def row(self, genome: Genome, stage: str, score: float) -> dict[str, Any]:
        """Return what the archive says of a score beside the score itself."""
        finite = score if math.isfinite(score) else None
        return {
            "generation": self.generation,
            "cost": self.cost(genome),
            "cost_relative": self.cost.relative(genome),
            "cheap": finite if stage == "cheap" else self._known(genome, "cheap"),
            "full": finite if stage == "full" else self._known(genome, "full"),
            "quality": finite if stage == self.config.quality_stage else None,
        }

    def rounds(self) -> Iterator[list[Request]]:
        """Yield what can be scored without each other's scores; goes on when all of it is taken.

        Raises:
            ValueError: the full width's quality is not a finite number.
        """
        config = self.config
        initial = self._first_population()
        self.expected = sum(config.most_evaluations(len(initial)).values())
        for stage in config.stages:
            yield from self._measure_constants(stage)
        yield from self._evolve(config.stages[0], initial, config.generations, config.population)
        if config.refine_generations:
            size = config.refine_size
            start = self._best_scored(size)
            yield from self._evolve("full", start, config.refine_generations, size)
        self.generation = max(0, self.generation - 1)
        if len(config.stages) == 2:
            yield from self._score_finalists()
            self.history[-1] = self._history_row(self.history[-1]["stage"])

    def _first_population(self) -> list[Genome]:
        """Constant widths, the best under the sensitivity at each budget, and random strategies."""
        # pymoo takes a second to import, which a refused search should not cost
        from ddsm_ext.search.nsga2 import budget_genomes, random_genomes

        config, seeds = self.config, list[Genome]()
        if self._errors is not None:
            budget = budget_cost(config, self.cost)
            own = [] if budget is None else [min(1.0, budget / self.cost.full)]
            budgets = [*config.seed_budgets, *own]
            seeds = budget_genomes(self.space, self.cost, self._errors, budgets)
        initial = list(dict.fromkeys([*self.space.constants(), *seeds]))
        random = np.random.default_rng([config.seed, 0])
        missing = config.population - len(initial)
        if missing > 0:
            initial += random_genomes(self.space, missing, initial, random)
        return initial

    def _points(
        self, genomes: Sequence[Genome], *stages: str
    ) -> Generator[list[Request], None, list[Point]]:
        """Have genomes scored at each stage; return their points at the last one."""
        yield [(g, stage) for stage in stages for g in genomes if g not in self._scored[stage]]
        return [self._point(genome, stages[-1]) for genome in genomes]

    def _measure_constants(self, stage: str) -> Iterator[list[Request]]:
        """Score the constant widths and fix the hypervolume's reference point from them."""
        points = yield from self._points(self.space.constants(), stage)
        if not math.isfinite(points[0][0]):
            raise Refusal(
                f"search: the full width's {stage} quality is not a finite number; need one"
            )
        self._meters[stage] = HypervolumeMeter([p for p in points if math.isfinite(p[0])])

    def _evolve(
        self, stage: str, initial: Sequence[Genome], generations: int, population: int
    ) -> Iterator[list[Request]]:
        from ddsm_ext.search.nsga2 import Evolution

        config = self.config
        state = np.random.SeedSequence([config.seed, 1, self.generation]).generate_state(1)
        evolution = Evolution(config, self.space, initial, population, int(state[0]))
        stages = config.stages if stage == "full" else (stage,)
        for _ in range(generations):
            candidates = evolution.ask()
            if not candidates:
                break
            points = yield from self._points(candidates, *stages)
            evolution.tell(points)
            if stage == "cheap" and "full" in config.stages:
                yield from self._promote(candidates)
            self.history.append(self._history_row(stage))
            # a replay from the archive must not put an earlier front in place of a later one
            if self._news:
                self.write(self.front())
            self.generation += 1

    def _promote(self, candidates: Sequence[Genome]) -> Iterator[list[Request]]:
        """Give the full quality to this generation's members of the cheap front."""
        fresh = set(candidates)
        front = [g for g in self._unscored_front() if g in fresh]
        points = [self._point(genome, "cheap") for genome in front]
        chosen = spread_choice(points, self.config.full_per_generation)
        yield from self._points([front[i] for i in chosen], "full")

    def _score_finalists(self) -> Iterator[list[Request]]:
        """Give the full quality to members of the final cheap front, near the budget first."""
        front = self._unscored_front()
        count = self.config.full_final
        budget = budget_cost(self.config, self.cost)
        near: list[Genome] = []
        if budget is not None:
            below = [g for g in front if self.cost(g) <= budget * (1 + BUDGET_TOLERANCE)]
            near = below[len(below) - min(len(below), (count + 1) // 2) :]
        rest = [g for g in front if g not in near]
        points = [self._point(genome, "cheap") for genome in rest]
        spread = [rest[i] for i in spread_choice(points, count - len(near))]
        yield from self._points([*near, *spread], "full")

    def _unscored_front(self) -> list[Genome]:
        """Members of the cheap front without a full quality, by rising cost."""
        return [g for g in self._front_genomes("cheap") if g not in self._scored["full"]]

    def _best_scored(self, count: int) -> list[Genome]:
        """The best `count` fully scored candidates: whole fronts first, then by spread."""
        rest = [g for g, score in self._scored["full"].items() if math.isfinite(score)]
        chosen: list[Genome] = []
        while rest and len(chosen) < count:
            points = [self._point(genome, "full") for genome in rest]
            layer = [rest[i] for i in nondominated(points)]
            spread = spread_choice([self._point(g, "full") for g in layer], count - len(chosen))
            chosen += [layer[i] for i in spread]
            rest = [g for g in rest if g not in layer]
        return chosen

    def _front_genomes(self, stage: str) -> list[Genome]:
        """Non-dominated candidates at a stage, by rising cost."""
        genomes = [g for g, score in self._scored[stage].items() if math.isfinite(score)]
        return [genomes[i] for i in nondominated([self._point(g, stage) for g in genomes])]

    def _point(self, genome: Genome, stage: str) -> Point:
        """(quality, cost as a fraction of the full width's) of a scored genome."""
        return self._scored[stage][genome], self.cost.relative(genome)

    def _known(self, genome: Genome, stage: str) -> float | None:
        score = self._scored[stage].get(genome)
        return score if score is not None and math.isfinite(score) else None

    def _history_row(self, stage: str) -> dict[str, Any]:
        fronts = {s: [self._point(g, s) for g in self._front_genomes(s)] for s in self._meters}
        volumes = {s: meter(fronts[s]) for s, meter in self._meters.items()}
        return {
            "generation": self.generation,
            "stage": stage,
            "evaluations": {s: len(self._scored[s]) for s in self._meters},
            "hypervolume": volumes[self.config.quality_stage],
            "hypervolumes": volumes,
            "fronts": {s: [list(p) for p in points] for s, points in fronts.items()},
        }

    def write(self, front: Front) -> None:
        """Write history.json and front.json."""
        references = {
            s: {"ideal": m.ideal.tolist(), "reference": m.reference.tolist()}
            for s, m in self._meters.items()
        }
        history = {"hypervolume_points": references, "generations": self.history}
        write_json(self._folder / "history.json", history)
        front.save(self._folder / "front.json")

    def pick(self, front: Front) -> FrontPoint:
        """Return the strategy of a front that the configured budget chooses."""
        config = self.config
        share = config.budget_time if config.budget_macs is None else config.budget_macs
        loss = config.max_quality_loss
        return front.pick(max_cost=share, budget_ms=config.budget_ms, max_quality_loss=loss)

    def front(self) -> Front:
        """Return the front of the scores so far; chosen is None if nothing is in the limits."""
        stage = self.config.quality_stage
        points = tuple(self._front_point(g) for g in self._front_genomes(stage))
        constants = tuple(
            self._front_point(g)
            for g in self.space.constants()
            if math.isfinite(self._scored[stage][g])
        )
        front = Front(points, constants, self.config.cost, self._quality_name)
        with contextlib.suppress(ValueError):
            return dataclasses.replace(front, chosen=self.pick(front))
        return front

    def _front_point(self, genome: Genome) -> FrontPoint:
        quality, relative = self._point(genome, self.config.quality_stage)
        origin = {
            **self._origin,
            "kind": "search",
            "cost_unit": self.config.cost,
            "cost_relative": relative,
            "quality": quality,
            "quality_name": self._quality_name,
            "steps": self.space.steps,
        }
        return FrontPoint(
            strategy=self.space.strategy(genome, origin),
            cost=self.cost(genome),
            cost_relative=relative,
            quality=quality,
            cheap=self._known(genome, "cheap"),
            full=self._known(genome, "full"),
            generation=self._first_seen[genome],
        )
