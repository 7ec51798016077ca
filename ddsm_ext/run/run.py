"""`Run`: training, search, samples, scores and report of one run folder, from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ddsm_ext.data.images import image_grid, save_png
from ddsm_ext.data.pixels import to_uint8
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.io.checkpoint import list_checkpoints
from ddsm_ext.io.files import write_atomic, write_json
from ddsm_ext.report.page import build_report
from ddsm_ext.run.compose import (
    Sampler,
    build_network,
    load_images,
    load_network,
    sampling_dtype,
)
from ddsm_ext.run.config import RunConfig, changed
from ddsm_ext.run.folder import create_run, find_resumable, resolve_run, run_config
from ddsm_ext.run.progress import Progress
from ddsm_ext.run.scoring import (
    Scorer,
    interleaved_ms,
    save_scores,
    save_timing,
    saved_row,
    write_comparison,
)
from ddsm_ext.run.searching import search_run
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.front import FrontPoint
from ddsm_ext.settings import Refusal, check_keys
from ddsm_ext.training.loop import TrainResult, train

BUDGETS = ("budget_macs", "budget_ms", "budget_time", "max_quality_loss")


@dataclass(frozen=True)
class Samples:
    """Images that a run made.

    Args:
        images: uint8 [N, H, W, C], one a seed.
        folder: holds each as seed-000000.png, and all in grid.png.
        ms_per_image: time that they took.
        macs_per_image: MACs of one, over all steps.
    """

    images: NDArray[np.uint8]
    folder: Path
    ms_per_image: float
    macs_per_image: int


@dataclass
class Run:
    """A run folder with what its commands need. Each method continues what was interrupted.

    Args:
        folder: the run folder.
        config: its configuration, or one with other settings of sampler, search or eval.
        device: where to compute; None takes a GPU where there is one.
        progress: told how far long work is; None for silence.
        resumed: whether the folder was there before.
    """

    folder: Path
    config: RunConfig
    device: torch.device | str | None = None
    progress: Progress | None = None
    resumed: bool = True
    _scorer: tuple[tuple[RunConfig, Path | None], Scorer] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        name = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(name)

    @classmethod
    def create(
        cls, root: str | Path, name: str, config: RunConfig, *, new: bool = False, **options: Any
    ) -> Self:
        """Return the newest run of this name and configuration; where none is, a new one.

        Args:
            root: folder of runs; made when missing.
            name: letters, digits, `.`, `_`, `-`.
            config: of the run; its images are read before anything is written.
            new: make another run even if there is one.
            options: device, progress.

        Raises:
            ValueError: the name has other characters, or the images cannot be used.
            FileNotFoundError: the images are missing.
        """
        dataset = load_images(config)
        found = None if new else find_resumable(root, config, name=name)
        folder = create_run(root, name, config.to_dict()) if found is None else found
        run = cls(folder, config, resumed=found is not None, **options)
        run.__dict__["dataset"] = dataset
        return run

    @classmethod
    def open(
        cls,
        root: str | Path = "runs",
        which: str | Path | int | None = None,
        changes: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Return a run that is there.

        Args:
            root: folder of runs.
            which: folder, number or name of the run; None takes the newest.
            changes: section -> key -> value laid over its settings, e.g. {"sampler": {"steps": 9}}.
            options: device, progress.

        Raises:
            FileNotFoundError: there is no such run.
            ValueError: the changes concern the network or the diffusion process, or are refused.
        """
        folder = resolve_run(root, which)
        config = RunConfig.from_dict(run_config(folder), str(folder / "config.json"))
        return cls(folder, changed(config, changes or {}), **options)

    @cached_property
    def dataset(self) -> Any:
        """The run's images."""
        return load_images(self.config)

    @property
    def strategy(self) -> Strategy:
        """The strategy that the search chose; before a search the full width."""
        return read_strategy(None, self.folder, self.config)[1]

    def train(self) -> TrainResult:
        """Train to the last step, or until Ctrl-C, which saves; the result says which."""

        def sample_grid(net: Any, width: float) -> NDArray[np.uint8]:
            images = Sampler(net, self.config, self._device, 64).images(width, list(range(64)))
            return image_grid(np.asarray(to_uint8(images).cpu()).transpose(0, 2, 3, 1))

        def tell(done: int, total: int, row: dict[str, Any]) -> None:
            loss = row.get("loss")
            assert self.progress is not None
            self.progress(
                "training", done, total, "step", "" if loss is None else f"loss={loss:.4f}"
            )

        return train(
            self._first_network(),
            self.dataset,
            make_schedule(self.config.diffusion),
            self.config.train,
            self.folder,
            parameterisation=self.config.diffusion.parameterisation,
            device=self._device,
            sample_grid=sample_grid,
            progress=None if self.progress is None else tell,
        )

    def search(self, **settings: Any) -> FrontPoint:
        """Search the width of each denoising step; writes front and strategy into search/.

        Args:
            settings: keys of the section search; a budget takes the place of another, e.g.
                budget_macs=0.5.
        """
        config = replace(self.config, search=with_budget(self.config, settings))
        return search_run(self.folder, self.scorer(config))

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
            weights: "ema" or "model".
            batch_size: images that run together.
            out: folder to write; None takes one of the run.
        """
        seeds = list(seeds)
        if not seeds or batch_size < 1:
            raise Refusal(
                f"sample: {len(seeds)} seeds, batch_size {batch_size}; need at least 1 of each"
            )
        config = self.config
        name, chosen = read_strategy(strategy, self.folder, config)
        network = load_network(self.folder, config, self._device, weights, sampling_dtype(config))
        sampler = Sampler(network, config, self._device, batch_size, self.progress)
        images, ms = sampler.timed_images(chosen, seeds, f"sampling {name}")
        steps = config.sampler.steps or config.diffusion.timesteps
        label = f"{name.replace(' ', '-')}-{config.sampler.kind}-{steps}"
        folder = Path(out) if out else self.folder / "samples" / label
        pixels = np.asarray(images).transpose(0, 2, 3, 1)  # [N, H, W, C]
        folder.mkdir(parents=True, exist_ok=True)
        for seed, image in zip(seeds, pixels, strict=True):
            save_png(folder / f"seed-{seed:06d}.png", image)
        save_png(folder / "grid.png", image_grid(pixels))
        return Samples(pixels, folder, ms, sampler.macs_per_image(chosen))

    def scorer(self, config: RunConfig | None = None) -> Scorer:
        """Return what scores this run's newest weights; made once for weights and settings."""
        config = config or self.config
        key = (config, max(list_checkpoints(self.folder), default=None))
        if self._scorer is None or self._scorer[0] != key:
            made = Scorer.for_run(self.folder, config, self._device, self.dataset, self.progress)
            self._scorer = (key, made)
        return self._scorer[1]

    def evaluate(
        self,
        strategies: Iterable[Strategy | float | str | Path | None] = (1.0, None),
        seeds: Iterable[int] | None = None,
        *,
        full_width_scores: int = 1,
        again: bool = True,
    ) -> dict[str, Any]:
        """Score strategies against the real images, time them side by side, draw them in a row.

        Args:
            strategies: each a strategy, its file, a width, or None for the run's own; by default
                the full width and the run's own. What is named alike is told apart in its row.
            seeds: of the samples; None takes `eval.images` from `eval.first_seed` on.
            full_width_scores: ranges of seeds that score "full width", to show the spread.
            again: score also what metrics.json has from the same weights and seeds.

        Returns:
            features, reference, sampler, weights, and "rows", one a score.
        """
        named = named_strategies(strategies, self.folder, self.config)
        first = self.config.eval.first_seed
        if seeds is None:
            seeds = range(first, first + self.config.eval.images)
        seeds, scorer, rows = list(seeds), self.scorer(), []
        for name, strategy in named.items():
            for number in range(full_width_scores if name == "full width" else 1):
                these = [seed + number * len(seeds) for seed in seeds]
                row = None if again else saved_row(self.folder, scorer, name, strategy, these)
                if row is None:
                    row = scorer.score(name, strategy, these)
                    save_scores(self.folder, scorer, [row])  # kept, whatever becomes of the next
                rows.append(row)
        kinds = {row["kind"]: named[row["label"]] for row in rows}
        both = {kind: kinds[kind] for kind in ("full", "strategy") if kind in kinds}
        if len(both) == 2:
            batch = self.config.eval.batch_size
            save_timing(self.folder, interleaved_ms(scorer.sampler, both, batch))
        write_comparison(self.folder, scorer.sampler, scorer.dataset, named)
        return {**scorer.context(), "rows": rows}

    def report(self) -> Path:
        """Write report.html of what the run has so far and return its path."""
        return build_report(self.folder)

    def export(self, width: float, *, weights: str = "ema", out: str | Path | None = None) -> Path:
        """Write one width as a plain dense network; returns its folder.

        Args:
            width: the width.
            weights: "ema" or "model".
            out: folder to write; None takes one of the run.
        """
        from safetensors.torch import save

        config = self.config
        width = config.model.check_width(width)
        network = load_network(self.folder, config, torch.device("cpu"), weights)
        dense = network.export_subnet(width)
        tensors = {name: t.detach().contiguous() for name, t in dense.state_dict().items()}
        folder = Path(out) if out else self.folder / "export" / f"width-{width:g}"
        values = {"width": width, **config.to_dict()}
        write_json(folder / "config.json", {k: values[k] for k in ("width", "model", "diffusion")})
        write_atomic(folder / "model.safetensors", save(tensors, metadata={"width": f"{width:g}"}))
        return folder

    @property
    def _device(self) -> torch.device:
        assert isinstance(self.device, torch.device)
        return self.device

    def _first_network(self) -> Any:
        """The network that the run begins with; a checkpoint in its folder will replace it."""
        source = self.config.train.start_from
        if source is None or list_checkpoints(self.folder):
            return build_network(self.config, self._device)
        return load_network(Path(source), self.config, self._device)


