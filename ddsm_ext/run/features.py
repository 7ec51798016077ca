"""Which features score a run, and whether they can: asked before a training, not after it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.latents import data_of
from ddsm_ext.settings import MissingLibrary, Refusal


def features_for(config: RunConfig, dataset: Any) -> str:
    """Return the features that the eval section names, "auto" in full.

    "auto" is "digits-classifier" for the 8x8 digits of scikit-learn, "classifier" for images of two
    classes or more of which there are enough to train it, and for all others EfficientNet-Lite0 on
    128 pixels, which serve images of 32, or on its own 224. Its layer reduction_5 has 320 features,
    its head 1280: a Fréchet distance needs 640 images, which a search has, and not 2560. It knows
    as much (71.9 and 71.2 % of the probe of `EfficientNetExtractor`), and the distance of 1024
    CIFAR-10 images from 4000 others rises by noise of 2 of 255 by 330 standard deviations between
    such sets, with the head by 65.
    """
    if config.eval.features != "auto":
        return str(config.eval.features)
    from ddsm_ext.eval.classifier import LEAST_IMAGES

    stock = stock_features(data_of(config, dataset).source, dataset.shape)
    known = stock == "digits-classifier" or dataset.class_count < 2 or len(dataset) < LEAST_IMAGES
    return stock if known else "classifier"


def stock_features(source: str, shape: tuple[int, int, int]) -> str:
    """Return the features of images that want no training.

    Args:
        source: of the data settings: a folder may be called digits too.
        shape: (C, H, W) of the images.
    """
    if source == "digits" and shape == (1, 8, 8):
        return "digits-classifier"
    return "efficientnet-lite0:reduction_5" + ("@128" if shape[1] <= 32 else "")


def with_features(config: RunConfig, dataset: Any) -> RunConfig:
    """Return a configuration with its features in full, after a black image has gone through them.

    Args:
        config: its eval section names features, and perhaps reference statistics of them.
        dataset: the images of the run, or those that its latents are of.

    Raises:
        ImportError: the features need a package that is not installed.
        FileNotFoundError: they, or the statistics, need a file that is missing.
        ValueError: the name is unknown, they are of other images than these, the statistics of
            other features, or the images too few.
    """
    from ddsm_ext.eval.metrics import check_reference
    from ddsm_ext.eval.statistics import load_statistics

    name = features_for(config, dataset)
    if name == "none":
        return config
    if name == "classifier":  # which is trained when the first score asks for it
        check_labelled(dataset)
    else:
        extractor = _tried(name, dataset)
    if config.eval.reference is None:
        check_comparable(dataset)
    else:
        statistics = load_statistics(config.eval.reference)
        if name == "classifier":
            extractor = _promised(dataset, statistics)
        check_reference(statistics, extractor, f"eval.reference {config.eval.reference}")
    return replace(config, eval=replace(config.eval, features=name))


def check_labelled(dataset: Any) -> None:
    """Refuse images that no classifier can be trained on.

    Raises:
        ValueError: they have less than two classes, or are too few.
    """
    from ddsm_ext.eval.classifier import LEAST_IMAGES

    count = dataset.class_count
    others = "or eval.features=efficientnet-lite0, classifier:<file> or inception:<file>"
    if count < 2:
        raise Refusal(
            f"eval.features is classifier, the images of {dataset.name} have "
            f"{'one class' if count else 'no classes'}; need two or more, {others}"
        )
    if len(dataset) < LEAST_IMAGES:
        raise Refusal(
            f"eval.features is classifier, there are {len(dataset)} images of {dataset.name}; "
            f"need {LEAST_IMAGES} or more, {others}"
        )


def check_comparable(dataset: Any) -> None:
    """Refuse images that have no covariance for samples to be compared with.

    Raises:
        ValueError: there are less than two.
    """
    if len(dataset) < 2:
        raise Refusal(
            f"{dataset.name}: holds {len(dataset)} image; need at least 2 to compare samples with, "
            "eval.reference, or eval.features=none"
        )


def _tried(name: str, dataset: Any) -> Any:
    """The extractor of a name, after a black image has gone through it."""
    from ddsm_ext.eval.features import make_extractor

    try:
        extractor = make_extractor(name)
    except MissingLibrary as error:
        raise MissingLibrary(
            f"eval.features is {name}; need eval.features=none, with which nothing is scored, "
            f"or what it is made of: {error}"
        ) from error
    try:
        extractor(np.zeros((1, *dataset.shape), np.uint8))
    except Refusal as error:
        why = str(error).removeprefix(f"{name}: ")
        raise Refusal(f"eval.features is {name}: {why}, or eval.features=auto") from error
    return extractor


def _promised(dataset: Any, statistics: Any) -> Any:
    """What a classifier of these images will be, as far as it is known before it is trained.

    Its digest is not: statistics of a classifier of images of this name are taken for its own.
    """
    from ddsm_ext.eval.classifier import ClassifierConfig

    name = statistics.features
    own = name is None or name.startswith(f"classifier-{dataset.name}-")
    return SimpleNamespace(
        name=(name if own else None) or "classifier",
        dim=ClassifierConfig.features,
        digest=statistics.digest if own else "untrained",
    )
