"""Scores strategies of a run, keeps the scores in metrics.json, shows and times them together."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.images import image_grid, save_png
from ddsm_ext.report.records import Picture, Pictures
from ddsm_ext.run.classes import class_names
from ddsm_ext.run.compose import Progress, Sampler, counter, weights_digest
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.features import check_labelled, features_for
from ddsm_ext.run.images import load_pixels
from ddsm_ext.run.latents import data_of
from ddsm_ext.run.metrics import save_row, save_timing, saved_row, seeds_text
from ddsm_ext.run.references import held_out_for, reference_for
from ddsm_ext.run.strategies import ScorePlan
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal, plain

if TYPE_CHECKING:
    from ddsm_ext.eval.ranking import RankingDistance

CLASSIFIER_FILE = "classifier.safetensors"
COLUMNS = 16  # images of a strategy in samples/compare
CLASS_ROWS = 12  # classes that have a row of their own there
TURNS = 7  # of each strategy when they are timed side by side
log = logging.getLogger(__name__)


@dataclass
class Scorer:
    """A sampler, an extractor and the reference that the samples are compared with.

    Args:
        sampler: what makes the samples.
        extractor: images -> features.
        reference: statistics of the real images.
        dataset: the images that samples are compared with: the run's, or those of its latents.
        reference_name: name of the real images, to print beside a score.
        folder: of the run, keeps statistics that take long; None keeps none.
    """

    sampler: Sampler
    extractor: Any
    reference: Any
    dataset: Any
    reference_name: str
    folder: Path | None = None
    _warned: bool = field(default=False, init=False, repr=False)

    @classmethod
    def for_run(
        cls,
        run: Path,
        config: RunConfig,
        device: torch.device,
        dataset: Any,
        progress: Progress | None,
    ) -> Scorer:
        """Return the scorer of a run's newest checkpoint and its images."""
        sampler = Sampler.for_run(run, config, device, config.eval.batch_size, progress)
        extractor = make_extractor_for(config, run, dataset)
        reference = reference_for(config, extractor, dataset, run, progress)
        name = config.eval.reference or dataset.name
        return cls(sampler, extractor, reference, dataset, name, run)

    @cached_property
    def held_out(self) -> Any:
        """Statistics of images that no training saw; None where the data set has none."""
        config, progress = self.sampler.config, self.sampler.progress
        return held_out_for(config, self.extractor, self.dataset, self.folder, progress)

    def distances(self, images: Tensor) -> dict[str, Any]:
        """Return the scores of uint8 images [N, C, H, W]; warns once of too few of them."""
        from ddsm_ext.eval.metrics import evaluate, score_names

        self._warn_of_few(len(images))
        settings = self.sampler.config.eval
        scores = evaluate(
            images,
            self.reference,
            self.extractor,
            kid_subsets=settings.kid_subsets,
            kid_subset_size=settings.kid_subset_size,
            held_out=self.held_out,
        )
        frechet_key, kid_key = score_names(self.extractor.name)
        row = {
            "frechet": scores[frechet_key],
            "kid": scores[kid_key],
            "kid_std": scores[f"{kid_key}_std"],
            "precision": scores["precision"],
            "recall": scores["recall"],
            "images": scores["n_images"],
        }
        if "inception_score" in scores:
            row["inception_score"] = scores["inception_score"]
        if self.held_out is not None:
            row["frechet_held_out"] = scores[f"{frechet_key}_held_out"]
            row["images_held_out"] = self.held_out.n
        return row

    def _warn_of_few(self, images: int) -> None:
        """Warn, once, of fewer samples or real images than a Fréchet distance needs."""
        from ddsm_ext.eval.distances import enough_images

        dim, real = self.extractor.dim, self.reference.n
        few = []
        if not enough_images(images, dim):
            few.append(f"of {images} images")
        if real is not None and not enough_images(real, dim):
            few.append(f"to {real} real images")
        if few and not self._warned:
            self._warned = True
            log.warning(
                "the Fréchet distance %s with %d features is biased upwards; need %d (eval.images, "
                "and of real ones), or compare kernel distances (KID)",
                " ".join(few), dim, 2 * dim,
            )  # fmt: skip

    def frechet(self, images: Tensor) -> float:
        """Return the Fréchet distance alone."""
        from ddsm_ext.eval.metrics import frechet_to_reference

        return frechet_to_reference(images, self.reference, self.extractor)

    def ranking_distance(self, samples: int) -> RankingDistance:
        """Return the distance by which a search of so few samples a score ranks, and say which."""
        from ddsm_ext.eval.ranking import ranking_distance

        distance = ranking_distance(self.reference, samples)
        if distance.reason:
            log.info("the search ranks by the %s: %s", distance.name, distance.reason)
        else:
            self._warn_of_few(samples)
        return distance

    def score(self, name: str, kind: str, strategy: Strategy, seeds: list[int]) -> dict[str, Any]:
        """Sample with a strategy and return its row of metrics.json; `kind` is one of KINDS."""
        images, ms = self.sampler.timed_images(strategy, seeds, f"sampling {name}")
        return {
            "label": name,
            "kind": kind,
            "widths": list(strategy.widths),
            "cuts": list(strategy.cuts),
            "seeds": seeds_text(seeds),
            **self.distances(images),
            "macs_per_image": self.sampler.macs_per_image(strategy),
            "ms_per_image": ms,
        }

    def context(self) -> dict[str, Any]:
        """Return what every score of this scorer depends on; reads all weights of the network."""
        features = {
            "name": self.extractor.name,
            "dimension": self.extractor.dim,
            "digest": self.extractor.digest,
        }
        for detail in ("held_out_accuracy", "layer", "input_size"):  # those that it has
            if hasattr(self.extractor, detail):
                features[detail] = getattr(self.extractor, detail)
        return {
            "features": features,
            "reference": {
                "name": self.reference_name,
                "images": self.reference.n,
                "digest": self.reference.content_digest,
            },
            "sampler": self.sampler.config.sampler,
            "weights": weights_digest(self.sampler.network),
        }


