"""Settings of a score: how many images, of which seeds, by which features. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from ddsm_ext.settings import Settings, is_int


@dataclass(frozen=True)
class EvalConfig(Settings):
    """How samples are scored.

    Args:
        features: "digits-classifier", "classifier:<path>" or "inception:<path>".
        images: samples a score.
        first_seed: seed of the first of them.
        batch_size: images that run together.
        reference: .npz of reference statistics; None takes the data set of the run.
        search_images: samples of one score during a search.
        sensitivity_images: real images on which a search measures the error of each width.
        kid_subsets: subsets of the kernel distance.
        kid_subset_size: images of such a subset.

    Raises:
        ValueError: a value is out of range.
    """

    features: str = "digits-classifier"
    images: int = 2048
    first_seed: int = 0
    batch_size: int = 256
    reference: str | None = None
    search_images: int = 1024
    sensitivity_images: int = 128
    kid_subsets: int = 50
    kid_subset_size: int = 500

    def __post_init__(self) -> None:
        for name, least in (
            ("images", 2),
            ("first_seed", 0),
            ("batch_size", 1),
            ("search_images", 2),
            ("sensitivity_images", 1),
            ("kid_subsets", 1),
            ("kid_subset_size", 2),
        ):
            self._check(name, is_int(getattr(self, name), least), f"an int >= {least}")
