"""`Run`: what it refuses, and that it does so before anything is written; what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset
from ddsm_ext.data.images import save_png
from ddsm_ext.io.checkpoint import load_checkpoint, newest_complete
from ddsm_ext.run import Run, RunConfig, configure
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
