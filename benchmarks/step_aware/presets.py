"""What is trained, searched, tuned and scored, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A sixth fewer channels take 0.93 of the time, an eighth of all a sixth: 5/6 and 7/8 are left out.
WIDTHS = (1.0, 0.75, 0.625, 0.5, 0.375, 0.25)


@dataclass(frozen=True)
class Target:
    """What a strategy is searched for.

    Args:
        name: of the strategy.
        features: by which the search ranks.
        share: budget of time as a share of the full width's; None: the time of `width`.
        width: a constant width that takes as much.
    """

    name: str
    features: str
    share: float | None = None
    width: float | None = None


@dataclass(frozen=True)
class Preset:
    """What is trained, searched, tuned and scored.

    Args:
        base: preset of the package that the sections are laid over.
        sections: section -> key -> value.
        search: settings of each search, beside its budget.
        features: of the scores; searches rank by the first, and by each for `as_widths`.
        samplers: of which the one is taken that is best at the full width.
        tune_steps: of each tuning.
        budgets: of time, as shares of the full width's; the last one's strategy is the run's own.
        as_widths: constant widths whose times are budgets, too.
        threads: of the processor; None: as many as it has.
    """

    base: str
    sections: Mapping[str, Mapping[str, Any]]
    search: Mapping[str, Any]
    features: tuple[str, ...]
    samplers: tuple[Mapping[str, Any], ...]
    tune_steps: int
    budgets: tuple[float, ...] = (0.25, 0.55, 0.4)
    as_widths: tuple[float, ...] = (0.375, 0.5, 0.625)
    threads: int | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is searched, in this order."""
        first = self.features[0]
        shares = [Target(f"strategy {100 * s:.0f} %", first, share=s) for s in self.budgets]
        equal = [
            Target(f"strategy as width {width:g}{_by(features, first)}", features, width=width)
            for features in self.features
            for width in self.as_widths
        ]
        return (*shares[:-1], *equal, shares[-1])


def short(features: str) -> str:
    """A name of features without their layer and size."""
    return features.partition(":")[0]


def _by(features: str, first: str) -> str:
    return "" if features == first else f", by {short(features)}"


_EFFICIENTNET = "efficientnet-lite0:reduction_5@128"
_TRAINED: dict[str, Any] = {
    "lr_final": 0.0,
    "shared_noise": False,  # as is best on the digits (docs/method.md)
    "accumulate_grad": True,
    "widths": WIDTHS,
}


def _samplers(evaluations: int) -> tuple[dict[str, Any], ...]:
    """Samplers of as many evaluations of the network."""
    return (
        {"kind": "ddim", "steps": evaluations, "eta": 1.0},
        {"kind": "ddim", "steps": evaluations, "eta": 0.0},
        {"kind": "dpmpp_2m", "steps": evaluations},
        {"kind": "unipc", "steps": evaluations},
        {"kind": "heun", "steps": (evaluations + 1) // 2, "spacing": "karras", "sigma_max": 80.0},
    )


_SEARCH: dict[str, Any] = {
    "widths": WIDTHS,
    "pool": 12,
    "population": 6,
    "generations": 3,
    "samples": 1024,
    "most_samples": 2048,
    "finalists": 4,
    "final_samples": 2048,
}
# By class, as a network of this size draws things that can be told apart only then, and no
# attention nor scales of the norms by time, so that two sets of its weights stay below 6 MB.
_SMALL: dict[str, Any] = {
    "ch": 48, "ch_mult": [1, 2], "attn": [], "attn_middle": False, "num_res_blocks": 1,
    "groups": 8, "head_channels": None, "heads": 1, "dropout": 0.0, "scale_shift": False,
    "resample_blocks": False, "num_classes": 10, "learned_sigma": False, "widths": WIDTHS,
}  # fmt: skip
PRESETS: dict[str, Preset] = {
    "photographs": Preset(
        "adm-cifar10",
        {
            "model": {**_SMALL, "image_size": 16},
            "diffusion": {"schedule": "cosine", "parameterisation": "v"},
            "data": {"image_size": 16},
            "train": {
                **_TRAINED, "steps": 30_000, "batch_size": 32, "lr": 1e-3, "warmup_steps": 500,
                "ema_decay": 0.9995, "sample_every": 2000, "checkpoint_every": 500,
                "log_every": 50,
            },
            "sampler": {"kind": "ddim", "steps": 25, "eta": 1.0},
            "eval": {"features": _EFFICIENTNET, "images": 1024},
        },
        _SEARCH,
        (_EFFICIENTNET, "classifier"),
        _samplers(25),
        tune_steps=10_000,
    ),
    # The paper's network and its images at 32x32: for a GPU, where it takes hours.
    "cifar10": Preset(
        "cifar10",
        {
            "model": {"dropout": 0.0, "widths": WIDTHS},
            "diffusion": {"schedule": "cosine", "parameterisation": "v"},
            "train": {
                **_TRAINED, "steps": 60_000, "batch_size": 256, "lr": 4e-4, "warmup_steps": 1000,
                "ema_decay": 0.9995, "autocast": "bf16", "workers": 2, "sample_every": 5000,
                "checkpoint_every": 1000, "log_every": 100,
            },
            "sampler": {"kind": "ddim", "steps": 25, "eta": 1.0, "dtype": "bfloat16"},
            "eval": {"features": _EFFICIENTNET, "images": 1024, "batch_size": 512},
        },
        _SEARCH,
        (_EFFICIENTNET, "classifier"),
        _samplers(25),
        tune_steps=20_000,
    ),
    # Minutes a training: for claims over several of them.
    "digits": Preset(
        "digits",
        {
            "model": {"ch": 48, "widths": WIDTHS},
            "train": {**_TRAINED, "steps": 4000},
            "eval": {"features": "digits-classifier"},
        },
        {**_SEARCH, "samples": 256, "most_samples": 1024},
        ("digits-classifier",),
        _samplers(20),
        tune_steps=2000,
        threads=1,
    ),
    # Of the plan itself, in half a minute: no result.
    "trial": Preset(
        "adm-cifar10",
        {
            "model": {**_SMALL, "image_size": 8, "image_channels": 1, "ch": 32},
            "data": {"source": "digits", "split": "all"},
            "train": {**_TRAINED, "steps": 20, "batch_size": 32, "checkpoint_every": 5},
            "sampler": {"steps": 3},
            "eval": {"features": "digits-classifier", "images": 128, "ranges": 2},
        },
        {**_SEARCH, "pool": 4, "population": 2, "generations": 2, "samples": 128,
         "most_samples": 128, "finalists": 1, "final_samples": 128},
        ("digits-classifier",),
        ({"kind": "ddim", "steps": 3}, {"kind": "dpmpp_2m", "steps": 3}),
        tune_steps=5,
        budgets=(0.6, 0.7),
        as_widths=(0.5,),
        threads=1,
    ),
}  # fmt: skip