def score_strategies(
    run: Path,
    scorer: Scorer,
    plan: ScorePlan,
    *,
    again: bool,
) -> dict[str, Any]:
    """Score strategies into metrics.json, time two side by side, draw all in a row.

    Args:
        run: the run folder.
        scorer: of the run.
        plan: what is scored on which seeds.
        again: score also what metrics.json has.

    Returns:
        what the scores depend on, and "rows", one a score.

    Raises:
        ValueError: metrics.json is damaged.
    """
    context, rows = scorer.context(), []
    length = max(plan.seeds) + 1 - min(plan.seeds)
    for number in range(plan.ranges):  # range by range: what is there when it stops compares
        these = [seed + number * length for seed in plan.seeds]
        for name, strategy in plan.named.items():
            kind = plan.kinds[name]
            row = None if again else saved_row(run, context, name, kind, strategy, these)
            if row is None:
                row = scorer.score(name, kind, strategy, these)
                save_row(run, context, row)  # kept, whatever becomes of the next
            rows.append(row)
    kinds = {kind: plan.named[name] for name, kind in plan.kinds.items()}
    both: dict[str, Strategy] = {k: kinds[k] for k in ("full", "strategy") if k in kinds}
    if len(both) == 2:
        save_timing(run, interleaved_ms(scorer.sampler, both, scorer.sampler.batch_size))
    write_comparison(run, scorer.sampler, scorer.dataset, plan.named)
    return {**plain(context), "rows": rows}


def score_folder(scorer: Scorer, path: str) -> dict[str, Any]:
    """Score the images of a folder, ZIP or archive; returns a JSON-ready result.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: what is there is refused, or has less than two images.
    """
    config = scorer.sampler.config
    reading = ("background", "skip_damaged", "max_pixels")
    own = data_of(config, scorer.dataset)
    how = {name: getattr(own, name) for name in reading}
    # of the full path, as a folder called digits is not the digits of scikit-learn
    source = os.path.abspath(path)
    data = DataConfig(source=source, split="all", **how)
    dataset = load_pixels(config, data, scorer.sampler.progress)
    if len(dataset) < 2:
        raise Refusal(f"{path}: holds {len(dataset)} image; need at least 2 to score")
    images = torch.from_numpy(dataset.images)  # [N, C, H, W]
    context = scorer.context()
    context.pop("sampler")
    return {**context, "source": path, **scorer.distances(images)}


def make_classifier(
    dataset: Any, path: Path, *, epochs: int = 20, progress: Progress | None = None
) -> Any:
    """Train the classifier of a labelled data set and write it; returns it with its accuracies.

    Args:
        dataset: labelled images.
        path: .safetensors file to write.
        epochs: passes over the images.
        progress: told how far it is; None for silence.

    Raises:
        ValueError: the images have no labels, or epochs is below 1.
    """
    from ddsm_ext.eval.classifier import ClassifierConfig, save_classifier, train_classifier

    if dataset.labels is None:
        raise Refusal(f"{dataset.name}: its images have no labels; need a folder a class")
    channels, size, _ = dataset.shape
    config = ClassifierConfig(size, channels, int(dataset.labels.max()) + 1, epochs=epochs)
    told = counter(progress, "training the classifier", "epoch")
    trained = train_classifier(
        dataset.images,
        dataset.labels,
        data_name=dataset.name,
        config=config,
        progress=lambda epoch, epochs, loss: told(epoch, epochs),
    )
    save_classifier(trained, path)
    return trained


