"""The stages of a search: what is scored next, what the scores so far say, its files.

"evolution": the pool of first strategies races on samples of common seeds; NSGA-II, whose first
population are the survivors, makes offspring, which race against what is known; the finalists and
the constant widths are scored on new seeds, and those scores alone make the front.
"paper": every strategy of NSGA-II gets one whole score, and these make the front.
"proxy": nothing is scored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddsm_ext.io.files import write_json
from ddsm_ext.search.archive import Request
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import StepCost, budget_cost
from ddsm_ext.search.front import (
    BUDGET_TOLERANCE,
    Front,
    FrontPoint,
    HypervolumeMeter,
    nondominated,
    spread_choice,
)
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.pool import candidate_pool, level_total, proxy_front, spread_budgets
from ddsm_ext.search.race import Race, Score, difference
from ddsm_ext.settings import Refusal

Requests = Generator[list[Request], None, None]


class Stages:
    """The algorithm of a search, which knows no archive: `rounds` asks, `take` is told.

    Args:
        config: settings.
        space: the strategies.
        cost: their cost.
        errors: [L, W] from `StrategySpace.by_level`; None where the proxy is not known.
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
        self.race = Race(cost, config.first_samples, self._most_samples())
        self.stage = "race"
        self.generation = 0
        self.count = 0  # scores taken
        self.samples = 0  # samples that were made for them
        self.history: list[dict[str, Any]] = []
        self._errors = errors
        self._folder = folder
        self._origin = dict(origin)
        self._quality_name = quality_name
        self._finals: dict[Genome, Score] = {}
        self._first_seen: dict[Genome, int] = {}
        self._meter: HypervolumeMeter | None = None
        self._news = False

    def _most_samples(self) -> int:
        evolution = self.config.method == "evolution"
        return self.config.most_samples if evolution else self.config.first_samples

    @property
    def network_evaluations(self) -> int:
        """Evaluations of the network that the scores took so far."""
        return self.samples * self.space.steps

    def take(self, genome: Genome, samples: range, values: Sequence[float], *, fresh: bool) -> None:
        """Take a score; `fresh` ones are of this process, not of the archive.

        Args:
            genome: what was scored.
            samples: on which samples.
            values: one a block of them; a single inf for a failure.
            fresh: whether it is news.
        """
        self._first_seen.setdefault(genome, self.generation)
        score, known = Score(tuple(values), len(samples)), self.race.latest(genome)
        self.count += 1
        if samples.start == 0:
            self.samples += len(samples) - (known.samples if known else 0)
            self.race.take(genome, score)
        else:
            self.samples += len(samples)
            self._finals[genome] = score
        self._news = self._news or fresh

    def row(self, genome: Genome, values: Sequence[float]) -> dict[str, Any]:
        """Return what the archive says of a score beside its values."""
        score = Score(tuple(values), 0)
        return {
            "generation": self.generation,
            "stage": self.stage,
            "cost": self.cost(genome),
            "cost_relative": self.cost.relative(genome),
            "proxy": self.proxy(genome),
            "quality": score.mean if math.isfinite(score.mean) else None,
        }

    def proxy(self, genome: Genome) -> float | None:
        """Return the mean over the steps of the weighted errors; None where they are not known."""
        if self._errors is None:
            return None
        return level_total(self.space, self._errors, genome) / self.space.steps

    def rounds(self) -> Iterator[list[Request]]:
        """Yield what can be scored without each other's scores; goes on when all of it is taken.

        Raises:
            ValueError: the full width's quality is not a finite number.
        """
        if self.config.method == "proxy":
            return
        yield from self._score_constants()
        if self.config.method == "paper":
            random = np.random.default_rng([self.config.seed, 0])
            yield from self._evolve(self._random(self.config.population_size, [], random))
            return
        survivors = yield from self._run_race(self._pool())
        self._note()
        yield from self._evolve(survivors)
        self.stage = "finalists"
        first = self.race.most_samples
        samples = range(first, first + self.config.final_samples)
        finalists = dict.fromkeys([*self.space.constants(), *self._finalists()])
        yield [(genome, samples) for genome in finalists]
        self._note()

    def _score_constants(self) -> Requests:
        """Score the constant widths and fix the hypervolume's box from them."""
        constants = self.space.constants()
        yield [(genome, range(self.race.samples)) for genome in constants]
        points = [self.race.point(genome) for genome in constants]
        if not math.isfinite(points[0][0]):
            raise Refusal("search: the full width's quality is not a finite number; need one")
        self._meter = HypervolumeMeter([p for p in points if math.isfinite(p[0])])

    def _pool(self) -> list[Genome]:
        """The strategies that the race begins with; without errors random ones."""
        config = self.config
        if self._errors is None:
            random = np.random.default_rng([config.seed, 0])
            constants = self.space.constants()
            return constants + self._random(config.pool - len(constants), constants, random)
        return candidate_pool(
            self.space,
            self.cost,
            self._errors,
            budgets=config.proxy_budgets,
            budget=budget_cost(config, self.cost),
            size=config.pool,
        )

    def _random(
        self, count: int, known: Sequence[Genome], random: np.random.Generator
    ) -> list[Genome]:
        # pymoo takes a second to import, which a refused search should not cost
        from ddsm_ext.search.nsga2 import random_genomes

        return random_genomes(self.space, max(0, count), known, random)

    def _run_race(
        self, candidates: Sequence[Genome]
    ) -> Generator[list[Request], None, list[Genome]]:
        """Sample candidates until no pair of the survivors is open; at most half go on each time.

        They race against everything that was scored; of that only what is on the front now is
        sampled on with them.
        """
        race, limit = self.race, len(candidates)
        yield [(g, range(race.samples)) for g in candidates if race.latest(g) is None]
        alive = race.alive(candidates)
        while wanted := race.open(alive, self._front_genomes()):
            yield [(genome, range(samples)) for genome, samples in wanted]
            limit = max(self.config.population_size, limit // 2)
            alive = self._best(race.alive(alive), limit)
        return alive

    def _evolve(self, initial: Sequence[Genome]) -> Requests:
        """NSGA-II on (score, cost), its offspring raced as they come."""
        from ddsm_ext.search.nsga2 import Evolution

        config = self.config
        size = config.population_size
        first = list(initial)
        if config.method == "evolution":  # of a race that few survived, the best others too
            others = [g for g in self.race.scored() if g not in first]
            first += self._best(others, size - len(first))
            self.stage = "evolution"
        state = np.random.SeedSequence([config.seed, 1]).generate_state(1)
        evolution = Evolution(config, self.space, first, size, int(state[0]))
        for self.generation in range(config.generation_count):
            candidates = evolution.ask()
            if not candidates:
                break
            yield from self._run_race(candidates)
            evolution.tell([self.race.point(genome) for genome in candidates])
            if self.generation or config.method == "paper":
                self._note()

    def _finalists(self) -> list[Genome]:
        """Whom to score on new seeds: the best within the budget, then a spread of the front."""
        count, race = self.config.finalists, self.race
        budget = budget_cost(self.config, self.cost)
        near: list[Genome] = []
        if budget is not None:
            within = [g for g in race.scored() if self.cost(g) <= budget * (1 + BUDGET_TOLERANCE)]
            near = sorted(within, key=lambda g: (race.point(g), g.boundaries))[: (count + 1) // 2]
        rest = [g for g in self._front_genomes() if g not in near]
        spread = spread_choice([race.point(g) for g in rest], count - len(near))
        return near + [rest[i] for i in spread]

    def _best(self, genomes: Iterable[Genome], count: int) -> list[Genome]:
        """The best `count` of scored strategies: whole fronts first, then by spread."""
        rest, chosen = list(genomes), list[Genome]()
        while rest and len(chosen) < count:
            layer = [rest[i] for i in nondominated([self.race.point(g) for g in rest])]
            points = [self.race.point(g) for g in layer]
            chosen += [layer[i] for i in spread_choice(points, count - len(chosen))]
            rest = [g for g in rest if g not in layer]
        return chosen

    def _front_genomes(self) -> list[Genome]:
        """Non-dominated strategies of the latest scores, by rising cost."""
        genomes = self.race.scored()
        return [genomes[i] for i in nondominated([self.race.point(g) for g in genomes])]

    def _note(self) -> None:
        """Add a row to the history; a replay puts no earlier front in place of a later one."""
        front = self.front()
        assert self._meter is not None
        points = [(p.quality, p.cost_relative) for p in front.points]
        self.history.append(
            {
                "generation": self.generation,
                "stage": self.stage,
                "evaluations": self.count,
                "network_evaluations": self.network_evaluations,
                "hypervolume": self._meter(points),
                "front": [list(point) for point in points],
            }
        )
        if self._news:
            self.write(front)

    def write(self, front: Front) -> None:
        """Write history.json and front.json."""
        meter = self._meter
        ends = meter and {"ideal": meter.ideal.tolist(), "reference": meter.reference.tolist()}
        history = {"hypervolume_points": ends, "generations": self.history}
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
        scores = self._front_scores()
        constants = [g for g in self.space.constants() if g in scores]
        genomes = list(scores)
        front = Front(
            points=tuple(
                self._front_point(genomes[i], scores)
                for i in nondominated([(scores[g].mean, self.cost.relative(g)) for g in genomes])
            ),
            constants=tuple(self._front_point(g, scores) for g in constants),
            cost_unit=self.config.cost,
            quality_name=self._quality_name,
            network_evaluations=self.network_evaluations,
        )
        with contextlib.suppress(ValueError):
            return dataclasses.replace(front, chosen=self.pick(front))
        return front

    def _front_scores(self) -> dict[Genome, Score]:
        """The scores that make the front: the finalists', before them the latest of the race."""
        if self.config.method == "proxy":
            return self._proxy_scores()
        if self._finals:
            return {g: s for g, s in self._finals.items() if math.isfinite(s.mean)}
        latest = ((g, self.race.latest(g)) for g in self.race.scored())
        return {genome: score for genome, score in latest if score is not None}

    def _proxy_scores(self) -> dict[Genome, Score]:
        """The proxy itself as the score, of its exact front and of the constant widths."""
        assert self._errors is not None
        budgets = spread_budgets(self.cost, self.config.proxy_budgets)
        own = budget_cost(self.config, self.cost)
        if own is not None:
            budgets.append(min(own, self.cost.full))
        found = proxy_front(self.space, self.cost, self._errors, budgets, self.config.segments)
        proxies = {g: self.proxy(g) for g in [*self.space.constants(), *found]}
        return {g: Score((value,), 0) for g, value in proxies.items() if value is not None}

    def _front_point(self, genome: Genome, scores: Mapping[Genome, Score]) -> FrontPoint:
        score, relative = scores[genome], self.cost.relative(genome)
        loss = difference(score, scores[self.space.constants()[0]])
        origin = {
            **self._origin,
            "kind": "search",
            "cost_unit": self.config.cost,
            "cost_relative": relative,
            "quality": score.mean,
            "quality_name": self._quality_name,
            "samples": score.samples,
            "steps": self.space.steps,
        }
        return FrontPoint(
            strategy=self.space.strategy(genome, origin),
            cost=self.cost(genome),
            cost_relative=relative,
            quality=score.mean,
            standard_error=score.standard_error,
            samples=score.samples,
            loss=loss.mean,
            loss_half_width=loss.half_width,
            proxy=self.proxy(genome),
            generation=self._first_seen.get(genome, 0),
        )
