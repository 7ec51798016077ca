"""`Run`: what it refuses, and that it does so before anything is written; what it keeps."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset
from ddsm_ext.data.images import save_png
from ddsm_ext.io.checkpoint import load_checkpoint, newest_complete
from ddsm_ext.io.lock import RunLock
from ddsm_ext.run import Run, RunConfig, configure
from ddsm_ext.run.config import changed
from ddsm_ext.run.run import read_strategy
from ddsm_ext.run.scoring import make_classifier


def tiny(**train: Any) -> RunConfig:
    return configure(
        "digits",
        model={"ch": 8, "groups": 4, "widths": (1, 0.5)},
        train={"steps": 2, "batch_size": 8, **train},
        sampler={"steps": 3},
        search={"pool": 4, "generations": 1, "samples": 8, "most_samples": 8, "finalists": 1,
                "final_samples": 8},
        eval={"images": 8, "ranges": 1, "batch_size": 8},
    )  # fmt: skip


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.create(tmp_path_factory.mktemp("untrained"), "tiny", tiny())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("trained"), "tiny", tiny())
    run.train()
    return run


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cuda:x", ""])
def test_a_device_that_is_not_there_leaves_no_run(device: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^device is '{device}'"):
        Run.create(tmp_path, "x", tiny(), device=device)
    assert not list(tmp_path.iterdir())


def test_damaged_scores_are_refused_before_any_work(untrained: Run, tmp_path: Path) -> None:
    run = Run.open(tmp_path, shutil.copytree(untrained.folder, tmp_path / "00000-x"))
    (run.folder / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json: is not JSON"):
        run.evaluate()  # which also lacks weights


def test_a_sampler_that_does_not_fit_the_process_leaves_no_run(tmp_path: Path) -> None:
    config = changed(tiny(), {"sampler": {"eta": 1.0}})
    values = {**config.to_dict(), "diffusion": {"schedule": "edm", "parameterisation": "edm"}}
    with pytest.raises(ValueError, match=r"^ddim with eta > 0: alpha² \+ sigma² is 6401"):
        Run.create(tmp_path, "x", RunConfig.from_dict(values))
    assert not list(tmp_path.iterdir())


def test_weights_to_start_from_that_are_missing_leave_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing: has no whole checkpoint"):
        Run.create(tmp_path, "x", tiny(start_from=str(tmp_path / "nothing")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sampler": 3}, "sampler is 3; need an object of keys"),
        ({"sampler": {"stepz": 3}}, "did you mean steps?"),
        ({"model": {"ch": 16}}, r"^changes: model is not the one which the weights"),
    ],
)
def test_changes_of_a_run_are_refused_in_a_sentence(
    changes: dict[str, Any], expected: str, untrained: Run
) -> None:
    with pytest.raises(ValueError, match=expected):
        Run.open(untrained.folder.parent, changes=changes)


def test_pictures_side_by_side_are_the_earlier_ones_until_all_are_there(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(tmp_path, shutil.copytree(trained.folder, tmp_path / "00000-x"))
    folder = run.folder / "samples" / "compare"

    def shown() -> dict[str, bytes]:
        rows = json.loads((folder / "index.json").read_text())["rows"]
        return {row["label"]: (folder / row["file"]).read_bytes() for row in rows}

    run.evaluate([1.0, 0.5])
    before = shown()
    saved = []

    def full(path: Path, pixels: Any) -> None:
        saved.append(path)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_png(path, pixels)

    with monkeypatch.context() as patch:
        patch.setattr("ddsm_ext.run.scoring.save_png", full)
        with pytest.raises(OSError, match="No space left"):
            run.evaluate([0.5])
    assert shown() == before
    run.evaluate([0.5])
    assert shown() == {label: before[label] for label in ("real images", "width 0.5")}
    assert len(list(folder.iterdir())) == 3


def test_a_refused_search_of_the_proxy_leaves_that_of_samples(trained: Run, tmp_path: Path) -> None:
    run = Run.open(tmp_path, shutil.copytree(trained.folder, tmp_path / "00000-x"))
    run.search(budget_macs=0.6)
    files = {path: path.read_bytes() for path in (run.folder / "search").iterdir()}
    # of another batch, whose steps take other times
    other = Run.open(tmp_path, run.folder, {"eval": {"batch_size": 4}})
    for each in (run, other):
        with pytest.raises(ValueError, match="need a larger budget or loss"):
            each.search(method="proxy", budget_macs=0.6, max_quality_loss=1e-12)
    assert {path: path.read_bytes() for path in (run.folder / "search").iterdir()} == files


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"budget_mac": 0.5}, "search.budget_mac; did you mean budget_macs?"),
        ({"budget_macs": 7}, "budget_macs is 7"),
        ({"generations": "x"}, "search.generations is 'x'; need a whole number"),
        ({"widths": [1.0, 1.5]}, "1.5"),
    ],
)
def test_settings_of_a_search_are_refused_before_the_weights_are_read(
    settings: dict[str, Any], expected: str, untrained: Run
) -> None:
    with pytest.raises(ValueError, match=expected):
        untrained.search(**settings)


def test_scores_need_a_strategy_and_two_seeds(untrained: Run) -> None:
    with pytest.raises(ValueError, match=r"^evaluate: 0 strategies, 8 seeds, 1 ranges; need"):
        untrained.evaluate([])
    with pytest.raises(ValueError, match=r"^evaluate: 1 strategies, 1 seeds, 1 ranges; need"):
        untrained.evaluate([1.0], [7])


def test_a_search_keeps_the_scorer(trained: Run) -> None:
    """Statistics of the real images may take longer than all else: another budget needs no new."""
    scorer = trained.scorer()
    trained.search(budget_macs=0.7, widths=[1.0, 0.5])
    assert trained.scorer() is scorer


def test_the_network_is_that_of_the_newest_checkpoint(trained: Run) -> None:
    newest = newest_complete(trained.folder)
    assert newest is not None
    tensors = load_checkpoint(newest).tensors
    for weights in ("ema", "model"):
        state = trained.network(weights).state_dict()
        assert all(torch.equal(state[name], t) for name, t in tensors[weights].items())


def test_a_notebook_shows_the_folder_and_no_settings(untrained: Run) -> None:
    assert str(untrained.folder) in repr(untrained)
    assert "Config" not in repr(untrained)


def test_strategies_are_widths_or_files(untrained: Run) -> None:
    folder, config = untrained.folder, untrained.config
    name, strategy = read_strategy("0.5", folder, config)
    assert (name, strategy.widths) == ("width 0.5", (0.5,))
    assert read_strategy(None, folder, config)[1].widths == (1.0,)
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        read_strategy("nothing.json", folder, config)
    with pytest.raises(ValueError, match="2"):
        read_strategy("2", folder, config)


def test_a_classifier_needs_labels(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    save_png(images / "a.png", torch.zeros(8, 8, 1, dtype=torch.uint8).numpy())
    dataset = load_dataset(DataConfig(source=str(images), split="all"))
    with pytest.raises(ValueError, match="images: its images have no labels"):
        make_classifier(dataset, tmp_path / "c.safetensors")


@pytest.mark.slow
def test_torchs_default_dtype_changes_no_result(tmp_path: Path) -> None:
    def results(name: str) -> tuple[list[Any], dict[str, torch.Tensor]]:
        run = Run.create(tmp_path, name, tiny())
        run.train()
        run.search(budget_macs=0.7)
        images = run.sample(range(3)).images
        scores = [row["frechet"] for row in run.evaluate()["rows"]]
        found = run.strategy
        return [images.tolist(), scores, found.widths, found.cuts], dict(
            run.network("ema").state_dict()
        )

    want, weights = results("float32")
    torch.set_default_dtype(torch.float64)
    try:
        got, same_weights = results("float64")
    finally:
        torch.set_default_dtype(torch.float32)
    assert got == want
    for name, tensor in weights.items():
        assert tensor.dtype == same_weights[name].dtype == torch.float32
        assert torch.equal(tensor, same_weights[name])


def copied(run: Run, root: Path) -> Run:
    shutil.copytree(run.folder, root / run.folder.name)
    return Run.open(root)


def edited(run: Run, old: str, new: str) -> None:
    """Change config.json as a person might, without the digest that shows it."""
    path = run.folder / "config.json"
    config = {**json.loads(path.read_text())}
    del config["digest"]
    text = json.dumps(config)
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"timesteps": 1000', '"timesteps": 1001', r"with betas \[.*, 1000\], now it is .* 1001\]"),
        ('"schedule": "cosine"', '"schedule": "linear"', r"with betas \["),
        ('"beta_end": 0.02', '"beta_end": 0.03', r"with diffusion.beta_end 0.02, now it is 0.03"),
        ('"parameterisation": "v"', '"parameterisation": "x0"', "parameterisation 'v', now"),
        ('"groups": 4', '"groups": 2', r"with model.groups 4, now it is 2; need the same"),
        ('"num_res_blocks": ', '"num_res_blocks": 1', r"with model.num_res_blocks \d, now it is 1"),
    ],
)
def test_weights_are_loaded_with_the_settings_they_were_trained_with(
    trained: Run, tmp_path: Path, old: str, new: str, said: str
) -> None:
    copied(trained, tmp_path)
    edited(Run.open(tmp_path), old, new)
    run = Run.open(tmp_path)
    for load in (run.network, run.train, lambda: run.sample([0]), lambda: run.export(0.5)):
        with pytest.raises(ValueError, match=rf"step-000002: was trained .*{said}"):
            load()


def test_an_export_does_not_write_over_a_run(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    config = (run.folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"00000-tiny is a run folder; need another one"):
        run.export(0.5, out=run.folder)
    assert (run.folder / "config.json").read_bytes() == config


def test_a_runs_own_config_makes_another_run(trained: Run, tmp_path: Path) -> None:
    path = trained.folder / "config.json"
    assert configure(file=path) == trained.config
    path = tmp_path / "config.json"
    path.write_text(
        (trained.folder / "config.json").read_text().replace('"steps": 2', '"steps": 3')
    )
    with pytest.raises(ValueError, match="does not match its own SHA-256"):
        configure(file=path)


def test_images_that_changed_since_training_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "photos"
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 1), dtype=np.uint8)
        save_png(folder / f"{number}.png", pixels)
    config = changed(tiny(), {"data": {"source": str(folder)}, "eval": {"features": "none"}})
    run = Run.create(tmp_path, "x", config)
    run.train()
    assert len(Run.open(tmp_path).dataset) == 6
    assert "not those that it was trained on" not in caplog.text
    (folder / "0.png").unlink()
    assert len(Run.open(tmp_path).dataset) == 5
    assert "the images of photos are not those that it was trained on" in caplog.text
    caplog.clear()
    assert len(Run.open(tmp_path, changes={"data": {"limit": 2}}).dataset) == 2
    assert not caplog.text  # the user's own choice


def test_what_writes_into_a_run_waits_for_nobody(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*") if p.name != ".lock"}
    said = []

    def second() -> None:
        calls: dict[str, Callable[[], object]] = {
            "train": run.train,
            "extend": lambda: run.extend(9),
            "search": run.search,
            "sample": lambda: run.sample([0]),
            "evaluate": lambda: run.evaluate([1.0]),
            "scorer": run.scorer,
            "report": run.report,
            "export": lambda: run.export(0.5),
        }
        for name, call in calls.items():
            with pytest.raises(ValueError, match=f"process {os.getpid()} .* is writing into it"):
                call()
            said.append(name)
        # what is written elsewhere disturbs nobody
        run.sample([0], out=tmp_path / "out")
        run.export(0.5, out=tmp_path / "dense")
        run.tune(0.5, train={"steps": 1})

    with RunLock(run.folder), ThreadPoolExecutor(1) as pool:
        pool.submit(second).result()
    assert len(said) == 8
    after = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*") if p.name != ".lock"}
    assert after == before
