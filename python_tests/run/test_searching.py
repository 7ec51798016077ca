"""What a search leaves behind and what it leaves alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ddsm_ext.cli.search import search_lines
from ddsm_ext.run import Run, configure
from ddsm_ext.run.classes import labels_of
from ddsm_ext.run.sampled_quality import SampledQuality, blocks_of
from ddsm_ext.sampling.strategy import Strategy


def small_run(folder: Path, search: dict[str, Any], batch_size: int) -> Run:
    """A run of the digits that was trained for one step."""
    config = configure(
        "digits",
        model={"ch": 8, "groups": 4, "widths": (1, 0.5)},
        train={"steps": 1, "batch_size": 8},
        sampler={"steps": 2},
        search=search,
        eval={"images": 8, "ranges": 1, "batch_size": batch_size},
    )
    run = Run.create(folder, "x", config)
    run.train()
    return run


SMALLEST = {"pool": 2, "generations": 1, "finalists": 0, "samples": 8, "most_samples": 8}


def test_search_samples_and_scores_leave_torchs_own_generator_alone(tmp_path: Path) -> None:
    run = small_run(
        tmp_path,
        {"pool": 4, "generations": 1, "samples": 8, "most_samples": 8, "finalists": 1,
         "final_samples": 8, "budget_macs": 0.7},
        batch_size=8,
    )  # fmt: skip
    before = torch.get_rng_state()
    run.search()
    run.sample(range(2))
    run.evaluate()
    assert torch.equal(torch.get_rng_state(), before)


def test_scores_by_another_distance_are_another_search(tmp_path: Path) -> None:
    """8 samples of 64 features rank by the kernel distance, 128 by Fréchet's: no score of the one
    may stand for a score of the other on the same samples."""
    run = small_run(
        tmp_path,
        {"pool": 2, "generations": 1, "finalists": 0, "samples": 8, "most_samples": 128},
        batch_size=64,
    )
    run.search(budget_macs=0.9)
    run.search(budget_macs=0.9, samples=128)
    names = [
        json.loads((run.folder / folder / "front.json").read_text())["quality_name"]
        for folder in ("search-00000", "search")
    ]
    assert names == ["kernel distance", "Fréchet distance, extrapolated to infinite N"]


def test_a_search_in_ms_under_other_conditions_is_another_one(tmp_path: Path) -> None:
    run = small_run(tmp_path, SMALLEST, batch_size=8)
    run.search(budget_time=1.0)
    archive = run.folder / "search" / "archive.jsonl"
    first = archive.read_bytes()
    run.search(budget_time=1.0)  # with the times that it began with
    assert archive.read_bytes() == first
    Run.open(tmp_path, run.folder, {"eval": {"batch_size": 4}}).search(budget_time=1.0)
    assert (run.folder / "search-00000" / "archive.jsonl").read_bytes() == first
    second = archive.read_bytes()
    assert second != first
    # a folder that a killed search left with times of yet other conditions
    left = run.folder / "search-00001"
    left.mkdir()
    shutil.copy(run.folder / "search" / "cost_table.json", left)
    third = Run.open(tmp_path, run.folder, {"eval": {"batch_size": 2}})
    third.search(budget_time=1.0)
    began = archive.read_bytes()
    assert began not in (first, second)
    third.search(budget_time=1.0)
    assert archive.read_bytes() == began


def test_a_search_in_ms_under_another_sampler_is_timed_with_that_samplers_own_work(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path, SMALLEST, batch_size=8)
    found = []
    for kind in ("ddim", "dpmpp_2m"):
        Run.open(tmp_path, run.folder, {"sampler": {"kind": kind}}).search(budget_time=1.0)
        table = json.loads((run.folder / "search" / "cost_table.json").read_text())
        found.append((table["conditions"]["sampler"], table["overhead"]))
    assert [kind for kind, _ in found] == ["ddim", "dpmpp_2m"]
    assert found[0][1] != found[1][1] > 0


def test_the_proxy_alone_leaves_the_scores_of_a_search_in_place(tmp_path: Path) -> None:
    run = small_run(tmp_path, SMALLEST, batch_size=8)
    scored = run.search(budget_macs=0.9)
    archive = run.folder / "search" / "archive.jsonl"
    before = archive.read_bytes()
    proxy = run.search(budget_macs=0.9, method="proxy")
    assert (scored.samples, proxy.samples) == (8, 0)
    assert run.search(budget_macs=0.9) == scored
    assert archive.read_bytes() == before


def test_a_refused_budget_leaves_the_earlier_search_in_place(tmp_path: Path) -> None:
    run = small_run(tmp_path, SMALLEST, batch_size=8)
    run.search(budget_macs=0.9)
    strategy = (run.folder / "search" / "strategy.json").read_bytes()
    for budget in ({"budget_ms": 1e-6}, {"budget_macs": 1e-6}):
        with pytest.raises(ValueError, match="the cheapest strategy costs"):
            run.search(**budget)
    assert (run.folder / "search" / "strategy.json").read_bytes() == strategy
    assert not (run.folder / "search-00000").exists()


def test_one_sample_is_no_score(tmp_path: Path) -> None:
    run = small_run(tmp_path, {**SMALLEST, "samples": 1}, batch_size=8)
    with pytest.raises(ValueError, match="a score takes 1 samples; need 2 or more"):
        run.search(budget_macs=0.9)
    assert not (run.folder / "search").exists()


def test_what_a_search_says_at_its_end(tmp_path: Path) -> None:
    final = {"finalists": 2, "final_samples": 16}
    run = small_run(tmp_path, {**SMALLEST, **final}, batch_size=8)
    run.search(budget_macs=0.9)
    chosen, beside, evaluations = search_lines(run.folder)
    assert chosen.startswith("chosen: ")
    assert beside.startswith("beside the full width on 16 new seeds: ")
    assert "of those of the DDSM paper's search" in evaluations
    run.search(budget_macs=0.9, finalists=0)
    assert "on the 8 seeds that chose it, which flatter it: " in search_lines(run.folder)[1]
    run.search(budget_macs=0.9, method="proxy")
    assert search_lines(run.folder)[1] == (
        "no sample was scored: this is the front of the proxy alone"
    )


def test_a_loss_that_new_seeds_do_not_show_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the width scores better on the seeds that choose it, worse on those after them."""

    def score(quality: SampledQuality, strategy: Strategy, samples: range) -> list[float]:
        above = -1.0 if samples.stop <= 24 else 0.5
        return [1.0 + (above if 0.5 in strategy.widths else 0.0) + 0.01 * i for i in range(4)]

    run = small_run(tmp_path, {**SMALLEST, "finalists": 2, "final_samples": 16}, batch_size=8)
    monkeypatch.setattr(SampledQuality, "__call__", score)
    chosen = run.search(max_quality_loss=0.1)
    assert chosen.loss == pytest.approx(0.5)
    assert "kept within a loss of 0.1 where it was chosen, but loses up to 0.5" in caplog.text
    caplog.clear()
    assert run.search(max_quality_loss=0.6) == chosen
    assert "kept within a loss" not in caplog.text


