"""Longer runs and tuned runs: what they hold and refuse, and that they resume bit for bit."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddsm_ext.data.images import save_png
from ddsm_ext.graph.count import macs
from ddsm_ext.io.checkpoint import list_checkpoints, load_checkpoint, newest_complete
from ddsm_ext.run import Run, RunConfig, configure
from ddsm_ext.run.compose import weights_digest
from ddsm_ext.run.costs import estimate_training
from ddsm_ext.sampling.strategy import Strategy


def tiny(data: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    return configure(
        "digits",
        data=data or {},
        model={"ch": 8, "groups": 4, "widths": (1, 0.5)},
        train={"steps": 4, "batch_size": 8, "log_every": 1, "warmup_steps": 0, **train},
        sampler={"steps": 3},
        search={"method": "proxy", "budget_macs": 0.7},
        eval={"images": 8, "ranges": 1, "batch_size": 8},
    )


STRATEGY = Strategy((0.5, 1.0), (0.0,), {"kind": "by hand"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run.create(tmp_path_factory.mktemp("made"), "tiny", tiny())
    run.train()
    return run.folder


@pytest.fixture
def origin(made: Path, tmp_path: Path) -> Run:
    shutil.copytree(made, tmp_path / made.name)
    return Run.open(tmp_path, made.name)


def tensors(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    newest = newest_complete(run.folder)
    assert newest is not None
    return load_checkpoint(newest).tensors


def assert_same(one: Run, two: Run) -> None:
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    for group, values in first.items():
        for name, tensor in values.items():
            assert torch.equal(tensor, second[group][name]), (group, name)


def rates(run: Run) -> list[float]:
    return [json.loads(row)["lr"] for row in (run.folder / "log.jsonl").read_text().splitlines()]


def test_an_extended_run_continues_by_the_same_configuration(origin: Run, tmp_path: Path) -> None:
    before = rates(origin)
    origin.extend(7)
    saved = json.loads((origin.folder / "config.json").read_text())["train"]
    assert (saved["steps"], saved["extensions"]) == (7, [[4, 4, 1e-3]])
    assert origin.train().step == 7
    # 3 steps of half a cosine from half of the rate to 0
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * k / 3)) for k in range(3)]
    assert rates(origin) == pytest.approx([*before, *expected])

    again = Run.create(tmp_path, "tiny", tiny())
    assert (again.folder, again.config.train.steps) == (origin.folder, 7)
    assert again.train().finished
    again.extend(7)  # the same once more is no other extension
    assert again.config.train.extensions == ((4, 4, 1e-3),)


def test_an_interrupted_extension_resumes_bit_for_bit(origin: Run, tmp_path: Path) -> None:
    other = Run.open(tmp_path, shutil.copytree(origin.folder, tmp_path / "other" / "00000-tiny"))
    origin.extend(8)
    origin.train()
    other.extend(8)
    config = other.config
    Run.open(tmp_path, other.folder, {"train": {"checkpoint_every": 2}}).train()
    shutil.rmtree(other.folder / "checkpoints" / "step-000008")  # as if killed before its end
    assert list_checkpoints(other.folder)[-1].name == "step-000006"
    assert Run(other.folder, config).train().finished
    assert_same(origin, other)


def test_refusals_of_an_extension(origin: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^extend: steps is 4, the run has 4; need more"):
        origin.extend(4)
    with pytest.raises(ValueError, match="extensions is"):
        origin.extend(8, lr=-1.0)
    untrained = Run.create(tmp_path / "new", "x", tiny())
    with pytest.raises(FileNotFoundError, match="need a trained run to extend"):
        untrained.extend(8)
    longer = Run.open(tmp_path, origin.folder, {"train": {"steps": 8}})
    with pytest.raises(ValueError, match=r"`--extend 8` \(Run\.extend\)"):
        longer.train()


def test_an_extension_of_a_run_without_checkpoints_is_refused_again(origin: Run) -> None:
    origin.extend(8)
    shutil.rmtree(origin.folder / "checkpoints")
    with pytest.raises(FileNotFoundError, match="need a trained run to extend"):
        origin.extend(8)


def test_more_steps_on_other_images_are_refused_and_written_nowhere(
    tmp_path: Path,
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    for number, image in enumerate(images):
        save_png(tmp_path / "images" / f"class{number % 2}" / f"{number}.png", image)
    data = {"source": str(tmp_path / "images")}
    short, longer = tiny(data, lr_final=1.0), tiny(data, lr_final=1.0, steps=6)
    run = Run.create(tmp_path / "runs", "x", short)
    run.train()
    before = (run.folder / "config.json").read_bytes()
    (tmp_path / "images" / "class0" / "0.png").unlink()
    with pytest.raises(ValueError, match="was trained on other images"):
        Run.create(tmp_path / "runs", "x", longer)
    with pytest.raises(ValueError, match="was trained on other images"):
        Run.create(tmp_path / "runs", "x", short, extend=6)
    with pytest.raises(ValueError, match="was trained on other images"):
        Run.open(tmp_path / "runs").extend(6)
    assert (run.folder / "config.json").read_bytes() == before


def test_more_steps_at_a_constant_rate_go_on_in_the_same_folder(tmp_path: Path) -> None:
    short, longer = tiny(lr_final=1.0), tiny(lr_final=1.0, steps=6)
    Run.create(tmp_path / "parts", "x", short).train()
    run = Run.create(tmp_path / "parts", "x", longer)
    assert run.resumed
    assert run.train().step == 6
    whole = Run.create(tmp_path / "whole", "x", longer)
    whole.train()
    assert_same(run, whole)
    for config in (short, longer):  # both commands know it
        assert Run.create(tmp_path / "parts", "x", config).folder == run.folder


@pytest.mark.parametrize(
    "content",
    ["{}", '{"train": 3}', '{"train": {"steps": "x"}}', '{"train": {"extensions": 3}}', "[]", "{"],
)
def test_configs_of_other_kinds_are_passed_over(content: str, tmp_path: Path) -> None:
    other = Run.create(tmp_path, "x", tiny()).folder
    (other / "config.json").write_text(content)
    run = Run.create(tmp_path, "x", tiny(steps=6))
    assert (run.resumed, run.folder.name) == (False, "00001-x")


def test_a_falling_rate_begins_a_new_run(
    origin: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="ddsm_ext"):
        run = Run.create(tmp_path, "tiny", tiny(steps=6))
    assert not run.resumed
    assert f"{origin.folder} differs in train.steps alone; --extend 6" in caplog.text


def test_a_tuned_run_records_its_origin_and_holds_the_strategy(origin: Run) -> None:
    before = {path: path.read_bytes() for path in origin.folder.rglob("*") if path.is_file()}
    tuned = origin.tune(STRATEGY, train={"steps": 3})
    assert tuned.folder.name == "00001-tiny-tune"
    assert tuned.folder.parent == origin.folder.parent
    saved = json.loads((tuned.folder / "config.json").read_text())
    assert saved["tune"] == {
        "origin": "00000-tiny",
        "origin_step": 4,
        "origin_weights": weights_digest(origin.network()),
        "widths": [0.5, 1.0],
        "cuts": [0.0],
        "sandwich_share": saved["tune"]["sandwich_share"],
    }
    assert tuned.strategy == STRATEGY
    assert tuned.strategy.origin == {"kind": "by hand"}
    assert load_checkpoint(newest_complete(tuned.folder)).step == 3
    assert {path: path.read_bytes() for path in before} == before
    rows = tuned.evaluate([1.0, None])["rows"]
    assert [row["widths"] for row in rows] == [[1.0], [0.5, 1.0]]
    assert tuned.report().is_file()


def test_tuning_begins_with_the_averaged_weights(origin: Run) -> None:
    tuned = origin.tune(0.5, train={"steps": 2, "lr": 1e-30})
    wanted = tensors(origin)["ema"]
    for group in ("model", "ema"):
        assert all(torch.equal(t, wanted[name]) for name, t in tensors(tuned)[group].items())


@pytest.mark.parametrize("how", ["tune", "start_from"])
def test_a_run_without_checkpoints_begins_with_its_origin_again(
    origin: Run, tmp_path: Path, how: str
) -> None:
    """A learning rate that moves nothing leaves what it begins with."""
    train = {"steps": 2, "lr": 1e-30}
    if how == "tune":
        run = origin.tune(0.5, train=train)
    else:
        start = tiny(start_from=str(origin.folder), **train)
        run = Run.create(tmp_path, "from", start)
        run.train()
    checkpoint = run.folder / "checkpoints" / "step-000002"
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    log = (run.folder / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"none of its 1 checkpoints is whole .* \(--new\)"):
        run.train()
    assert checkpoint.exists()
    assert (run.folder / "log.jsonl").read_bytes() == log
    shutil.rmtree(checkpoint)
    assert run.train().step == 2
    wanted = tensors(origin)["ema"]
    for group in ("model", "ema"):
        assert all(torch.equal(t, wanted[name]) for name, t in tensors(run)[group].items())


def test_settings_of_a_tuned_run(origin: Run) -> None:
    """Half of the steps and of the rate, which falls to 0, no teacher; what is given wins."""
    train = origin.tuned(0.5).train
    assert (train.distill_weight, train.teacher) == (0.0, "origin")
    assert (train.steps, train.lr, train.lr_final, train.batch_size) == (2, 1e-3, 0.0, 8)
    changed = origin.tuned(0.5, train={"steps": 9}, tune={"sandwich_share": 0.5})
    assert (changed.train.steps, changed.tune.sandwich_share) == (9, 0.5)
    origin.extend(8)
    assert origin.tuned(0.5).train.steps == 4
    assert origin.tuned(0.5).train.extensions == ()


def test_tuning_after_a_kill_between_strategy_and_steps_writes_the_steps(origin: Run) -> None:
    steps = origin.tuning(STRATEGY, train={"steps": 2}).folder / "search" / "steps.json"
    written = steps.read_bytes()
    steps.unlink()
    origin.tuning(STRATEGY, train={"steps": 2})
    assert steps.read_bytes() == written


def test_the_same_tuning_resumes_and_another_is_another_run(origin: Run) -> None:
    first = origin.tune(STRATEGY, train={"steps": 2})
    assert origin.tuning(STRATEGY, train={"steps": 2}).folder == first.folder
    folders = {
        origin.tuning(STRATEGY, new=True, train={"steps": 2}).folder,
        origin.tuning(0.5, train={"steps": 2}).folder,
        origin.tuning(STRATEGY, train={"steps": 2}, tune={"sandwich_share": 0.9}).folder,
        first.folder,
    }
    assert len(folders) == 4


@pytest.mark.parametrize("teacher", ["origin", "ema"])
def test_an_interrupted_tuning_resumes_bit_for_bit(origin: Run, teacher: str) -> None:
    train = {"steps": 6, "distill_weight": 0.5, "teacher": teacher}
    tune = {"sandwich_share": 0.4}
    whole = origin.tune(STRATEGY, train=train, tune=tune)
    parts = origin.tune(STRATEGY, new=True, train={**train, "checkpoint_every": 3}, tune=tune)
    shutil.rmtree(parts.folder / "checkpoints" / "step-000006")
    assert list_checkpoints(parts.folder)[-1].name == "step-000003"
    assert Run.open(parts.folder.parent, parts.folder).train().finished
    assert_same(whole, parts)


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": "ema"},
        {"teacher": "ema", "t_importance": 0.5, "distill_balanced": True},
        {"middle_choice": "budget", "width_weights": [1, 2, 3], "widths": [1, 0.75, 0.5]},
    ],
)
def test_an_interrupted_recipe_resumes_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(**changes, checkpoint_every=2)
    whole, parts = (Run.create(tmp_path, name, config) for name in ("whole", "parts"))
    for run in (whole, parts):
        run.train()
    shutil.rmtree(parts.folder / "checkpoints" / "step-000004")
    assert Run.open(tmp_path, parts.folder).train().finished
    assert_same(whole, parts)


def test_a_second_round_tunes_the_tuned_run(origin: Run) -> None:
    first = origin.tune(STRATEGY, train={"steps": 2})
    chosen = first.search()
    assert first.strategy == chosen.strategy
    second = first.tune()
    assert second.folder.name == "00002-tiny-tune"
    assert second.config.tune.origin == first.folder.name
    assert second.strategy == chosen.strategy
    assert second.config.train == first.config.train


def test_few_steps_of_a_second_round_warm_up_in_a_tenth_of_them(origin: Run) -> None:
    first = origin.tune(0.5, train={"steps": 3, "warmup_steps": 2})
    assert first.tuned(0.5).train.warmup_steps == 2
    for steps, warmup in ((5, 0), (10, 1), (90, 2)):
        assert first.tuned(0.5, train={"steps": steps}).train.warmup_steps == warmup
    chosen = first.tuned(0.5, train={"steps": 5, "warmup_steps": 3}).train
    assert chosen.warmup_steps == 3


@pytest.mark.parametrize(
    ("strategy", "sections", "expected"),
    [
        (None, {}, "has no strategy; need ddsm search first, a file or a width"),
        (1.5, {}, r"1\.5"),
        (0.5, {"tune": {"widths": [1]}}, "tune: tune.widths is what the strategy"),
        (0.5, {"tune": {"sandwich_shar": 1}}, "did you mean sandwich_share"),
        (0.5, {"model": {"ch": 16}}, "model belongs to the weights"),
        (0.5, {"train": {"stepz": 3}}, "did you mean steps"),
        (0.5, {"train": 3}, "train is 3; need an object of keys"),
        (0.5, {"tune": 3}, "tune is 3; need an object of keys"),
        (0.5, {"train": {"teacher": "ema", "t_importance": 0.5}}, "need 0, as the strategy"),
    ],
)
def test_refusals_of_tuning(
    origin: Run, strategy: float | None, sections: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        origin.tune(strategy, **sections)


def test_tuning_needs_weights(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "x", tiny())
    with pytest.raises(FileNotFoundError, match="has no whole checkpoint; need ddsm train first"):
        run.tuning(0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["00000-x"]


def test_a_teacher_that_is_gone_or_another_is_refused(origin: Run, tmp_path: Path) -> None:
    train = {"steps": 4, "distill_weight": 0.5, "checkpoint_every": 2}
    tuned = origin.tune(STRATEGY, train=train)
    shutil.rmtree(tuned.folder / "checkpoints" / "step-000004")
    last = origin.folder / "checkpoints" / "step-000004"
    last.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="00000-tiny: has no checkpoint of step 4"):
        tuned.train()
    other = Run.create(tmp_path / "other", "tiny", tiny(seed=1))
    other.train()
    shutil.copytree(other.folder / "checkpoints" / "step-000004", last)
    with pytest.raises(ValueError, match=r"was recorded; need the same"):
        tuned.train()


def test_an_estimate_counts_the_widths_that_are_trained(origin: Run) -> None:
    def tuned(share: float, **train: Any) -> RunConfig:
        return origin.tuned(0.5, train={"steps": 4, **train}, tune={"sandwich_share": share})

    full, half = (macs(origin.config.model, width) for width in (1.0, 0.5))
    assert estimate_training(tuned(0.0)).macs == 4 * 8 * 3 * half
    assert estimate_training(tuned(1.0)).macs == 4 * 8 * 3 * (full + half)
    taught = tuned(0.0, distill_weight=0.5)
    assert estimate_training(taught).macs == 4 * 8 * (3 * half + full)
