"""A run whose network takes labels, from images in class folders to samples, search and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compat.official_weights import formula_weights
from PIL import Image
from safetensors.torch import load_file, save_file

from ddsm_ext.compat.guided_diffusion import (
    guided_diffusion_config,
    guided_diffusion_state_dict_shapes,
    load_guided_diffusion,
)
from ddsm_ext.data.images import image_grid
from ddsm_ext.data.sample_archive import write_sample_archive
from ddsm_ext.diffusion import make_schedule
from ddsm_ext.graph import macs
from ddsm_ext.run import Run, configure
from ddsm_ext.run.classes import labels_named, labels_of
from ddsm_ext.run.config import changed
from ddsm_ext.run.importing import import_guided_diffusion
from ddsm_ext.sampling import evaluations

CLASSES = ("cat", "dog", "eel")
MODEL = {
    "family": "adm", "image_size": 8, "image_channels": 3, "ch": 16, "ch_mult": [1, 2],
    "attn": [1], "num_res_blocks": 1, "dropout": 0.0, "groups": 4, "head_channels": 8,
    "num_classes": 3, "null_class": True, "learned_sigma": False, "widths": [1.0, 0.5],
}  # fmt: skip


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Images of three classes, each of a colour of its own."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(20):
            pixels = generator.integers(0, 60, (8, 8, 3), dtype=np.uint8)
            pixels[:, :, label] += 190
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def labelled(photographs: Path, steps: int = 4, **changes: Any) -> Run:
    sections: dict[str, dict[str, Any]] = {
        "model": MODEL,
        "diffusion": {"schedule": "cosine", "timesteps": 50},
        "data": {"source": str(photographs), "flip": False},
        "train": {"steps": steps, "batch_size": 8, "checkpoint_every": 3, "lr": 3e-3,
                  "ema_decay": 0.9},
        "sampler": {"kind": "ddim", "steps": 5},
        "eval": {"features": "none"},
    }  # fmt: skip
    for section, values in changes.items():
        sections[section] = {**sections[section], **values}
    return Run.create(photographs.parent / "runs", "photos", configure(**sections))


def test_it_learns_its_classes(photographs: Path) -> None:
    """Its images of a class are of that class's colour more than of the others'."""
    run = labelled(photographs, 300)
    run.train()
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss_w0.5"] < 0.6 * rows[0]["loss_w0.5"]
    made = run.sample(range(48))
    assert made.labels is not None
    assert made.labels.tolist() == [0, 1, 2] * 16
    colours = np.stack([made.images[made.labels == label].mean((0, 1, 2)) for label in range(3)])
    assert colours.argmax(axis=1).tolist() == [0, 1, 2]
    order = np.argsort(made.labels, kind="stable")
    side = made.images.shape[1]
    with Image.open(made.folder / "grid.png") as grid:  # a row a class, small images enlarged
        enlarged = image_grid(made.images[order], 16, scale=64 // side)
        assert np.array_equal(np.asarray(grid), enlarged)


def test_it_resumes_bit_for_bit(photographs: Path, tmp_path: Path) -> None:
    whole = labelled(photographs, 7)
    whole.train()
    parts = labelled(photographs, 4)
    assert parts.folder != whole.folder
    parts.train()
    parts.extend(7, lr=3e-3)
    parts.train()
    ours, theirs = (run.network("model").state_dict() for run in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["label_embedding.weight"].shape == (4, 64)  # three classes and none


def test_search_and_report(photographs: Path) -> None:
    run = labelled(photographs)
    run.train()
    point = run.search(method="proxy", budget_macs=0.6)
    assert set(point.strategy.widths) <= {1.0, 0.5}
    errors = json.loads((run.folder / "search" / "sensitivity.json").read_text())
    assert max(errors["errors"]["0.5"]) > 0
    page = run.report().read_text()
    assert "num_classes" in page


def test_scores_and_pictures_by_class(photographs: Path) -> None:
    run = labelled(photographs, eval={"features": "classifier", "images": 30, "ranges": 1})
    run.train()
    result = run.evaluate([1.0, 0.5])
    assert [row["label"] for row in result["rows"]] == ["full width", "width 0.5"]
    index = json.loads((run.folder / "samples" / "compare" / "index.json").read_text())
    labels = [row["label"] for row in index["rows"]]
    assert labels == [
        "real images", "full width", "width 0.5", *(f"full width, class {c}" for c in CLASSES)
    ]  # fmt: skip


def test_images_of_chosen_classes(photographs: Path) -> None:
    run = labelled(photographs, 60)  # the last layer starts at zero
    run.train()
    chosen = Run.open(run.folder.parent, run.folder, {"sampler": {"classes": [2, 0]}})
    made = chosen.sample([0, 1, 2, 5])
    assert made.labels is not None
    assert made.labels.tolist() == [2, 0, 2, 0]
    every = run.sample([0, 1, 2, 5])
    assert np.array_equal(made.images[2], every.images[2])  # seed 2 of class 2 in both
    assert not np.array_equal(made.images[0], every.images[0])
    assert made.folder != every.folder
    with pytest.raises(ValueError, match=r"sampler.classes is \[3\]; need labels below 3"):
        Run.open(run.folder.parent, run.folder, {"sampler": {"classes": [3]}})


def test_data_without_its_classes_are_refused(photographs: Path) -> None:
    with pytest.raises(ValueError, match="photos has 3 classes, the network takes labels of 5"):
        labelled(photographs, model={"num_classes": 5})
    for image in photographs.glob("*/*.png"):
        image.rename(photographs / f"{image.parent.name}{image.name}")
    for name in CLASSES:
        (photographs / name).rmdir()
    with pytest.raises(ValueError, match="photos has no classes, the network takes labels of 3"):
        labelled(photographs)
    assert not (photographs.parent / "runs").exists()


def test_a_network_without_labels_takes_none(photographs: Path) -> None:
    changes = {"num_classes": None, "null_class": False}
    run = labelled(photographs, 1, model=changes)
    run.train()
    assert run.sample([0]).labels is None
    with pytest.raises(ValueError, match="need none, as the network takes no labels"):
        labelled(photographs, model=changes, sampler={"classes": [0]})


@pytest.mark.parametrize(
    ("text", "labels"), [("dog", (1,)), ("eel, cat", (2, 0)), ("2", (2,)), ("1,dog", (1, 1))]
)
def test_classes_by_name_or_label(text: str, labels: tuple[int, ...]) -> None:
    assert labels_named(text, CLASSES, "--class") == labels


def test_a_name_of_digits_wins_over_a_label() -> None:
    assert labels_named("1", ("0", "2", "1"), "--class") == (2,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dgo", "--class: there is no class 'dgo'; need a name, or a label of 0 ... 2; did you"),
        ("3", "--class: there is no class '3'"),
        ("cat,", "--class: there is no class ''"),
        ("-1", "--class: there is no class '-1'"),
    ],
)
def test_other_classes_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_named(text, CLASSES, "--class")


def test_any_range_of_seeds_has_its_classes_in_turn() -> None:
    assert labels_of(range(7, 13), (), 3) == [1, 2, 0, 1, 2, 0]
    assert labels_of([4, 5], (9,), 20) == [9, 9]


def test_a_checkpoint_of_guided_diffusion_becomes_a_run_and_goes_back(tmp_path: Path) -> None:
    flags = (
        "--image_size 8 --channel_mult 1,2 --num_channels 32 --num_res_blocks 1 --class_cond True "
        "--attention_resolutions 4 --num_head_channels 16 --resblock_updown True "
        "--learn_sigma False --noise_schedule cosine --timestep_respacing 10"
    )
    (tmp_path / "flags.txt").write_text(flags)
    unet = {
        "image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 3,
        "num_res_blocks": 1, "attention_resolutions": (2,), "channel_mult": (1, 2),
        "num_classes": 1000, "num_head_channels": 16, "use_scale_shift_norm": True,
        "resblock_updown": True,
    }  # fmt: skip
    state = formula_weights(guided_diffusion_state_dict_shapes(unet))
    save_file(state, tmp_path / "adm.safetensors")
    folder = import_guided_diffusion(
        tmp_path / "adm.safetensors", tmp_path / "runs", flags_file=tmp_path / "flags.txt"
    )
    run = Run.open(folder.parent, folder)
    assert run.config.model == guided_diffusion_config(unet)
    made = run.sample([999, 1000])
    assert made.labels is not None
    assert made.labels.tolist() == [999, 0]
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 900]), torch.tensor([1, 999])
    expected = load_guided_diffusion(state, unet)
    with torch.no_grad():
        torch.testing.assert_close(run.network()(x, t, 1.0, y), expected(x, t, 1.0, y))
    back = load_file(run.export_to("guided-diffusion"))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_guidance_counts_what_runs(photographs: Path) -> None:
    """Two halves inside the interval at the strategy's width, or one at a width of its own."""
    run = labelled(photographs, 60)
    run.train()
    one = run.sample(range(4)).macs_per_image
    changes = {"guidance": 2.0}
    guided = Run.open(run.folder.parent, run.folder, {"sampler": changes})
    both = guided.sample(range(4))
    assert both.macs_per_image == 2 * one
    assert not np.array_equal(both.images, run.sample(range(4)).images)
    some = {**changes, "guidance_interval": [-3.0, 3.0], "guidance_widths": [0.5]}
    partly = Run.open(run.folder.parent, run.folder, {"sampler": some})
    levels = [e.log_snr for e in evaluations(make_schedule(run.config.diffusion),
                                            run.config.sampler)]  # fmt: skip
    inside = sum(-3.0 <= level <= 3.0 for level in levels)
    assert 0 < inside < 5
    weak = macs(run.config.model, 0.5)
    assert partly.sample(range(4)).macs_per_image == one + inside * weak
    point = partly.search(method="proxy", budget_macs=0.7)
    whole = one + inside * weak
    assert point.cost <= 0.7 * whole * 1.001
    own = sum(macs(run.config.model, width) for width in point.strategy.widths_for(levels))
    assert point.cost == own + inside * weak
    point = guided.search(method="proxy", budget_macs=0.7)
    own = sum(macs(run.config.model, width) for width in point.strategy.widths_for(levels))
    assert point.cost == 2 * own


