"""The search over segment genomes by ask and tell, with an archive on disk and exact resume.

`Search.ask` says what to score next and on which samples, `Search.tell` takes the scores; who
computes them, and where, is the caller's. What is asked next depends only on the configuration, its
seed and scores already told. To resume, a search runs again from the beginning and takes the scores
that it has from the archive, so that only missing ones are asked for.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from ddsm_ext.io.digest import json_digest
from ddsm_ext.io.lock import RunLock
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.archive import ARCHIVE_FILE, Archive, Request
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import CostTable, StepCost, check_budget, cost_per_width
from ddsm_ext.search.front import Front
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.history import COMPARISONS, STEPS_FILE
from ddsm_ext.search.stages import Stages
from ddsm_ext.settings import Refusal, TypeRefusal, plain

log = logging.getLogger(__name__)

# One score, lower is better: a value a block of samples, or a single one
Values = float | Sequence[float]
Quality = Callable[[Strategy, range], Values]


@dataclass(frozen=True)
class SearchProgress:
    """State of a search after an evaluation.

    Args:
        evaluations: scores taken so far, those found in the archive included.
        samples: samples made for them.
        expected_samples: about how many there will be.
        generation: generation now running, from 0.
        generations: generations in all.
        stage: "race", "evolution", "finalists" or "chosen".
        hypervolume: share of the hypervolume box after the last generation; None before the first.
    """

    evaluations: int
    samples: int
    expected_samples: int
    generation: int
    generations: int
    stage: str
    hypervolume: float | None


ProgressCallback = Callable[[SearchProgress], None]


def search(
    config: SearchConfig,
    *,
    cost_table: CostTable | Mapping[float, float],
    log_snrs: Sequence[float],
    run_dir: str | Path,
    folder: str = "search",
    quality: Quality | None = None,
    errors: np.ndarray | None = None,
    identity: Mapping[str, Any] | None = None,
    quality_name: str | None = None,
    runs: Sequence[int] | None = None,
    fixed_cost: float = 0.0,
    progress: ProgressCallback | None = None,
) -> Front:
    """Search the Pareto front of quality and cost; continues an interrupted search of `run_dir`.

    Args:
        config, cost_table, log_snrs, run_dir, folder, errors, identity, quality_name, runs,
            fixed_cost: as `Search` has them.
        quality: (strategy, samples) -> its score on these samples, lower is better, as a value for
            each block of them or a single one; sample i is to come from the same noise for every
            strategy. What it refuses, or what is not finite, counts as failed. Not needed by the
            method "proxy".
        progress: called after every evaluation; None for silence. What it raises ends the search,
            which the same call continues.

    Returns:
        The whole front, with the chosen strategy.

    Raises:
        ValueError: a quality is missing, or what `Search` and its `finish` refuse.
    """
    if quality is None and config.method != "proxy":
        raise Refusal(f"search: method is {config.method!r} without a quality; need one")
    report = progress or (lambda state: None)
    with Search(
        config,
        cost_table=cost_table,
        log_snrs=log_snrs,
        run_dir=run_dir,
        folder=folder,
        errors=errors,
        identity=identity,
        quality_name=quality_name,
        runs=runs,
        fixed_cost=fixed_cost,
    ) as run:
        while asked := run.ask():
            assert quality is not None
            for strategy, samples in asked:
                start = time.perf_counter()
                try:
                    values = quality(strategy, samples)
                except Refusal as error:
                    if strategy.widths == (1.0,):
                        raise  # what all others are compared with
                    log.warning("%s; this evaluation counts as failed", error)
                    values = math.inf
                run.tell([values], [time.perf_counter() - start])
                report(run.progress)
        front = run.finish()
        report(run.progress)
    return front


def search_identity(
    config: SearchConfig,
    cost_table: CostTable | Mapping[float, float],
    log_snrs: Sequence[float],
    identity: Mapping[str, Any],
    runs: Sequence[int] | None = None,
    fixed_cost: float = 0.0,
) -> dict[str, Any]:
    """Return what the scores in a search's archive depend on; with another one they are others'.

    Args:
        config, cost_table, log_snrs, identity, runs, fixed_cost: as `Search` has them.
    """
    space = StrategySpace(log_snrs, config.widths, config.segments, runs)
    return {
        **({"fixed_cost": fixed_cost} if fixed_cost else {}),
        **identity,
        "cost": config.cost,
        "costs": [[w, c] for w, c in sorted(cost_per_width(config, cost_table).items())],
        "log_snrs": json_digest(space.levels.tolist() + space.counts.tolist()),
        "seed": config.seed,
        "widths": list(config.widths),
    }


class Search:
    """One search by ask and tell, from its first evaluation or from an archive to its front.

    It holds the run's lock and the archive until it is closed: use it as a context manager.

        with Search(config, cost_table=costs, log_snrs=levels, run_dir=run) as search:
            while asked := search.ask():
                search.tell([score(strategy, samples) for strategy, samples in asked])
            front = search.finish()

    Args:
        config: settings.
        cost_table: cost of one image and step by width, in MACs or ms as `config.objectives` says.
        log_snrs: [S] log-SNR of every step of the sampler.
        run_dir: run folder.
        folder: in it, gets archive.jsonl, history.json, front.json and strategy.json.
        errors: [S, W] error of every step and width (in the order of `config.widths`), weighted by
            what the sampler makes of it (`Sensitivity.for_steps` with gains): the proxy, from which
            the first strategies come. None for random ones; the method "proxy" needs it.
        identity: what the scores depend on beside the arguments here: checkpoint digest, sampler,
            names of the qualities; plain JSON and settings. None for nothing.
        quality_name: what to call the front's quality in front.json; None for "quality".
        runs: [S] how often the network runs at the width of each step, as two halves of a guided
            one do; None: once.
        fixed_cost: of an image, in the costs' unit, that no strategy changes.

    Raises:
        ValueError: errors are missing or refused, the budget is below the cheapest strategy, or the
            archive belongs to another search or is in use, as is the run.
    """

    def __init__(
        self,
        config: SearchConfig,
        *,
        cost_table: CostTable | Mapping[float, float],
        log_snrs: Sequence[float],
        run_dir: str | Path,
        folder: str = "search",
        errors: np.ndarray | None = None,
        identity: Mapping[str, Any] | None = None,
        quality_name: str | None = None,
        runs: Sequence[int] | None = None,
        fixed_cost: float = 0.0,
    ) -> None:
        space = StrategySpace(log_snrs, config.widths, config.segments, runs)
        cost = StepCost(cost_per_width(config, cost_table), space, fixed_cost)
        check_budget(config, cost)
        if errors is None and config.method == "proxy":
            raise Refusal("search: method is 'proxy' without errors; need the weighted errors")
        given = dict(identity or {})
        whole = search_identity(config, cost_table, log_snrs, given, runs, fixed_cost)
        if errors is not None:
            errors = space.by_level(log_snrs, errors)  # [L, W]
        self._folder = Path(run_dir) / folder
        self._stages = Stages(
            config,
            space,
            cost,
            errors,
            folder=self._folder,
            origin={**plain(given), "seed": config.seed},
            quality_name=quality_name or "quality",
        )
        self._rounds = self._stages.rounds()
        self._wanted: deque[Request] = deque()  # of this round, not taken yet
        self._ended = False
        self._archive = None  # the proxy scores nothing, and leaves the scores of others alone
        with contextlib.ExitStack() as held:
            self._lock = held.enter_context(RunLock(run_dir))
            if config.method != "proxy":
                archive = Archive(self._folder / ARCHIVE_FILE, whole, space)
                self._archive = held.enter_context(archive)
            self._held = held.pop_all()

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another search use run and archive."""
        self._held.close()

    def ask(self) -> list[tuple[Strategy, range]]:
        """Return every strategy that can be scored now, and on which samples; none at the end.

        They do not depend on each other's scores: the constant widths, a generation, those of a
        race that go on, the finalists, or the chosen one with the full width. What the archive
        knows is not asked for. What was asked for and not told is asked for again.

        Raises:
            ValueError: the full width's quality is not a finite number.
        """
        while not self._wanted and not self._ended:
            found = next(self._rounds, None)
            self._ended = found is None
            self._wanted.extend(found or ())
            self._take_known()
        return [(self._stages.space.strategy(genome), n) for genome, n in self._missing()]

    def tell(self, scores: Sequence[Values], seconds: Sequence[float] | None = None) -> None:
        """Take the scores of the first strategies asked for, in their order; they are on disk then.

        Args:
            scores: each a value a block of samples, the same blocks for every strategy, or a single
                one; lower is better; one that is not finite says that the evaluation failed. As
                many as were asked for or fewer: further calls take those that follow.
            seconds: what each took, for the archive; None where nobody measured it.

        Raises:
            ValueError: there are more scores than were asked for, or another number of seconds.
            TypeError: a score or a time is no number.
        """
        try:
            values = [_values(score) for score in scores]
            times = None if seconds is None else [round(float(taken), 6) for taken in seconds]
        except (TypeError, ValueError):
            told = repr(scores) if seconds is None else f"{scores!r} in {seconds!r} s"
            raise TypeRefusal(
                f"search: told {told}; need a number, or some numbers, a score"
            ) from None
        asked = self._missing()
        if len(values) > len(asked):
            raise Refusal(
                f"search: told {len(values)} scores while {len(asked)} are asked for; need scores "
                "of what ask returned, each once"
            )
        if times is not None and len(times) != len(values):
            raise Refusal(
                f"search: told {len(values)} scores and {len(times)} times; need one a score"
            )
        assert self._archive is not None
        self._lock.check()
        each = zip(asked, values, times or repeat(None), strict=False)
        for (genome, samples), score, taken in each:
            row = {**self._stages.row(genome, score), "seconds": taken}
            self._archive.add(genome, samples, score, row)
            self._take_known(fresh=True)

    @property
    def progress(self) -> SearchProgress:
        """How far the search is."""
        stages, config = self._stages, self._stages.config
        expected = stages.samples if self._ended else config.most_scored_samples()
        return SearchProgress(
            evaluations=stages.count,
            samples=stages.samples,
            expected_samples=max(expected, stages.samples),
            generation=stages.generation,
            generations=config.generation_count,
            stage=stages.stage,
            hypervolume=stages.history[-1].hypervolume if stages.history else None,
        )

    def finish(self) -> Front:
        """Write the front, its history and the chosen strategy; return the front.

        Raises:
            ValueError: scores are missing, or nothing is within the limits (the front is then
                written all the same, unless an earlier search left its own with a strategy of it);
                or the run folder was moved.
        """
        if not self._stages.ended:  # or refused half-way
            raise Refusal("search: finish while scores are missing; need ask to return none first")
        self._lock.check()
        front = self._stages.front()
        try:
            chosen = front.chosen or self._stages.pick(front)
        except Refusal:
            self._stages.write(front)
            raise
        file = self._stages.strategy_file
        if file.exists() and file.read_bytes() != chosen.strategy.to_json().encode():
            for name in (STEPS_FILE, *COMPARISONS.values()):  # which are of that one
                (self._folder / name).unlink(missing_ok=True)
        chosen.strategy.save(file)
        self._stages.write(front, chosen=True)
        return front

    def _missing(self) -> list[Request]:
        """What of this round has no score."""
        return [request for request in self._wanted if self._known(*request) is None]

    def _known(self, genome: Genome, samples: range) -> tuple[float, ...] | None:
        return None if self._archive is None else self._archive.get(genome, samples)

    def _take_known(self, *, fresh: bool = False) -> None:
        """Move scores out of the archive in the order wanted, which decides between equal ones."""
        while self._wanted:
            genome, samples = self._wanted[0]
            values = self._known(genome, samples)
            if values is None:
                break
            self._wanted.popleft()
            self._stages.take(genome, samples, values, fresh=fresh)


def _values(score: Values) -> tuple[float, ...]:
    """The values of one score; refuses text, which is a sequence too."""
    if isinstance(score, str):
        raise TypeError
    if isinstance(score, Iterable):
        found = tuple(float(value) for value in score)
        if not found:
            raise ValueError
        return found
    return (float(score),)