def test_a_kill_after_the_choice_leaves_nothing_of_the_earlier_strategy_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, SMALLEST, batch_size=8)
    run.search(budget_macs=0.6)
    Strategy.constant(1.0).save(run.folder / "search" / "strategy.json")  # of another budget
    beside = [run.folder / "search" / name for name in ("steps.json", "reverse.json")]
    before = [path.read_bytes() for path in beside]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ddsm_ext.run.searching.save_steps", killed)
        with pytest.raises(KeyboardInterrupt):
            run.search(budget_macs=0.6)
    assert not any(path.exists() for path in beside)
    run.search(budget_macs=0.6)
    assert [path.read_bytes() for path in beside] == before


@pytest.mark.parametrize(("classes", "blocks"), [(1, 16), (3, 16), (10, 17), (34, 19), (1000, 17)])
def test_every_block_of_samples_has_all_classes_as_often(classes: int, blocks: int) -> None:
    """Else what a score loses with a block says which classes it was of."""
    assert blocks_of(classes) == blocks
    labels = labels_of(range(blocks * classes), (), classes)
    for block in range(blocks):
        assert sorted(labels[block::blocks]) == list(range(classes))


def test_scores_by_other_blocks_are_another_searchs(tmp_path: Path) -> None:
    """As those of ten classes in 16 blocks, which earlier versions kept, beside those in 17."""
    config = configure(
        "adm-digits",
        model={"ch": 8, "groups": 4, "head_channels": 8, "widths": (1, 0.5)},
        train={"steps": 1, "batch_size": 8},
        sampler={"steps": 2},
        search=SMALLEST,
        eval={"images": 40, "ranges": 1, "batch_size": 40},
    )
    run = Run.create(tmp_path, "x", config)
    run.train()
    run.search(budget_macs=0.9)
    archive = run.folder / "search" / "archive.jsonl"
    run.search(budget_macs=0.9)
    assert not (run.folder / "search-00000").exists()  # it went on with its own
    header, *rows = archive.read_text().splitlines()
    earlier = json.loads(header)
    assert earlier["identity"].pop("blocks") == 17
    archive.write_text("\n".join([json.dumps(earlier), *rows]) + "\n")
    run.search(budget_macs=0.9)
    assert (run.folder / "search-00000" / "archive.jsonl").read_text() == "\n".join(
        [json.dumps(earlier), *rows]
    ) + "\n"
