"""`RunConfig`: all that decides a run, laid together from a preset, a file and changes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

from ddsm_ext.run.latents import check_latents, with_latents
from ddsm_ext.run.presets import RUN_PRESETS
from ddsm_ext.run.values import hints_of, parse_setting_as, settings_from
from ddsm_ext.settings import (
    LARGEST_INT,
    Refusal,
    Settings,
    TypeRefusal,
    check_choice,
    did_you_mean,
    shown,
)
from ddsm_ext.training.config import AUGMENT_LABELS

METHOD_SIZES = ("population", "generations", "samples")  # None: the method's own
BUDGETS = ("budget_macs", "budget_ms", "budget_time", "max_quality_loss")
# section -> (module, class); read when a run is resolved, so that `--help` stays quick
SECTIONS: dict[str, tuple[str, str]] = {
    "model": ("ddsm_ext.models.families", "FAMILIES"),  # by the setting "family"
    "diffusion": ("ddsm_ext.diffusion.config", "DiffusionConfig"),
    "data": ("ddsm_ext.data.config", "DataConfig"),
    "codec": ("ddsm_ext.data.config", "CodecConfig"),
    "train": ("ddsm_ext.training.config", "TrainConfig"),
    "tune": ("ddsm_ext.training.config", "TuneConfig"),
    "sampler": ("ddsm_ext.sampling.config", "SamplerConfig"),
    "search": ("ddsm_ext.search.config", "SearchConfig"),
    "eval": ("ddsm_ext.run.config", "EvalConfig"),
}
# Largest value of a setting, or length of a list: far above any use, and below what would keep a
# command busy for days, or take the machine, before it can say so.
LIMITS: dict[str, dict[str, int]] = {
    "model": {"widths": 100},
    "diffusion": {"timesteps": 100_000},
    "train": {
        "steps": 10**9, "batch_size": 2**20, "workers": 256, "middle_widths": 1000, "widths": 100,
        "keep": 10**6, "extensions": 10_000,
    },
    "codec": {"batch_size": 2**16},
    "tune": {"widths": 100_000, "cuts": 100_000},
    "sampler": {"steps": 100_000},
    "search": {
        "widths": 100, "segments": 10_000, "proxy_budgets": 10_000, "pool": 10_000,
        "population": 10_000, "generations": 10_000, "children": 1000, "samples": 10**7,
        "most_samples": 10**7, "finalists": 10_000, "final_samples": 10**7,
    },
    "eval": {
        "images": 10**7, "batch_size": 2**20, "ranges": 10_000, "sensitivity_images": 10**7,
        "kid_subsets": 10_000, "kid_subset_size": 10**6,
    },
}  # fmt: skip


@dataclass(frozen=True)
class EvalConfig(Settings):
    """How samples are scored.

    Args:
        features: "auto" (by the run's images: `run.features.features_for`), "classifier" (trained
            on them), or a name as of `eval.make_extractor`, e.g. "efficientnet-lite0"; "none" for a
            search of the proxy alone.
        images: samples a score.
        first_seed: seed of the first of them.
        batch_size: images that run together.
        reference: .npz of reference statistics; None takes the data set of the run.
        ranges: scores of each strategy, on ranges of `images` seeds one after the other: an
            interval needs 2, and 8 make it a good one.
        sensitivity_images: real images on which a search measures the error of each width.
        kid_subsets: subsets of the kernel distance.
        kid_subset_size: images of such a subset.

    Raises:
        ValueError: a value is out of range.
    """

    features: str = "auto"
    images: int = 1024
    first_seed: int = 0
    batch_size: int = 256
    reference: str | None = None
    ranges: int = 8
    sensitivity_images: int = 256
    kid_subsets: int = 50
    kid_subset_size: int = 500

    def __post_init__(self) -> None:
        for name, least in (
            ("images", 2),
            ("first_seed", 0),
            ("batch_size", 1),
            ("ranges", 1),
            ("sensitivity_images", 1),
            ("kid_subsets", 1),
            ("kid_subset_size", 2),
        ):
            self._check_int(name, least)
        last = LARGEST_INT - self.images * self.ranges
        self._check("first_seed", self.first_seed <= last, f"at most {last}: seeds end at 2^63")


@dataclass(frozen=True)
class RunConfig(Settings):
    """The configuration of a run; each section is the frozen dataclass of the part that it sets.

    Raises:
        ValueError: the images are brought to another size or other channels than the network's, or
            sampled in classes that it does not know, or guided as it cannot be; or a setting is for
            pixels alone, and they are latents.
    """

    model: Any
    diffusion: Any
    data: Any
    codec: Any
    train: Any
    tune: Any
    sampler: Any
    search: Any
    eval: Any

    def __post_init__(self) -> None:
        for key, of_model in (("image_size", "image_size"), ("channels", "image_channels")):
            given, need = getattr(self.data, key), getattr(self.model, of_model)
            if given not in (None, need):  # the network would train on it and sample another
                raise Refusal(
                    f"data.{key} is {given} with model.{of_model} {need}; need {need}, or none"
                )
        if self.codec.of_latents:
            check_latents(self)
        chosen, known = self.sampler.classes, self.model.label_count
        if chosen and max(chosen) >= known:
            need = f"labels below {known}" if known else "none, as the network takes no labels"
            raise Refusal(f"sampler.classes is {list(chosen)}; need {need}")
        self._check_training()
        if self.sampler.variance == "learned" and not self.model.predicts_variance:
            raise Refusal(
                "sampler.variance is 'learned' with a network that predicts none; need "
                "'fixed_large' or 'fixed_small', or model.learned_sigma true"
            )
        guidance = self.sampler.guidance_by(self.model.null_label)
        if guidance and guidance.null_label is not None and not self.train.label_dropout:
            warnings.warn(
                f"sampler.guidance is {self.sampler.guidance:g} away from no class, of which "
                "train.label_dropout 0 teaches nothing; need a network that was trained with it",
                stacklevel=2,
            )
        for width in self.sampler.guidance_widths:
            self.model.check_width(width)

    def _check_training(self) -> None:
        """Refuse what the network is not told of, and variances without betas to lie between."""
        told = self.model.augment_count
        if self.train.augment and told != AUGMENT_LABELS:
            raise Refusal(
                f"train.augment is {self.train.augment} with a network that is told {told} numbers "
                f"of it; need model.augment_channels {AUGMENT_LABELS}, or augment 0"
            )
        without_betas = self.diffusion.schedule == "edm" or self.train.noise_levels != "uniform"
        if self.model.predicts_variance and without_betas:
            raise Refusal(
                f"model.learned_sigma is True with the schedule {self.diffusion.schedule!r} and "
                f"noise levels {self.train.noise_levels!r}; need a schedule of betas and 'uniform'"
            )

    @property
    def scores_searched(self) -> bool:
        """Whether a search scores samples: not with the proxy alone, nor without features."""
        searched: bool = self.search.method != "proxy" and self.eval.features != "none"
        return searched

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dicts and lists, ready for JSON."""
        return {name: getattr(self, name).to_dict() for name in SECTIONS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """Build a configuration from nested dicts; what they leave out has its default.

        Args:
            values: section -> key -> value.
            where: what to call the source in an error, e.g. a file name.

        Raises:
            ValueError: a section or key is unknown, or a value is refused by its section.
            TypeError: a value has the wrong type.
        """
        for name in values:
            if name not in SECTIONS:
                raise Refusal(f"{where}: unknown section {name!r}{did_you_mean(name, SECTIONS)}")
            if not isinstance(values[name], dict):
                got = shown(values[name])
                raise TypeRefusal(f"{where}: {name} is {got}; need an object of keys")
        first = {name: _section(name, values.get(name, {}), where) for name in ("model", "codec")}
        widths, sections = list(first["model"].widths), {**first}
        for name in SECTIONS:
            section = dict(values.get(name, {}))
            if name in ("train", "search"):
                section.setdefault("widths", widths)
            if name == "sampler" and first["codec"].of_latents:
                section.setdefault("clip_denoised", False)
            if name not in first:
                sections[name] = _section(name, section, where)
        for width in {*(w for name in ("train", "tune", "search") for w in sections[name].widths)}:
            sections["model"].check_width(width)
        return cls(**sections)


def _section(section: str, values: dict[str, Any], where: str) -> Any:
    """Build one section's dataclass from JSON values, each brought to its field's type."""
    if section == "model" and "image_size" not in values:
        raise Refusal(f"{where}: model.image_size is missing; need it, or a --preset")
    cls = _section_class(section, values, where)
    return settings_from(cls, values, where, section, LIMITS.get(section, {}))


def _section_class(section: str, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass of a section; of the model's, the one of its family."""
    module, name = SECTIONS[section]
    found = getattr(import_module(module), name)
    if section != "model":
        return found
    family = values.get("family", next(iter(found)))
    return found[check_choice(f"{where}: model.family", family, found)]


def _setting_hint(section: str, key: str) -> Any:
    """Type of a setting; of a network's, in whichever family has it. None: no such setting."""
    module, name = SECTIONS[section]
    found = getattr(import_module(module), name)
    classes = found.values() if section == "model" else (found,)
    return next((hints[key] for cls in classes if key in (hints := hints_of(cls))), None)


def parse_setting(section: str, key: str, text: str) -> Any:
    """Read a setting of a section given as text; see `parse_setting_as`."""
    return parse_setting_as(_setting_hint(section, key), text)


def preset_values(name: str) -> dict[str, Any]:
    """Return the nested values of a run preset.

    Raises:
        ValueError: there is no preset of that name.
    """
    if name not in RUN_PRESETS:
        raise Refusal(f"preset: unknown preset {name!r}{did_you_mean(name, RUN_PRESETS)}")
    from ddsm_ext.models.families import preset

    return merge({"model": preset(name).to_dict()}, RUN_PRESETS[name])


def merge(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the sections of `more` laid over it, key by key."""
    result = {name: dict(items) for name, items in base.items()}
    for name, items in more.items():
        if isinstance(items, Mapping):
            result[name] = {**result.get(name, {}), **items}
        else:
            result[name] = items
    return result


def configure(
    preset: str | None = None,
    file: str | os.PathLike[str] | None = None,
    *,
    where: str = "configure",
    **sections: Mapping[str, Any],
) -> RunConfig:
    """Lay preset, file and changes over each other, in that order, and check the result.

    Args:
        preset: name of a run preset; None leaves the defaults of the sections.
        file: JSON file of sections; None reads none.
        where: what errors call the changes.
        sections: section -> key -> value, e.g. `train={"steps": 2000}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: preset, section or key is unknown, or a value is refused by its section.
        TypeError: the file holds no object, or a value has the wrong type.
    """
    values = {} if preset is None else preset_values(preset)
    if file is not None:
        from ddsm_ext.io.digest import unsealed
        from ddsm_ext.io.files import read_json

        more = unsealed(read_json(os.fspath(file)), str(file))
        if not isinstance(more, dict):
            raise TypeRefusal(f"{file}: holds a {type(more).__name__}; need an object of sections")
        values = _laid_over(values, more)
        RunConfig.from_dict(with_latents(values), str(file))
    return RunConfig.from_dict(with_latents(_laid_over(values, sections)), where)


def changed(config: RunConfig, changes: Mapping[str, Any], where: str = "changes") -> RunConfig:
    """Return a run's configuration with changes laid over it.

    Args:
        config: what the run was made with.
        changes: section -> key -> value.
        where: what errors call the changes.

    Raises:
        ValueError: the changes concern the network, the diffusion process or the autoencoder, which
            belong to the weights, or are refused by a section.
    """
    after = RunConfig.from_dict(_laid_over(config.to_dict(), changes), where)
    for section, old, new in (
        ("model", config.model, after.model),
        ("diffusion", config.diffusion, after.diffusion),
        ("codec", config.codec.identity, after.codec.identity),
    ):
        if old != new:
            raise Refusal(
                f"{where}: {section} is not the one which the weights of the run were trained "
                "with; need a new training"
            )
    return after


def _laid_over(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge changes, where a choice takes along what belonged to the one before it.

    Another kind of sampler, or spacing, has settings of its own, such as eta; another method of
    search has sizes of its own.
    """
    from ddsm_ext.sampling.config import unsaid as unsaid_of_sampler

    given = {n: c for n, c in changes.items() if isinstance(c, Mapping)}
    unsaid: dict[str, Any] = {}
    if sampler := unsaid_of_sampler(given.get("sampler", {}), before.get("sampler", {})):
        unsaid["sampler"] = sampler
    method = given.get("search", {}).get("method")
    if method is not None and method != before.get("search", {}).get("method", "evolution"):
        unsaid["search"] = dict.fromkeys(METHOD_SIZES)
    return merge(merge(before, unsaid), changes)


def with_budget(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Return a configuration with settings of the search in place of its own.

    A budget takes the place of every other one; `budget_ms` makes the search count ms.
    """
    changes = dict(settings)
    if any(changes.get(name) is not None for name in BUDGETS):
        if changes.get("budget_macs") is not None:
            changes.setdefault("objectives", ("quality", "macs"))
        elif changes.get("budget_ms") is not None or changes.get("budget_time") is not None:
            changes.setdefault("objectives", ("quality", "ms"))
        changes = {**dict.fromkeys(BUDGETS), **changes}
    return changed(config, {"search": changes}, "search")
