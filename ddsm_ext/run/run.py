"""`Run`: training, search, samples, scores and report of one run folder, from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch

from ddsm_ext.io.checkpoint import list_checkpoints
from ddsm_ext.io.lock import RunLock, output_lock
from ddsm_ext.report.page import build_report
from ddsm_ext.run.compose import Progress, Sampler, check_sampler, choose_device, load_network
from ddsm_ext.run.config import RunConfig, changed, with_budget
from ddsm_ext.run.demos import demo_run
from ddsm_ext.run.exporting import export_to
from ddsm_ext.run.features import with_features
from ddsm_ext.run.folder import config_of, create_run, resolve_run, root_of
from ddsm_ext.run.images import images_of, keep_images, load_images, real_images
from ddsm_ext.run.metrics import load_metrics
from ddsm_ext.run.sampling import Samples, write_samples
from ddsm_ext.run.scoring import Scorer, score_strategies
from ddsm_ext.run.searching import search_run
from ddsm_ext.run.strategies import (
    keep_strategy,
    plan_scores,
    read_strategy,
    strategy_to_tune_for,
)
from ddsm_ext.run.training import (
    as_extended,
    extend_run,
    find_run,
    network_to_begin_with,
    run_to_extend,
    train_run,
    tuned_config,
    tuned_name,
)
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.front import FrontPoint
from ddsm_ext.settings import Refusal
from ddsm_ext.training.batches import check_labels
from ddsm_ext.training.session import TrainResult


@dataclass
class Run:
    """A run folder with what its commands need. Each method continues what was interrupted.

    What writes into the folder takes its lock first, and is refused while another process has it.

    Args:
        folder: the run folder.
        config: its configuration, or one with other settings of sampler, search or eval.
        device: where to compute; None takes a GPU where there is one.
        progress: called with (what is done, units done, units in all or None, name of a unit,
            remark) while long work goes on; None for silence.
        resumed: whether the folder was there before.

    Raises:
        ValueError: this machine has no such device.
    """

    folder: Path
    config: RunConfig = field(repr=False)
    device: torch.device | str | None = None
    progress: Progress | None = field(default=None, repr=False)
    resumed: bool = True
    _scorer: tuple[tuple[RunConfig, Path | None], Scorer] | None = field(
        default=None, init=False, repr=False
    )

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        self.device = choose_device(self.device)

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str,
        config: RunConfig,
        *,
        new: bool = False,
        extend: int | None = None,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Return the newest run of this name and configuration; where none is, a new one.

        A run with fewer `train.steps` goes on to those of `config` where the learning rate does not
        fall with them.

        Args:
            root: folder of runs; made when missing.
            name: letters, digits, `.`, `_`, `-`.
            config: of the run; its images, the features that will score it, and the weights of
                another run that it starts from, are read before anything is written.
            new: make another run even if there is one.
            extend: steps to give to the run, which then has to be there; see `extend`.
            device, progress: as of `Run`.

        Raises:
            ImportError: features or latents need a package that is not installed.
            ValueError: the name has other characters, there is no run to extend, or device, images,
                features, weights or sampler cannot be used.
            FileNotFoundError: the images, the features' file or the weights are missing.
        """
        device, dataset = choose_device(device), load_images(config, progress)
        check_labels(dataset, config.model.label_count)
        config = with_features(config, real_images(config, dataset))
        if extend is None:
            folder = None if new else find_run(root, name, config, dataset)
        else:
            folder = run_to_extend(root, name, config)
            extend_run(folder, dataset, extend)
        resumed = folder is not None
        if folder is None:
            check_sampler(config)
            if config.train.start_from is not None or config.tune.strategy is not None:
                network_to_begin_with(Path(root), config, torch.device("cpu"))
            folder = create_run(root, name, config.to_dict(), partial(keep_images, dataset))
        else:
            config = as_extended(folder, config)
        run = cls(folder, config, device, progress, resumed)
        run.dataset = dataset
        return run

    @classmethod
    def open(
        cls,
        root: str | Path = "runs",
        which: str | Path | int | None = None,
        changes: Mapping[str, Any] | None = None,
        *,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Return a run that is there.

        Args:
            root: folder of runs.
            which: folder, number or name of the run; None takes the newest.
            changes: section -> key -> value laid over its settings, e.g. {"sampler": {"steps": 9}}.
            device, progress: as of `Run`.

        Raises:
            FileNotFoundError: there is no such run.
            ValueError: the changes concern the network or the diffusion process, or are refused;
                or this machine has no such device.
        """
        folder = resolve_run(root, which)
        config = config_of(folder)
        return cls(folder, changed(config, changes or {}), device, progress)

    @classmethod
    def demo(cls, name: str = "photographs", root: str | Path = "runs", **how: Any) -> Self:
        """Return the run of a demo (`demos.demo_names()`), made under `root` where it is not there.

        An unknown name is a ValueError; `how`: device and progress, as of `Run`.
        """
        return cls.open(root, demo_run(root, name), **how)

    @cached_property
    def dataset(self) -> Any:
        """The run's images, or latents; says so where it was trained on others."""
        return images_of(self.folder, self.config, self.progress)

    @cached_property
    def images(self) -> Any:
        """What samples are compared with: the run's images, or those that its latents are of."""
        of_latents = self.config.codec.of_latents
        return real_images(self.config, None if of_latents else self.dataset, self.folder)

    @property
    def strategy(self) -> Strategy:
        """The strategy that the search chose; before a search the full width."""
        return read_strategy(None, self.folder, self.config)[1]

    def network(self, weights: str = "ema") -> Any:
        """Return the trained network, called as `net(x, t, width)`, from the newest checkpoint.

        Args:
            weights: one of `compose.weights_of(config)`, as "ema".

        Raises:
            FileNotFoundError: the run has no whole checkpoint yet.
        """
        return load_network(self.folder, self.config, self._device, weights)

    def train(self) -> TrainResult:
        """Train to the last step, or until Ctrl-C, which saves; the result says which."""
        return train_run(self.folder, self.config, self._device, self.dataset, self.progress)

    def extend(self, steps: int, lr: float | None = None) -> None:
        """Give the run more steps, for `train`; config.json keeps where the learning rate restarts.

        Args:
            steps: in all, more than now.
            lr: rate to go on with, which falls as before; None takes half of `train.lr`, or the
                present rate where that is more.

        Raises:
            FileNotFoundError: the run has no whole checkpoint.
            ValueError: the run has as many steps already, its images are others, or lr is refused.
        """
        train = extend_run(self.folder, self.dataset, steps, lr)
        self.config = replace(self.config, train=train)

    def tuned(
        self,
        strategy: Strategy | float | str | Path | None = None,
        **sections: Mapping[str, Any],
    ) -> RunConfig:
        """Return the configuration of the run that `tune` would make; writes nothing."""
        chosen = strategy_to_tune_for(strategy, self.folder, self.config)
        return tuned_config(self.folder, self.config, chosen, sections, "tune")

    def tuning(
        self,
        strategy: Strategy | float | str | Path | None = None,
        *,
        new: bool = False,
        extend: int | None = None,
        **sections: Mapping[str, Any],
    ) -> Run:
        """Return the run that `tune` trains, as far as it is; see there for the arguments."""
        root, name = root_of(self.folder), tuned_name(self.folder)
        config, where = self.tuned(strategy, **sections), self.device
        run = Run.create(
            root, name, config, new=new, extend=extend, device=where, progress=self.progress
        )
        chosen = strategy_to_tune_for(strategy, self.folder, self.config)
        with RunLock(run.folder):
            keep_strategy(run.folder, run.config, chosen)
        return run

    def tune(
        self,
        strategy: Strategy | float | str | Path | None = None,
        *,
        new: bool = False,
        extend: int | None = None,
        **sections: Mapping[str, Any],
    ) -> Run:
        """Tune the newest weights for a strategy, as a run beside this one, and return that run.

        Args:
            strategy: a strategy, its file, or a width; None takes the run's.
            new: make another run even if there is one of these settings.
            extend: steps to give to the run of these settings, which then has to be there.
            sections: section -> key -> value, e.g. train={"steps": 500},
                tune={"sandwich_share": 0.2}.

        Raises:
            FileNotFoundError: the run has no whole checkpoint yet, or there is no such file.
            ValueError: strategy or settings are refused.
        """
        run = self.tuning(strategy, new=new, extend=extend, **sections)
        run.train()
        return run

    def search(self, **settings: Any) -> FrontPoint:
        """Search the width of each denoising step; writes front and strategy into search/.

        With method "proxy", or `eval.features` "none", the front is of the errors of widths alone.

        Args:
            settings: keys of the section search; a budget takes the place of another, e.g.
                budget_macs=0.5.
        """
        config = with_budget(self.config, settings)
        with RunLock(self.folder):
            sampler, scorer = self._search_parts(config)
            front = search_run(self.folder, sampler, self.dataset, scorer, config.search)
        assert front.chosen is not None
        return front.chosen

    def check_search(self) -> None:
        """Make ready what `search` needs, so that what is missing is refused before any work.

        Raises:
            ValueError: features or the reference are refused.
            FileNotFoundError: the run has no whole checkpoint yet.
        """
        self._search_parts(self.config)

    def _search_parts(self, config: RunConfig) -> tuple[Sampler, Scorer | None]:
        if not config.scores_searched:
            return self._sampler(config.eval.batch_size), None
        scorer = self.scorer()
        return scorer.sampler, scorer

    def sample(
        self,
        seeds: Iterable[int],
        strategy: Strategy | float | str | Path | None = None,
        *,
        weights: str = "ema",
        batch_size: int = 64,
        out: str | Path | None = None,
    ) -> Samples:
        """Make one image a seed and write them as PNG files.

        Args:
            seeds: a seed is an image, in any batch.
            strategy: a strategy, its file, or a width; None takes the run's.
            weights: one of `weights_of(config)`.
            batch_size: images that run together.
            out: folder to write; None takes one of the run, another for other settings.

        Raises:
            ValueError: strategy, weights or seeds are refused, or `out` holds samples of other
                settings.
        """
        seeds = list(seeds)
        if not seeds or batch_size < 1:
            raise Refusal(
                f"sample: {len(seeds)} seeds, batch_size {batch_size}; need at least 1 of each"
            )
        name, chosen = read_strategy(strategy, self.folder, self.config)
        with output_lock(self.folder, out):
            return write_samples(
                self._sampler(batch_size, weights), name, chosen, seeds,
                weights=weights, parent=self.folder / "samples", out=out,
            )  # fmt: skip

    def scorer(self) -> Scorer:
        """Return what scores this run's newest weights; made once for weights and settings."""
        key = (self.config, next(reversed(list_checkpoints(self.folder)), None))
        if self._scorer is None or self._scorer[0] != key:
            with RunLock(self.folder):  # a classifier and the reference are kept there
                made = Scorer.for_run(
                    self.folder, self.config, self._device, self.images, self.progress
                )
            self._scorer = (key, made)
        return self._scorer[1]

    def evaluate(
        self,
        strategies: Iterable[Strategy | float | str | Path | None] | None = None,
        seeds: Iterable[int] | None = None,
        *,
        ranges: int | None = None,
        again: bool = True,
    ) -> dict[str, Any]:
        """Score strategies against the real images, time them side by side, draw them in a row.

        Every strategy is scored on the same ranges of seeds: their differences say the most.

        Args:
            strategies: each a strategy, its file, a width, or None for the run's own. What is named
                alike is told apart in its row. None takes the full width, the run's own strategy,
                the narrower widths, and what its search wrote to compare it with.
            seeds: of the samples of one score; None takes `eval.images` from `eval.first_seed` on.
            ranges: scores of each, on ranges of so many seeds one after the other; None takes
                `eval.ranges`, or a single one where seeds are given.
            again: score also what metrics.json has from the same weights and seeds.

        Returns:
            features, reference, sampler, weights, and "rows", one a score.

        Raises:
            ValueError: a strategy is refused, there is none, or there are less than two seeds.
        """
        plan = plan_scores(self.folder, self.config, strategies, seeds, ranges)
        with RunLock(self.folder):
            load_metrics(self.folder)  # where it is damaged, it is refused before any work
            return score_strategies(self.folder, self.scorer(), plan, again=again)

    def report(self, out: str | Path | None = None) -> Path:
        """Write report.html of what the run has so far, or the file `out`; returns its path."""
        with output_lock(self.folder, out):
            return build_report(self.folder, out)

    def export(self, width: float, **how: Any) -> Path:
        """Write one width as a plain dense network; returns its folder. `how`: see `export_to`."""
        return self.export_to("state-dict", width=width, **how)

    def export_to(self, code: str, *, out: str | Path | None = None, **how: Any) -> Path:
        """Write the network as other code (`exporting.CODES`) has it; returns the file or folder.

        Args:
            code, out, how: see `exporting.export_to`.
        """
        return export_to(self.folder, self.config, code, out, **how)

    def _sampler(self, batch_size: int, weights: str = "ema") -> Sampler:
        return Sampler.for_run(
            self.folder, self.config, self._device, batch_size, self.progress, weights
        )

    @property
    def _device(self) -> torch.device:
        assert isinstance(self.device, torch.device)
        return self.device