def make_extractor_for(config: RunConfig, run: Path, dataset: Any) -> Any:
    """Return the feature extractor that the eval section names.

    "classifier" trains a small classifier on the labelled images of the run's own data set, once,
    and keeps it in the run folder.

    Raises:
        ImportError: the features need a package that is not installed.
        ValueError: the name is unknown, or "classifier" is asked for images without classes.
    """
    from ddsm_ext.eval.features import make_extractor

    name = features_for(config, dataset)
    if name == "none":
        raise Refusal("eval.features is none; need features to score samples")
    if name != "classifier":
        return make_extractor(name)
    check_labelled(dataset)
    path = run / CLASSIFIER_FILE
    if not path.exists():
        log.info("training the classifier whose features score the samples")
        make_classifier(dataset.whole(), path)
    return make_extractor(f"classifier:{path}")


def write_comparison(
    run: Path, sampler: Sampler, dataset: Any, strategies: Mapping[str, Strategy]
) -> None:
    """Write samples/compare: a row of real images, then one row a strategy from the same seeds."""
    folder = run / "samples" / "compare"
    seeds = list(range(COLUMNS))
    real = np.random.default_rng(0).choice(len(dataset), COLUMNS, replace=len(dataset) < COLUMNS)
    pictures = {"real images": dataset.pictures(np.sort(real))}
    rows_of_classes = _class_rows(run, sampler, strategies)
    told = counter(sampler.progress, "samples side by side", "row")
    total = len(strategies) + len(rows_of_classes)
    for label, strategy in strategies.items():
        pictures[label] = sampler.pictures(strategy, seeds).numpy()
        told(len(pictures) - 1, total)
    for label, (strategy, of_class) in rows_of_classes.items():
        pictures[label] = sampler.pictures(strategy, of_class).numpy()
        told(len(pictures) - 1, total)
    earlier = {path.name for path in folder.glob("row-*.png")}
    free = (name for number in count() if (name := f"row-{number}.png") not in earlier)
    rows = [Picture(label, file) for label, file in zip(pictures, free, strict=False)]
    for row, images in zip(rows, pictures.values(), strict=True):
        strip = image_grid(images.transpose(0, 2, 3, 1), COLUMNS)  # [N, H, W, C] -> [h, w, C]
        save_png(folder / row.file, strip)
    # until then it names the earlier ones
    Pictures(seeds_text(seeds), tuple(rows)).save(folder / "index.json")
    for name in earlier:
        (folder / name).unlink()


def _class_rows(
    run: Path, sampler: Sampler, strategies: Mapping[str, Strategy]
) -> dict[str, tuple[Strategy, list[int]]]:
    """A row for each of the first classes, of one strategy: its label, strategy and seeds."""
    count = sampler.config.model.label_count
    chosen = sampler.config.sampler.classes or tuple(range(count))
    if len(chosen) < 2:
        return {}
    names = class_names(run, count)
    label, strategy = max(strategies.items(), key=lambda item: len(item[1].widths))
    turns = [turn * len(chosen) for turn in range(COLUMNS)]
    return {
        f"{label}, class {names[known]}": (strategy, [start + at for start in turns])
        for at, known in enumerate(chosen[:CLASS_ROWS])
    }


def interleaved_ms(
    sampler: Sampler, strategies: dict[str, Strategy], images: int
) -> dict[str, Any]:
    """Measure the ms an image of each strategy, taking turns so that all meet the same machine.

    Decoding counts; `pictures` are on the CPU, which waits for them.

    Args:
        sampler: what makes the samples.
        strategies: name -> strategy.
        images: images of one turn.

    Returns:
        "ms_per_image" by name, medians over the turns, and what it depends on.
    """
    seeds = list(range(images))

    def run(strategy: Strategy) -> None:
        sampler.pictures(strategy, seeds)

    for strategy in strategies.values():  # a few images warm up
        sampler.pictures(strategy, seeds[:8])
    calls = {name: partial(run, strategy) for name, strategy in strategies.items()}
    told = counter(sampler.progress, "timing", "turn")
    times = interleaved(calls, rounds=TURNS, warmup_rounds=0, progress=told)
    return {
        "ms_per_image": {name: timing.median_ms / images for name, timing in times.items()},
        "images": images,
        "batch_size": sampler.batch_size,
        "rounds": TURNS,
        "threads": torch.get_num_threads(),
        "device": str(sampler.device),
    }