def test_a_network_without_the_null_class_is_guided_by_width(photographs: Path) -> None:
    run = labelled(photographs, 1, model={"null_class": False})
    run.train()
    with pytest.raises(ValueError, match="the network has no label for no class"):
        Run.open(run.folder.parent, run.folder, {"sampler": {"guidance": 2.0}})
    changes = {"guidance": 2.0, "guidance_weak": "width", "guidance_widths": [0.5]}
    guided = Run.open(run.folder.parent, run.folder, {"sampler": changes})
    expected = 5 * (macs(run.config.model, 1.0) + macs(run.config.model, 0.5))
    assert guided.sample(range(2)).macs_per_image == expected


def test_a_search_on_images_of_other_classes_is_refused(photographs: Path, tmp_path: Path) -> None:
    run = labelled(photographs, 1)
    run.train()
    images = np.zeros((8, 8, 8, 3), np.uint8)
    for labels, message in ((None, "has no classes"), (np.arange(8), "has 8 classes")):
        file = write_sample_archive(tmp_path / "s.npz", images, labels)
        other = Run.open(run.folder.parent, run.folder, {"data": {"source": str(file)}})
        with pytest.raises(ValueError, match=f"search: s {message}"):
            other.search(method="proxy", budget_macs=0.6)
    file = write_sample_archive(tmp_path / "few.npz", images, np.arange(8) % 2)  # without names
    other = Run.open(run.folder.parent, run.folder, {"data": {"source": str(file)}})
    assert other.search(method="proxy", budget_macs=0.6).cost_relative <= 0.6001


