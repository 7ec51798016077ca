"""The search: NSGA-II over segment genomes with staged quality, an archive on disk, exact resume.

What the search does next depends only on its configuration, its seed and scores already seen. To
resume, it runs again from the beginning and takes the scores that it has from the archive.

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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddsm_ext.io.files import write_json
from ddsm_ext.search.archive import Archive, digest
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost_table import CostTable
from ddsm_ext.search.front import Front, FrontPoint
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.objective import (
    Quality,
    StepCost,
    budget_cost,
    check_budget,
    cost_per_width,
)
from ddsm_ext.search.pareto import HypervolumeMeter, Point, nondominated, spread_choice
from ddsm_ext.search.population import (
    budget_genomes,
    constant_genomes,
    errors_by_level,
    random_genomes,
)
from ddsm_ext.search.progress import ProgressCallback, SearchProgress
from ddsm_ext.settings import Refusal, plain


def search(
    config: SearchConfig,
    *,
    cost_table: CostTable | Mapping[float, float],
    log_snrs: Sequence[float],
    run_dir: str | Path,
    quality_cheap: Quality | None = None,
    quality_full: Quality | None = None,
    errors: np.ndarray | None = None,
    identity: Mapping[str, Any] | None = None,
    quality_name: str | None = None,
    progress: ProgressCallback | None = None,
) -> Front:
    """Search the Pareto front of quality and cost; continues an interrupted search of `run_dir`.

    Args:
        config: settings.
        cost_table: cost of one image and step by width, in MACs or ms as `config.objectives` says.
        log_snrs: [S] log-SNR of every step of the sampler.
        run_dir: run folder; writes search/{archive.jsonl, history.json, front.json, strategy.json}.
        quality_cheap: strategy -> cheap score, lower is better; needed by the stage "cheap".
        quality_full: strategy -> full score, lower is better; needed by the stage "full".
        errors: [S, W] sensitivity of every step and width (in the order of `config.widths`), from
            which the first population gets the best strategies at `config.seed_budgets` and at
            the budget; None for none.
        identity: what the scores depend on beside the arguments here: checkpoint digest, sampler,
            names of the qualities; plain JSON and settings. None for nothing.
        quality_name: what to call the front's quality in front.json; None names the stage.
        progress: called after every evaluation; None for silence. What it raises ends the search,
            which the same call continues.

    Returns:
        The whole front, with the chosen strategy.

    Raises:
        ValueError: the budget is below the cheapest strategy, the archive belongs to another
            search, a quality is missing, the full width fails, or nothing is within the limits (the
            front is then written all the same).
    """
    space = StrategySpace(log_snrs, config.widths, config.segments)
    table = cost_per_width(config, cost_table)
    cost = StepCost(table, space)
    qualities = {"cheap": quality_cheap, "full": quality_full}
    for stage in config.stages:
        if qualities[stage] is None:
            raise Refusal(f"search: stages has {stage!r} without quality_{stage}; need both")
    check_budget(config, cost)
    origin = dict(identity or {})
    identity = {
        **origin,
        "cost": config.cost,
        "costs": [[w, c] for w, c in sorted(table.items())],
        "log_snrs": digest(space.levels.tolist() + space.counts.tolist()),
        "seed": config.seed,
        "widths": list(config.widths),
    }
    if errors is not None:
        errors = errors_by_level(space, log_snrs, errors)
        identity["errors"] = digest(errors.tolist())
    folder = Path(run_dir) / "search"
    with Archive(folder / "archive.jsonl", identity, space) as archive:
        origin = {**plain(origin), "seed": config.seed}
        name = quality_name or f"{config.quality_stage} quality"
        run = _Run(config, space, cost, archive, qualities, folder, origin, name, progress)
        return run.execute(errors)


@dataclass
class _Run:
    """One search, from its first evaluation or from an archive to its front."""

    config: SearchConfig
    space: StrategySpace
    cost: StepCost
    archive: Archive
    qualities: Mapping[str, Quality | None]
    folder: Path
    origin: dict[str, Any]
    quality_name: str
    progress: ProgressCallback | None
    first_seen: dict[Genome, int] = field(default_factory=dict)
    scored: dict[str, dict[Genome, float]] = field(
        default_factory=lambda: {"cheap": {}, "full": {}}
    )
    generation: int = 0
    expected: int = 0
    news: bool = False
    meters: dict[str, HypervolumeMeter] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def execute(self, level_errors: np.ndarray | None) -> Front:
        """Run all stages and write the files."""
        config = self.config
        constants = constant_genomes(self.space)
        initial = list(dict.fromkeys([*constants, *self._seeds(level_errors)]))
        random = np.random.default_rng([config.seed, 0])
        missing = config.population - len(initial)
        if missing > 0:
            initial += random_genomes(self.space, missing, initial, random)
        self.expected = sum(config.most_evaluations(len(initial)).values())
        for stage in config.stages:
            self._measure_constants(stage, constants)
        self._evolve(config.stages[0], initial, config.generations, config.population)
        if config.refine_generations:
            size = config.refine_size
            start = self._best_scored(size)
            self._evolve("full", start, config.refine_generations, size)
        self.generation = max(0, self.generation - 1)
        if len(config.stages) == 2:
            self._score_finalists()
            self.history[-1] = self._history_row(self.history[-1]["stage"])
        front = self._front()
        self._write(front)
        if front.chosen is None:
            self._pick(front)
        assert front.chosen is not None
        front.chosen.strategy.save(self.folder / "strategy.json")
        self.expected = self._count()
        self._report(config.quality_stage)
        return front

    def _seeds(self, level_errors: np.ndarray | None) -> list[Genome]:
        """Best strategies under the sensitivity at the configured budgets and the search's own."""
        if level_errors is None:
            return []
        budget = budget_cost(self.config, self.cost)
        own = [] if budget is None else [min(1.0, budget / self.cost.full)]
        budgets = [*self.config.seed_budgets, *own]
        return budget_genomes(self.space, self.cost, level_errors, budgets)

    def _measure_constants(self, stage: str, constants: Sequence[Genome]) -> None:
        """Score the constant widths and fix the hypervolume's reference point from them."""
        points = [self._point(genome, stage) for genome in constants]
        if not math.isfinite(points[0][0]):
            raise Refusal(f"search: the full width's {stage} quality is not a finite number")
        self.meters[stage] = HypervolumeMeter([p for p in points if math.isfinite(p[0])])

    def _evolve(
        self, stage: str, initial: Sequence[Genome], generations: int, population: int
    ) -> None:
        # pymoo takes a second to import, which a refused search should not cost
        from ddsm_ext.search.evolution import Evolution

        config = self.config
        state = np.random.SeedSequence([config.seed, 1, self.generation]).generate_state(1)
        evolution = Evolution(config, self.space, initial, population, int(state[0]))
        for _ in range(generations):
            candidates = evolution.ask()
            if not candidates:
                break
            if stage == "full" and "cheap" in config.stages:
                for genome in candidates:
                    self._point(genome, "cheap")
            evolution.tell([self._point(genome, stage) for genome in candidates])
            if stage == "cheap" and "full" in config.stages:
                self._promote(candidates)
            self._end_generation(stage)

    def _promote(self, candidates: Sequence[Genome]) -> None:
        """Give the full quality to this generation's members of the cheap front."""
        fresh = set(candidates)
        front = [g for g in self._unscored_front() if g in fresh]
        points = [self._point(genome, "cheap") for genome in front]
        for i in spread_choice(points, self.config.full_per_generation):
            self._point(front[i], "full")

    def _score_finalists(self) -> None:
        """Give the full quality to members of the final cheap front, near the budget first."""
        front = self._unscored_front()
        count = self.config.full_final
        budget = budget_cost(self.config, self.cost)
        near: list[Genome] = []
        if budget is not None:
            below = [g for g in front if self.cost(g) <= budget * (1 + 1e-9)]
            near = below[len(below) - min(len(below), (count + 1) // 2) :]
        rest = [g for g in front if g not in near]
        points = [self._point(genome, "cheap") for genome in rest]
        spread = [rest[i] for i in spread_choice(points, count - len(near))]
        for genome in [*near, *spread]:
            self._point(genome, "full")

    def _unscored_front(self) -> list[Genome]:
        """Members of the cheap front without a full quality, by rising cost."""
        return [g for g in self._front_genomes("cheap") if g not in self.scored["full"]]

    def _best_scored(self, count: int) -> list[Genome]:
        """The best `count` fully scored candidates: whole fronts first, then by spread."""
        rest = [g for g, score in self.scored["full"].items() if math.isfinite(score)]
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
        genomes = [g for g, score in self.scored[stage].items() if math.isfinite(score)]
        return [genomes[i] for i in nondominated([self._point(g, stage) for g in genomes])]

    def _point(self, genome: Genome, stage: str) -> Point:
        """(quality, cost as a fraction of the full width's), evaluated if nobody has yet."""
        scored = self.scored[stage]
        if genome not in scored:
            self.first_seen.setdefault(genome, self.generation)
            known = self.archive.get(genome, stage)
            scored[genome] = self._evaluate(genome, stage) if known is None else known
            self._report(stage)
        return scored[genome], self.cost.relative(genome)

    def _evaluate(self, genome: Genome, stage: str) -> float:
        quality = self.qualities[stage]
        assert quality is not None
        start = time.perf_counter()
        score = float(quality(self.space.strategy(genome)))
        seconds = time.perf_counter() - start
        finite = score if math.isfinite(score) else None
        row = {
            "generation": self.generation,
            "cost": self.cost(genome),
            "cost_relative": self.cost.relative(genome),
            "cheap": finite if stage == "cheap" else self._known(genome, "cheap"),
            "full": finite if stage == "full" else self._known(genome, "full"),
            "quality": finite if stage == self.config.quality_stage else None,
            "seconds": round(seconds, 6),
        }
        self.archive.add(genome, stage, score, row)
        self.news = True
        return score if math.isfinite(score) else math.inf

    def _known(self, genome: Genome, stage: str) -> float | None:
        score = self.scored[stage].get(genome)
        return score if score is not None and math.isfinite(score) else None

    def _count(self) -> int:
        return sum(len(scores) for scores in self.scored.values())

    def _report(self, stage: str) -> None:
        if self.progress is not None:
            volume = self.history[-1]["hypervolume"] if self.history else None
            total = self.config.generations + self.config.refine_generations
            state = (self._count(), self.expected, min(self.generation, total - 1), total)
            self.progress(SearchProgress(*state, stage, volume))

    def _end_generation(self, stage: str) -> None:
        self.history.append(self._history_row(stage))
        # a replay from the archive must not put an earlier front in place of a later one
        if self.news:
            self._write(self._front())
        self.generation += 1

    def _history_row(self, stage: str) -> dict[str, Any]:
        fronts = {s: [self._point(g, s) for g in self._front_genomes(s)] for s in self.meters}
        volumes = {s: meter(fronts[s]) for s, meter in self.meters.items()}
        return {
            "generation": self.generation,
            "stage": stage,
            "evaluations": {s: len(self.scored[s]) for s in self.meters},
            "hypervolume": volumes[self.config.quality_stage],
            "hypervolumes": volumes,
            "fronts": {s: [list(p) for p in points] for s, points in fronts.items()},
        }

    def _write(self, front: Front) -> None:
        references = {
            s: {"ideal": m.ideal.tolist(), "reference": m.reference.tolist()}
            for s, m in self.meters.items()
        }
        history = {"hypervolume_points": references, "generations": self.history}
        write_json(self.folder / "history.json", history)
        front.save(self.folder / "front.json")

    def _pick(self, front: Front) -> FrontPoint:
        """The strategy of a front that the configured budget chooses."""
        config = self.config
        share = config.budget_time if config.budget_macs is None else config.budget_macs
        loss = config.max_quality_loss
        return front.pick(max_cost=share, budget_ms=config.budget_ms, max_quality_loss=loss)

    def _front(self) -> Front:
        stage = self.config.quality_stage
        points = tuple(self._front_point(g) for g in self._front_genomes(stage))
        constants = tuple(
            self._front_point(g)
            for g in constant_genomes(self.space)
            if math.isfinite(self.scored[stage][g])
        )
        front = Front(points, constants, self.config.cost, self.quality_name)
        with contextlib.suppress(ValueError):
            return dataclasses.replace(front, chosen=self._pick(front))
        return front

    def _front_point(self, genome: Genome) -> FrontPoint:
        quality, relative = self._point(genome, self.config.quality_stage)
        origin = {
            **self.origin,
            "kind": "search",
            "cost_unit": self.config.cost,
            "cost_relative": relative,
            "quality": quality,
            "quality_name": self.quality_name,
            "steps": self.space.steps,
        }
        return FrontPoint(
            strategy=self.space.strategy(genome, origin),
            cost=self.cost(genome),
            cost_relative=relative,
            quality=quality,
            cheap=self._known(genome, "cheap"),
            full=self._known(genome, "full"),
            generation=self.first_seen[genome],
        )
