"""The run folder in `earlier/`, written by commit 5285e7c, serves the commands of today.

It was made by these commands, on an AVX-512 CPU. Afterwards machine and kernel were
taken out of `env.json`, grids and previews were deleted:

    ddsm train <TRAIN of this file>
    ddsm search --run runs/00000-old
    ddsm eval --run runs/00000-old --strategy 0.5
    ddsm sample --run runs/00000-old --seeds 0-3 --strategy runs/00000-old/search/strategy.json
    ddsm export --run runs/00000-old --width 0.5
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.commands import EARLIER_RECIPE, sets
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ddsm_ext.cli.main import main

STORED = Path(__file__).with_name("earlier") / "00000-old"
TRAIN = [
    "--name", "old",
    *sets([
        "model.ch=4", "model.ch_mult=1,1", "model.attn=1", "model.groups=2", "model.widths=1,0.5",
        "train.steps=4", "train.warmup_steps=0", "train.batch_size=8", "train.log_every=1",
        "train.checkpoint_every=2", "sampler.steps=4", "search.budget_macs=0.6",
        "eval.images=32", "eval.batch_size=32", *EARLIER_RECIPE,
    ]),
]  # fmt: skip
LAST = Path("checkpoints") / "step-000004"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(STORED, tmp_path / STORED.name)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    # The keys' biases change nothing: Adam makes steps of the rounding that is their gradient.
    names = [name for name in b if not name.endswith("attention.k.bias")]
    return float(torch.cat([(a[name] - b[name]).flatten() for name in names]).norm())


def test_training_resumes_at_its_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As if it had been killed after step 2: the last steps come out as they did then."""
    shutil.rmtree(run / LAST)
    assert main(["train", "--root", str(run.parent), *TRAIN]) == 0
    assert f"continuing {run}" in capsys.readouterr().err
    assert list(run.parent.iterdir()) == [run]
    for found, wanted in zip(rows(run), rows(STORED), strict=True):
        for key in wanted.keys() - {"images_per_s"}:
            assert found[key] == pytest.approx(wanted[key], rel=1e-5), key
    for group in ("model", "ema"):
        middle, last = (
            load_file(STORED / "checkpoints" / f"step-00000{step}" / f"{group}.safetensors")
            for step in (2, 4)
        )
        again = load_file(run / LAST / f"{group}.safetensors")
        assert list(again) == list(last)
        assert distance(again, last) <= 0.01 * distance(middle, last)


def test_a_finished_run_is_left_alone(run: Path) -> None:
    before = {path: path.read_bytes() for path in (run / LAST).iterdir()}
    assert main(["train", "--root", str(run.parent), *TRAIN]) == 0
    assert {path: path.read_bytes() for path in (run / LAST).iterdir()} == before
    assert list(run.parent.iterdir()) == [run]


def test_its_search_is_kept_beside_a_new_one(run: Path) -> None:
    """It scored by other rules, so that none of its evaluations serves; what it found does."""
    before = {p.name: p.read_bytes() for p in (run / "search").iterdir()}
    few = ["search.pool=4", "search.generations=1", "search.samples=8", "search.most_samples=8",
           "search.finalists=1", "search.final_samples=8"]  # fmt: skip
    assert main(["search", "--run", str(run), *sets(few)]) == 0
    aside = run / "search-00000"
    assert {p.name: p.read_bytes() for p in aside.iterdir()} == before
    origin = json.loads((run / "search" / "strategy.json").read_text())["origin"]
    assert origin["weights"] == json.loads(before["strategy.json"])["origin"]["weights"]


def test_its_strategy_makes_the_same_images(run: Path, tmp_path: Path) -> None:
    strategy, out = run / "search" / "strategy.json", tmp_path / "out"
    command = ["sample", "--run", str(run), "--seeds", "0-3", "--out", str(out)]
    assert main([*command, "--strategy", str(strategy)]) == 0
    for path in (STORED / "samples" / "strategy-ddim-4").iterdir():
        found, wanted = (np.asarray(Image.open(file), np.int16) for file in (out / path.name, path))
        assert np.abs(found - wanted).max() <= 1, path.name  # level of 256: a rounding to 8 bits
        assert wanted.std() > 10


def test_its_export_is_the_same(run: Path, tmp_path: Path) -> None:
    command = ["export", "--run", str(run), "--width", "0.5", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    stored = STORED / "export" / "width-0.5"
    found, wanted = (load_file(f / "model.safetensors") for f in (tmp_path / "out", stored))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    now, then = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", stored))
    for name, value in then.items():  # settings that came later are beside those of then
        assert now[name] == ({**now[name], **value} if isinstance(value, dict) else value)


def test_scores_are_kept_beside_a_new_one(run: Path) -> None:
    assert main(["eval", "--run", str(run), "--strategy", "1", "--ranges", "1"]) == 0
    labels = [row["label"] for row in json.loads((run / "metrics.json").read_text())["rows"]]
    assert labels == ["full width", "width 0.5"]
