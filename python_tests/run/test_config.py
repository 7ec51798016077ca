"""Run configuration: layers in their order, types of values, presets that all resolve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddsm_ext.run.config import (
    RunConfig,
    configure,
    parse_setting,
    with_budget,
)
from ddsm_ext.run.presets import QUICKSTART_FAST, RUN_PRESETS


@pytest.mark.parametrize("name", RUN_PRESETS)
def test_presets_resolve_and_survive_json(name: str) -> None:
    config = configure(name)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.train.widths == config.model.widths == config.search.widths


def test_the_papers_network_and_training() -> None:
    # arXiv 2310.03337, table of CIFAR-10 settings
    config = configure("cifar10")
    assert (config.model.ch, config.model.ch_mult, config.model.attn) == (128, (1, 2, 2, 2), (1,))
    assert (config.train.steps, config.train.batch_size, config.train.lr) == (450_000, 256, 4e-4)
    assert config.diffusion.schedule == "linear"


def test_set_wins_over_file_wins_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"train": {"steps": 7, "batch_size": 9}}))
    config = configure("digits", file, train={"steps": 8})
    assert (config.train.steps, config.train.batch_size) == (8, 9)


def test_widths_of_the_model_reach_training_and_search() -> None:
    config = configure("digits", model={"widths": (1, 0.5)})
    assert config.train.widths == config.search.widths == (1.0, 0.5)


def test_the_quickstart_changes_only_known_settings() -> None:
    for section, values in QUICKSTART_FAST.items():
        for key, value in values.items():
            configure("digits", **{section: {key: value}})


@pytest.mark.parametrize(
    "name",
    ["data.source", "data.cache", "train.start_from", "eval.reference", "eval.features",
     "sampler.kind", "tune.origin"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("text", "value"),
    [("1.10", "1.10"), ("007", "007"), ("null", "null"), ("true", "true"), ("NaN", "NaN"),
     ("[1]", "[1]"), ("None", "None"), ('"1.10"', "1.10"), ('"', '"'), ("a=b,c", "a=b,c")],
)  # fmt: skip
def test_names_and_paths_stand_as_they_are(name: str, text: str, value: str) -> None:
    assert parse_setting(*name.split("."), text) == value


def test_no_text_takes_back_a_path() -> None:
    assert parse_setting("eval", "reference", "") is None
    assert parse_setting("data", "source", "") == ""  # which is refused: there is no default
    assert parse_setting("train", "steps", "7") == 7
    assert parse_setting("train", "unknown", "7") == 7  # which is refused by its name


@pytest.mark.parametrize("name", ["sp ", " sp", '"q"', "'q'", " "])
def test_what_is_there_is_named_with_its_blanks_and_quotes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    assert parse_setting("data", "source", name) == name
    assert parse_setting("data", "source", " photos ") == "photos"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "need an object of sections"),
        ('{"trian": {}}', "did you mean train?"),
        ('{"train": 3}', "train is 3"),
        ('{"train": {"stepz": 3}}', "did you mean steps?"),
        ('{"train": {', "not JSON"),
    ],
)
def test_bad_files_are_named(content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises((ValueError, TypeError), match=r"bad\.json") as caught:
        configure("digits", file)
    assert expected in str(caught.value)


def test_a_file_needs_a_model() -> None:
    with pytest.raises(ValueError, match="image_size is missing"):
        configure()


def test_another_method_of_search_has_its_own_sizes() -> None:
    # the digits preset makes the default method small; the paper's search is 50 x 10 x 4096
    config = configure("digits")
    paper = with_budget(config, {"method": "paper"}).search
    assert (paper.population_size, paper.generation_count, paper.first_samples) == (50, 10, 4096)
    assert configure("digits", search={"method": "paper"}).search == paper
    given = with_budget(config, {"method": "paper", "samples": 64}).search
    assert (given.population_size, given.first_samples) == (50, 64)
    same = with_budget(config, {"method": "evolution"}).search
    assert same == config.search


def test_a_sampler_without_eta_takes_it_back() -> None:
    assert configure("digits").sampler.eta == 1.0
    assert configure("digits", sampler={"kind": "ddpm"}).sampler.eta == 0.0


def test_images_of_another_size_than_the_networks_are_refused() -> None:
    for settings in (
        {"data": {"image_size": 16}},
        {"data": {"channels": 3}},
        {"data": {"image_size": 8}, "model": {"image_size": 16}},
    ):
        with pytest.raises(ValueError, match=r"data\.\w+ is \d+ with model\.\w+ \d+; need \d+"):
            configure("digits", **settings)
    same = {"image_size": 8, "channels": 1}
    assert configure("digits", data=same).data.image_size == 8