def with_budget(config: RunConfig, settings: Mapping[str, Any]) -> Any:
    """Return a configuration's search section with settings in place of its own.

    A budget takes the place of every other one; `budget_ms` makes the search count ms.
    """
    check_keys("search", settings, [f.name for f in fields(config.search)])
    changes = dict(settings)
    if any(changes.get(name) is not None for name in BUDGETS):
        if changes.get("budget_macs") is not None:
            changes.setdefault("objectives", ("quality", "macs"))
        elif changes.get("budget_ms") is not None or changes.get("budget_time") is not None:
            changes.setdefault("objectives", ("quality", "ms"))
        changes = {**dict.fromkeys(BUDGETS), **changes}
    return replace(config.search, **changes)


def read_strategy(
    what: Strategy | float | str | Path | None, run: Path, config: RunConfig
) -> tuple[str, Strategy]:
    """Return a strategy and its name ("full width", "width 0.5", or the file's).

    Args:
        what: a strategy, a width, a strategy file, or None for the run's own (search/strategy.json)
            and, where none is, the full width.
        run: the run folder.
        config: its configuration; every width must be usable by its network.

    Raises:
        ValueError: the width or the file is refused.
        FileNotFoundError: there is no such file.
    """
    chosen = run / "search" / "strategy.json"
    if what is None:
        what = chosen if chosen.exists() else 1.0
    try:
        width = float(what)  # type: ignore[arg-type]  # what is no number is refused here
    except (TypeError, ValueError):
        strategy = what if isinstance(what, Strategy) else Strategy.load(Path(str(what)))
        for used in strategy.widths:
            config.model.check_width(used)
        return "strategy" if isinstance(what, Strategy) else Path(str(what)).stem, strategy
    width = config.model.check_width(width)
    return "full width" if width == 1.0 else f"width {width:g}", Strategy.constant(width)


def named_strategies(
    each: Iterable[Strategy | float | str | Path | None], run: Path, config: RunConfig
) -> dict[str, Strategy]:
    """Return name -> strategy; another one of a name that is taken has its file or a number too.

    Args:
        each: as `read_strategy` takes them.
        run: the run folder.
        config: its configuration.
    """
    named: dict[str, Strategy] = {}
    for what in each:
        name, strategy = read_strategy(what, run, config)
        if named.get(name, strategy) != strategy:
            more = len(named) if isinstance(what, Strategy) else what
            name = f"{name} ({more})"
        named[name] = strategy
    return named
