"""What a search leaves behind and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ddsm_ext.run import Run, configure
from ddsm_ext.run.searching import set_aside_other
from ddsm_ext.search.archive import VERSION


def test_another_search_is_kept_aside(tmp_path: Path) -> None:
    archive = tmp_path / "search" / "archive.jsonl"
    archive.parent.mkdir()
    header = {"version": VERSION, "identity": {"weights": "a", "seed": 0}}
    archive.write_text(json.dumps(header) + "\n")
    set_aside_other(tmp_path, {"weights": "a", "seed": 0})
    assert archive.exists()
    set_aside_other(tmp_path, {"weights": "b", "seed": 0})
    assert not archive.exists()
    assert (tmp_path / "search-00000" / "archive.jsonl").exists()


def test_search_samples_and_scores_leave_torchs_own_generator_alone(tmp_path: Path) -> None:
    config = configure(
        "digits",
        model={"ch": 8, "groups": 4, "widths": (1, 0.5)},
        train={"steps": 1, "batch_size": 8},
        sampler={"steps": 2},
        search={"pool": 4, "generations": 1, "samples": 8, "most_samples": 8,
                "finalists": 1, "final_samples": 8, "budget_macs": 0.7},
        eval={"images": 8, "ranges": 1, "batch_size": 8},
    )  # fmt: skip
    run = Run.create(tmp_path, "x", config)
    run.train()
    before = torch.get_rng_state()
    run.search()
    run.sample(range(2))
    run.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


def test_scores_by_another_distance_are_another_search(tmp_path: Path) -> None:
    """8 samples of 64 features rank by the kernel distance, 128 by Fréchet's: no score of the one
    may stand for a score of the other on the same samples."""
    config = configure(
        "digits",
        model={"ch": 8, "groups": 4, "widths": (1, 0.5)},
        train={"steps": 1, "batch_size": 8},
        sampler={"steps": 2},
        search={"pool": 2, "generations": 1, "finalists": 0, "samples": 8, "most_samples": 128},
        eval={"batch_size": 64},
    )
    run = Run.create(tmp_path, "x", config)
    run.train()
    run.search(budget_macs=0.9)
    run.search(budget_macs=0.9, samples=128)
    names = [
        json.loads((run.folder / folder / "front.json").read_text())["quality_name"]
        for folder in ("search-00000", "search")
    ]
    assert names == ["kernel distance", "Fréchet distance"]
