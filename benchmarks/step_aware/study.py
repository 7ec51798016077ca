"""One training seed: its network is trained, searched, tuned, scored and timed, each once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsm_ext.diffusion import make_schedule
from ddsm_ext.io.files import read_json
from ddsm_ext.run import Run
from ddsm_ext.run.compose import Sampler, choose_device
from ddsm_ext.run.config import changed
from ddsm_ext.run.scoring import Scorer, interleaved_ms
from ddsm_ext.sampling import evaluations
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.front import Front, FrontPoint
from ddsm_ext.search.history import COMPARISONS
from step_aware.presets import Preset, Target
from step_aware.tables import FULL, GENERAL, constant_beside

SAMPLER_FIRST_SEED = 2_000_000  # a search takes those from 1,000,000 on, scores those from 0


@dataclass
class Study:
    """One training seed: its run, and what was measured of it so far.

    Args:
        preset: what is done.
        run: of the general network.
        results: of this seed, a part of the file.
        save: writes the file.
    """

    preset: Preset
    run: Run
    results: dict[str, Any]
    save: Callable[[], None]

    def go(self) -> None:
        """Do what is not there yet.

        Raises:
            KeyboardInterrupt: it was stopped.
        """
        self.train(self.run, GENERAL)
        self.choose_sampler()
        for target in self.preset.targets:
            self.search(target)
        self.score(GENERAL, self.run, self.strategies)
        for name, strategy in self.to_tune().items():
            if self._scored(name, [name]):
                continue  # without asking for the run, which reads weights
            tuned = self.tuned(strategy)
            self.train(tuned, name)
            self.score(name, tuned, {name: strategy})
        self.time()

    @property
    def strategies(self) -> dict[str, Strategy]:
        """Name -> strategy of all that is compared."""
        rows = self.results["strategies"]
        return {name: Strategy(row["widths"], row["cuts"]) for name, row in rows.items()}

    def tuned(self, strategy: Strategy) -> Run:
        """The run that is tuned for a strategy, as far as it is."""
        return self.run.tuning(strategy, train={"steps": self.preset.tune_steps})

    def train(self, run: Run, name: str) -> None:
        """Train a run to its end, and note how long all of it took."""
        what = f"training, {name}"
        if what in self.results.get("seconds", {}):
            return
        print(f"{what}: {run.folder}", flush=True)
        if not run.train().finished:
            raise KeyboardInterrupt
        self._note(what, _training_seconds(run))

    def choose_sampler(self) -> None:
        """Take the sampler with which the full width is best, on seeds that score nothing else."""
        tried = self.results.setdefault("samplers", [])
        settings = self.run.config.eval
        seeds = list(range(SAMPLER_FIRST_SEED, SAMPLER_FIRST_SEED + settings.images))
        for sampler in self.preset.samplers[len(tried) :]:
            scorer = self._scorers[self.preset.features[0]]
            start, run = time.monotonic(), self._run({"sampler": sampler})
            images = self._sampler(run).pictures(1.0, seeds)
            tried.append({"sampler": dict(sampler), "frechet": scorer.frechet(images)})
            self._note("samplers", time.monotonic() - start)
        best = min(tried, key=lambda row: row["frechet"])
        self.run.config = self._run({"sampler": best["sampler"]}).config

    def search(self, target: Target) -> None:
        """Search for a target, unless its width saves no time; the last search is the run's own."""
        name, rows = target.name, self.results.setdefault("strategies", {})
        fronts = self.results.setdefault("fronts", {})
        if name in fronts or (target.share is None and target.width not in self._ms):
            return
        print(f"search, {name}", flush=True)
        start = time.monotonic()
        chosen = self.searched(target)
        folder = self.run.folder / "search"
        self.results["costs"] = costs = read_json(folder / "costs.json")
        front = Front.load(folder / "front.json")
        fronts[name] = {"points": _places(front.points), "constants": _places(front.constants)}
        found = {name: ("strategy", chosen)}
        for width in (row["width"] for row in costs["rows"]):
            constant = FULL if width == 1.0 else f"width {width:g}"
            kind = "full" if width == 1.0 else "width"
            found[constant] = (kind, Strategy.constant(width))
        if target == self.preset.targets[-1]:
            for label, file in COMPARISONS.items():
                found[f"{name}, {label}"] = (label, Strategy.load(folder / file))
        rows |= {label: self._row(*each) for label, each in found.items()}
        self._note(f"search, {name}", time.monotonic() - start)

    def searched(self, target: Target) -> Strategy:
        """The strategy of a target; its search becomes the run's own, and makes nothing twice."""
        share = target.share
        if share is None:
            assert target.width is not None
            share = self._ms[target.width] / self._ms[1.0]
        run = self._run({"eval": {"features": target.features}})
        return run.search(budget_time=share, **self.preset.search).strategy

    def to_tune(self) -> dict[str, Strategy]:
        """Name -> strategy of what is tuned: each target's, the constant beside it, full width."""
        names = list[str]()
        for target in self.preset.targets[::-1]:
            beside = constant_beside(self.results, target)
            names += [name for name in (target.name, beside) if name in self.strategies]
        return {name: self.strategies[name] for name in dict.fromkeys([*names, FULL])}

    def score(self, weights: str, run: Run, strategies: Mapping[str, Strategy]) -> None:
        """Score strategies with a run's weights, range by range, in all features."""
        if self._scored(weights, strategies):
            return
        settings = run.config.eval
        rows = self.results.setdefault("scores", {}).setdefault(weights, {})
        print(f"scores, {weights}", flush=True)
        sampler = self._sampler(run)
        for number in range(settings.ranges):
            first = settings.first_seed + number * settings.images
            seeds = list(range(first, first + settings.images))
            for name, strategy in strategies.items():
                if len(rows.setdefault(name, [])) > number:
                    continue
                start = time.monotonic()
                images = sampler.pictures(strategy, seeds)
                rows[name].append({
                    features: scorer.distances(images) for features, scorer in self._scorers.items()
                })  # fmt: skip
                self._note(f"scores, {weights}", time.monotonic() - start)

    def _scored(self, weights: str, names: Iterable[str]) -> bool:
        """Whether all ranges of strategies are scored with some weights."""
        rows = self.results.get("scores", {}).get(weights, {})
        return all(len(rows.get(name, ())) == self.run.config.eval.ranges for name in names)

    def time(self) -> None:
        """Time all in turns: whether the costs that a search reckons with are those of images."""
        if "timing" in self.results:
            return
        print("timing", flush=True)
        start, batch = time.monotonic(), self.run.config.eval.batch_size
        self.results["timing"] = interleaved_ms(self._sampler(self.run), self.strategies, batch)
        self._note("timing", time.monotonic() - start)

    def pictures(self, name: str, seeds: list[int], *, tuned: bool = False) -> NDArray[np.uint8]:
        """Return images [N, H, W, C] of a strategy, by the general weights or by its own."""
        strategy = self.strategies[name]
        run = self.tuned(strategy) if tuned else self.run
        return self._sampler(run).pictures(strategy, seeds).permute(0, 2, 3, 1).numpy()

    @cached_property
    def _scorers(self) -> dict[str, Scorer]:
        """Features -> what compares images in them with the real ones."""
        start, found = time.monotonic(), {}
        for features in self.preset.features:
            found[features] = self._run({"eval": {"features": features}}).scorer()
        self._note("features and references", time.monotonic() - start)
        return found

    def _run(self, changes: Mapping[str, Any]) -> Run:
        """The general run under other settings."""
        run = Run(self.run.folder, changed(self.run.config, changes), self.run.device)
        run.dataset = self.run.dataset  # read once
        return run

    @property
    def _ms(self) -> dict[float | None, float]:
        """Time of a step at each width that takes less than the wider ones."""
        return {row["width"]: row["ms"] for row in self.results["costs"]["rows"]}

    def _sampler(self, run: Run) -> Sampler:
        device, batch = choose_device(run.device), run.config.eval.batch_size
        return Sampler.for_run(run.folder, run.config, device, batch, None)

    def _row(self, kind: str, strategy: Strategy) -> dict[str, Any]:
        """A strategy as the file has it; its costs are an image's, by the search's own table."""
        config = self.run.config
        steps = evaluations(make_schedule(config.diffusion), config.sampler, strategy)
        widths = [width for step in steps for width in step.widths]
        macs = {row["width"]: row["macs"] for row in self.results["costs"]["rows"]}
        return {
            "kind": kind,
            "widths": list(strategy.widths),
            "cuts": list(strategy.cuts),
            "steps": widths,
            "ms": sum(self._ms[width] for width in widths),
            "macs": sum(macs[width] for width in widths),
        }

    def _note(self, what: str, seconds: float) -> None:
        """Add to the time that something took, and save."""
        known = self.results.setdefault("seconds", {})
        known[what] = known.get(what, 0.0) + seconds
        self.save()


def _places(points: Sequence[FrontPoint]) -> list[dict[str, Any]]:
    """Where strategies lie on a front, by the search's own samples."""
    return [
        {
            "widths": list(point.strategy.widths),
            "cuts": list(point.strategy.cuts),
            "cost_relative": point.cost_relative,
            "quality": point.quality,
            "samples": point.samples,
        }
        for point in points
    ]


def _training_seconds(run: Run) -> float:
    """How long a run's steps took, over all calls, by its log."""
    last, seconds = 0, 0.0
    for line in (run.folder / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        seconds += (row["step"] - last) * run.config.train.batch_size / row["images_per_s"]
        last = row["step"]
    return seconds