def test_guidance_is_taken_back_with_all_that_belongs_to_it(photographs: Path) -> None:
    given = {"guidance": 2.0, "guidance_interval": [-3, 3], "guidance_widths": [0.5]}
    config = labelled(photographs, 1, sampler=given).config
    after = changed(config, {"sampler": {"guidance": 1.0}})
    assert after.sampler.guidance_interval is None
    assert after.sampler.guidance_widths == ()


def test_what_was_never_trained_is_warned_about(photographs: Path) -> None:
    with pytest.warns(UserWarning, match="label_dropout 0 teaches nothing"):
        labelled(photographs, 1, train={"label_dropout": 0.0}, sampler={"guidance": 2.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": {"kind": "ddpm", "variance": "learned"}}, "a network that predicts none"),
        ({"train": {"augment": 0.1}}, "a network that is told 0 numbers"),
        ({"diffusion": {"schedule": "edm", "parameterisation": "edm"}}, None),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused_first(
    changes: dict[str, Any], message: str | None, photographs: Path
) -> None:
    if message is None:  # DDIM without noise serves EDM's levels, ancestral sampling does not
        changes, message = {**changes, "sampler": {"kind": "ddpm"}}, "ddpm: alpha"
    with pytest.raises(ValueError, match=message):
        labelled(photographs, 1, **changes)
    assert not (photographs.parent / "runs").exists()
