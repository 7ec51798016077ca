"""The stages of a search: what is scored next, what the scores so far say, its files.

"evolution": the pool of first strategies races on samples of common seeds; NSGA-II, whose first
population are the survivors, breeds children, and the most promising race against what is known;
the finalists and the constant widths are scored on new seeds, and those scores alone make the
front; what is chosen from it is scored once more, since the best of several scores is too good.
"paper": every strategy of NSGA-II gets one whole score, and these make the front.
"proxy": nothing is scored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddsm_ext.intervals import Interval
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
from ddsm_ext.search.history import Ends, Generation, History
from ddsm_ext.search.pool import candidate_pool, level_total, proxy_front, spread_budgets
from ddsm_ext.search.race import Race, Score, difference
from ddsm_ext.settings import Refusal

Requests = Generator[list[Request], None, None]


@dataclasses.dataclass(frozen=True)
class _Standing:
    """A strategy in the running for the front: its quality, the score behind it, its loss against
    the full width."""

    quality: float
    score: Score
    loss: Interval


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
        self.race = Race(cost, config.first_samples, config.race_samples)
        self.stage = "race"
        self.generation = 0
        self.count = 0  # scores taken
        self.samples = 0  # samples that were made for them
        self.ended = False  # with every score that it takes
        self.history: list[Generation] = []
        self._errors = errors
        self._folder = folder
        self._origin = dict(origin)
        self._quality_name = quality_name
        self._finals: dict[Genome, Score] = {}
        self._again: dict[Genome, Score] = {}  # the chosen one and the full width
        self._first_seen: dict[Genome, int] = {}
        self._meter: HypervolumeMeter | None = None
        self._news = False

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
            final = samples.start == self.race.most_samples
            (self._finals if final else self._again)[genome] = score
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
        full = self.space.constants()[0]
        for requests in self._rounds():
            yield requests
            scores = (self.race.latest(full), self._finals.get(full), self._again.get(full))
            if not all(math.isfinite(score.mean) for score in scores if score is not None):
                raise Refusal("search: the full width's quality is not a finite number; need one")
        self.ended = True

    def _rounds(self) -> Requests:
        if self.config.method == "proxy":
            return
        yield from self._score_constants()
        if self.config.method == "paper":
            self.stage = "evolution"
            yield from self._evolve(self._random(self.config.population_size, []))
            return
        survivors = yield from self._run_race(self._pool())
        self._note()
        yield from self._evolve(survivors)
        if self.config.finalists:
            yield from self._score_finalists()

    def _score_constants(self) -> Requests:
        """Score the constant widths and fix the hypervolume's box from them."""
        constants = self.space.constants()
        yield from self._score(constants)
        losses = [(self.race.loss(g).mean, self.race.point(g)[1]) for g in constants]
        self._meter = HypervolumeMeter([p for p in losses if math.isfinite(p[0])])

    def _score(self, genomes: Sequence[Genome]) -> Requests:
        """Give each a first score."""
        race = self.race
        yield [(g, range(race.samples)) for g in genomes if race.latest(g) is None]

    def _pool(self) -> list[Genome]:
        """The strategies that the race begins with; without errors random ones."""
        config = self.config
        if self._errors is None:
            constants = self.space.constants()
            return constants + self._random(config.pool - len(constants), constants)
        return candidate_pool(
            self.space,
            self.cost,
            self._errors,
            budgets=config.proxy_budgets,
            budget=budget_cost(config, self.cost),
            size=config.pool,
        )

    def _random(self, count: int, known: Sequence[Genome]) -> list[Genome]:
        # pymoo takes a second to import, which a refused search should not cost
        from ddsm_ext.search.nsga2 import random_genomes

        random = np.random.default_rng([self.config.seed, 0])
        return random_genomes(self.space, max(0, count), known, random)

    def _run_race(
        self, candidates: Sequence[Genome]
    ) -> Generator[list[Request], None, list[Genome]]:
        """Sample candidates until no pair of the survivors is open; return these.

        After each doubling at most half as many go on, but no fewer than a population. They race
        against everything that was scored; of that only what is on the front now is sampled on
        with them.
        """
        race, limit = self.race, len(candidates)
        yield from self._score(candidates)
        alive = race.alive(candidates)
        while wanted := race.open(alive, race.front()):
            yield [(genome, range(samples)) for genome, samples in wanted]
            limit = max(self.config.population_size, limit // 2)
            alive = race.best(race.alive(alive), limit)
        return alive

    def _evolve(self, initial: Sequence[Genome]) -> Requests:
        """NSGA-II on (score, cost), its offspring raced as they come."""
        from ddsm_ext.search.nsga2 import Evolution

        config, size, first = self.config, self.config.population_size, list(initial)
        if config.method == "evolution":  # of a race that few survived, the best others too
            others = [g for g in self.race.scored() if g not in first]
            first += self.race.best(others, size - len(first))
            self.stage = "evolution"
        state = np.random.SeedSequence([config.seed, 1]).generate_state(1)
        bred = size * config.children_per_score
        evolution = Evolution(config, self.space, first, size, bred, int(state[0]))
        for self.generation in range(config.generation_count):
            candidates = evolution.ask(self._promising)
            if not candidates:
                break
            if config.method == "evolution":
                yield from self._run_race(candidates)
            else:
                yield from self._score(candidates)
            evolution.tell(self.race.point)
            if self.generation or config.method == "paper":
                self._note()

    def _promising(self, children: Sequence[Genome]) -> Sequence[int]:
        """Which of the children to score, a population of them."""
        # scikit-learn takes a second to import, too
        from ddsm_ext.search.surrogate import promising

        assert self._meter is not None
        reference = self._meter.reference.tolist()
        return promising(self.race, children, reference, self.config.population_size)

    def _score_finalists(self) -> Requests:
        """Score the finalists on new samples, and what is chosen of them on others again."""
        count, full = self.config.final_samples, self.space.constants()[0]
        self.stage = "finalists"
        samples = range(self.race.most_samples, self.race.most_samples + count)
        finalists = dict.fromkeys([*self.space.constants(), *self._finalists()])
        yield [(genome, samples) for genome in finalists]
        self._note()
        chosen = self._chosen(self._front())
        if chosen is not None and chosen != full:
            self.stage = "chosen"
            yield [(genome, range(samples.stop, samples.stop + count)) for genome in (full, chosen)]
            self._note()

    def _finalists(self) -> list[Genome]:
        """Whom to score on new seeds: the best within the budget, then a spread of the front."""
        count, race = self.config.finalists, self.race
        budget = budget_cost(self.config, self.cost)
        near: list[Genome] = []
        if budget is not None:
            within = [g for g in race.scored() if self.cost(g) <= budget * (1 + BUDGET_TOLERANCE)]
            near = sorted(within, key=lambda g: (race.point(g), g.boundaries))[: (count + 1) // 2]
        rest = [g for g in race.front() if g not in near]
        spread = spread_choice([race.point(g) for g in rest], count - len(near))
        return near + [rest[i] for i in spread]

    def _note(self) -> None:
        """Add a row to the history; a replay puts no earlier front in place of a later one."""
        front = self.front()
        assert self._meter is not None
        # losses, since the finalists' samples are others
        volume = self._meter([(p.loss, p.cost_relative) for p in front.points])
        counts = (self.count, self.network_evaluations)
        places = tuple((p.quality, p.cost_relative) for p in front.points)
        self.history.append(Generation(self.generation, volume, self.stage, *counts, places))
        if self._news:
            self.write(front)

    @property
    def strategy_file(self) -> Path:
        """What the search chooses goes there, and front.json fits it."""
        return self._folder / "strategy.json"

    def write(self, front: Front, *, chosen: bool = False) -> None:
        """Write history.json and front.json, once the strategy there is what this front chose."""
        settled = self.strategy_file.exists() and not chosen
        if settled and self.config.method == "proxy":
            return  # what is there may be of a search that scored samples
        meter = self._meter
        ends = Ends(tuple(meter.ideal.tolist()), tuple(meter.reference.tolist())) if meter else None
        History(tuple(self.history), ends).save(self._folder / "history.json")
        if not settled:
            front.save(self._folder / "front.json")

    def pick(self, front: Front) -> FrontPoint:
        """Return the strategy of a front that the configured budget chooses."""
        config = self.config
        share = config.budget_time if config.budget_macs is None else config.budget_macs
        loss = config.max_quality_loss
        return front.pick(max_cost=share, budget_ms=config.budget_ms, max_quality_loss=loss)

    def front(self) -> Front:
        """Return the front of the scores so far; chosen is None if nothing is in the limits."""
        front = self._front()
        chosen = self._chosen(front)
        if chosen is None:
            return front
        return dataclasses.replace(front, chosen=self._scored_again(chosen, front))

    def _front(self) -> Front:
        known = self._standings()
        genomes = list(known)
        order = nondominated([(known[g].quality, self.cost.relative(g)) for g in genomes])
        constants = [genome for genome in self.space.constants() if genome in known]
        return Front(
            points=tuple(self._front_point(genomes[i], known[genomes[i]]) for i in order),
            constants=tuple(self._front_point(genome, known[genome]) for genome in constants),
            cost_unit=self.config.cost,
            quality_name=self._quality_name,
            network_evaluations=self.network_evaluations,
        )

    def _chosen(self, front: Front) -> Genome | None:
        """What the configured budget chooses; None where nothing is in the limits."""
        try:
            strategy = self.pick(front).strategy
        except ValueError:
            return None
        return self.space.from_strategy(strategy)

    def _scored_again(self, chosen: Genome, front: Front) -> FrontPoint:
        """The chosen strategy by its scores since then, if there are any that did not fail."""
        full, score = self.space.constants()[0], self._again.get(chosen)
        if score is None or not math.isfinite(score.mean):
            return self.pick(front)
        loss = difference(score, self._again[full])
        standing = _Standing(front.full_quality + loss.mean, score, loss)
        return dataclasses.replace(self._front_point(chosen, standing), rescored=True)

    def _standings(self) -> dict[Genome, _Standing]:
        """What makes the front: the finalists' scores, before them the latest of the race."""
        if self._finals or self.config.method == "proxy":
            scores = self._finals or self._proxy_scores()
            full = scores[self.space.constants()[0]]
            return {
                genome: _Standing(score.mean, score, difference(score, full))
                for genome, score in scores.items()
                if math.isfinite(score.mean)
            }
        race = self.race
        return {g: _Standing(race.point(g)[0], race.score(g), race.loss(g)) for g in race.scored()}

    def _proxy_scores(self) -> dict[Genome, Score]:
        """The proxy itself as the score, of its exact front and of the constant widths."""
        assert self._errors is not None
        constants, own = self.space.constants(), budget_cost(self.config, self.cost)
        # with those of the constant widths, so that none is on the front but by right
        budgets = spread_budgets(self.cost, self.config.proxy_budgets)
        budgets += [self.cost(genome) for genome in constants]
        budgets += [] if own is None else [min(own, self.cost.full)]
        found = proxy_front(self.space, self.cost, self._errors, budgets, self.config.segments)
        proxies = {g: self.proxy(g) for g in [*constants, *found]}
        return {g: Score((value,), 0) for g, value in proxies.items() if value is not None}

    def _front_point(self, genome: Genome, standing: _Standing) -> FrontPoint:
        score, loss, relative = standing.score, standing.loss, self.cost.relative(genome)
        origin = {
            **self._origin,
            "kind": "search",
            "cost_unit": self.config.cost,
            "cost_relative": relative,
            "quality": standing.quality,
            "quality_name": self._quality_name,
            "samples": score.samples,
            "steps": self.space.steps,
        }
        return FrontPoint(
            strategy=self.space.strategy(genome, origin),
            cost=self.cost(genome),
            cost_relative=relative,
            quality=standing.quality,
            standard_error=score.standard_error,
            samples=score.samples,
            loss=loss.mean,
            loss_half_width=loss.half_width,
            proxy=self.proxy(genome),
            generation=self._first_seen.get(genome, 0),
        )
