"""A run made before a setting existed is found, continued and extended by the same commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.commands import EARLIER_RECIPE, TINY, sets

from ddsm_ext.cli.main import main
from ddsm_ext.io.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from ddsm_ext.io.digest import json_digest
from ddsm_ext.run.search_folders import search_folder

# Settings that came after the first runs, with the values that say what there was before.
LATER: Mapping[str, Mapping[str, Any]] = {
    "train": {
        "start_from": None,
        "width_weights": None,
        "middle_choice": "uniform",
        "distill_balanced": False,
        "teacher": "live",
        "t_importance": 0.0,
        "extensions": [],
    },
    "sampler": {"dtype": "float32"},
    "search": {"method": "evolution"},
}

SETTINGS = [*TINY, *EARLIER_RECIPE, "train.checkpoint_every=2"]


def without_later(values: dict[str, Any], section: str) -> dict[str, Any]:
    for key, value in LATER[section].items():
        assert values[key] == value
    return {key: value for key, value in values.items() if key not in LATER[section]}


def make_earlier(run: Path) -> None:
    """Take the later settings out of every file of a run."""
    config = json.loads((run / "config.json").read_text())
    config |= {section: without_later(config[section], section) for section in LATER}
    del config["tune"], config["digest"]  # which came later
    (run / "config.json").write_text(json.dumps(config))

    for path in list_checkpoints(run):
        saved = load_checkpoint(path)
        about = {**saved.state, "train": without_later(saved.state["train"], "train")}
        shutil.rmtree(path)
        save_checkpoint(run, saved.step, saved.tensors, about, keep=9)

    archive = run / "search" / "archive.jsonl"
    first, *rows = archive.read_text().splitlines()
    header = json.loads(first)
    identity = header["identity"]
    identity["sampler"] = without_later(identity["sampler"], "sampler")
    header["digest"] = json_digest(identity)
    archive.write_text("\n".join([json.dumps(header), *resealed(rows, header["digest"])]) + "\n")

    metrics = json.loads((run / "metrics.json").read_text())
    metrics["sampler"] = without_later(metrics["sampler"], "sampler")
    del metrics["digest"], metrics["version"]
    (run / "metrics.json").write_text(json.dumps(metrics))


def resealed(rows: list[str], identity: str) -> list[str]:
    """Rows as a search of the identity with this digest writes them."""
    made = []
    for text in rows:
        row = json.loads(text)
        scored = {key: row[key] for key in row if key not in ("seconds", "digest")}
        made.append(json.dumps({**row, "digest": json_digest([identity, scored])}))
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("earlier")
    run = root / "00000-digits"
    assert main(["train", "--root", str(root), *sets(SETTINGS)]) == 0
    assert main(["search", "--run", str(run)]) == 0
    assert main(["eval", "--run", str(run), "--strategy", "1"]) == 0
    make_earlier(run)
    text = "".join((run / name).read_text() for name in ("config.json", "metrics.json"))
    assert "dtype" not in text + (run / "search" / "archive.jsonl").read_text()
    assert "start_from" not in text
    return run


@pytest.fixture
def earlier(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / made.name)
    return tmp_path / made.name


def train(root: Path, *more: str) -> int:
    return main(["train", "--root", str(root), *sets([*SETTINGS, *more])])


def labels(run: Path) -> list[str]:
    return [row["label"] for row in json.loads((run / "metrics.json").read_text())["rows"]]


def test_the_same_command_continues_the_run(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = earlier / "checkpoints" / "step-000003"
    weights = load_checkpoint(last).tensors["ema"]
    shutil.rmtree(last)  # as if it had been killed after step 2
    assert train(earlier.parent) == 0
    assert f"continuing {earlier}" in capsys.readouterr().err
    assert list(earlier.parent.iterdir()) == [earlier]
    again = load_checkpoint(last).tensors["ema"]
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_another_value_of_a_later_setting_is_another_run(earlier: Path) -> None:
    assert train(earlier.parent, f"train.start_from={earlier}") == 0
    assert train(earlier.parent, "sampler.dtype=bfloat16") == 0
    names = {path.name for path in earlier.parent.iterdir()}
    assert names == {"00000-digits", "00001-digits", "00002-digits"}


def test_its_search_repeats_no_evaluation(earlier: Path) -> None:
    archive = earlier / "search" / "archive.jsonl"
    before = archive.read_bytes()
    assert main(["search", "--run", str(earlier)]) == 0
    assert archive.read_bytes() == before
    assert not (earlier / "search-00000").exists()


@pytest.mark.parametrize("setting", ["sampler.dtype=bfloat16", "eval.sensitivity_images=16"])
def test_another_value_of_a_later_setting_is_another_search(earlier: Path, setting: str) -> None:
    before = (earlier / "search" / "archive.jsonl").read_bytes()
    assert main(["search", "--run", str(earlier), "--set", setting]) == 0
    assert (earlier / "search-00000" / "archive.jsonl").read_bytes() == before


def test_the_default_is_another_search_than_a_value_set_before(earlier: Path) -> None:
    archive = earlier / "search" / "archive.jsonl"
    header, *rows = archive.read_text().splitlines()
    identity = {**json.loads(header)["identity"], "sensitivity_images": 16}
    changed = {**json.loads(header), "identity": identity, "digest": json_digest(identity)}
    archive.write_text("\n".join([json.dumps(changed), *rows]) + "\n")
    assert search_folder(earlier, {"sensitivity_images": 16}) == archive.parent
    assert search_folder(earlier, {"sensitivity_images": 256}) == earlier / "search-00000"


def test_its_scores_are_kept(earlier: Path) -> None:
    assert labels(earlier) == ["full width"]
    command = ["eval", "--run", str(earlier), "--strategy", "0.5"]
    assert main(command) == 0
    assert labels(earlier) == ["full width", "width 0.5"]
    assert main([*command, "--set", "sampler.dtype=bfloat16"]) == 0
    assert labels(earlier) == ["width 0.5"]
