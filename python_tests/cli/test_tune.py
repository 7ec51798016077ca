"""`ddsm tune` and `ddsm train --extend`, tiny."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
from cli.commands import TINY, sets

from ddsm_ext.cli import quickstart
from ddsm_ext.cli.main import main
from ddsm_ext.io.checkpoint import list_checkpoints
from ddsm_ext.run import Run
from ddsm_ext.sampling.strategy import Strategy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tune")
    assert main(["train", "--root", str(root), *sets(TINY)]) == 0
    return root / "00000-digits"


@pytest.fixture
def trained(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / made.name)


def printed(capsys: pytest.CaptureFixture[str]) -> Path:
    return Path(capsys.readouterr().out.strip())


def test_a_tuned_run_serves_the_commands(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(trained.parent)]
    assert main(["tune", *root, "--strategy", "0.5", "--steps", "2"]) == 0
    tuned = printed(capsys)
    assert tuned == trained.parent / "00001-digits-tune"
    assert list_checkpoints(tuned)[-1].name == "step-000002"
    command = json.loads((tuned / "commands.jsonl").read_text().splitlines()[0])["command"]
    assert command.startswith("ddsm")
    assert main(["tune", "--run", str(trained), "--strategy", "0.5", "--steps", "2"]) == 0
    assert printed(capsys) == tuned  # the same command continues
    assert main(["sample", "--run", str(tuned), "--seeds", "0-1"]) == 0
    assert main(["eval", "--run", str(tuned)]) == 0
    rows = json.loads((tuned / "metrics.json").read_text())["rows"]
    assert [row["widths"] for row in rows if row["kind"] == "strategy"] == [[0.5]]
    assert main(["report", "--run", str(tuned)]) == 0


def test_a_tuned_run_knows_the_width_of_each_step(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained.parent / "late.json"
    Strategy((0.5, 1.0), (0.0,)).save(path)
    assert main(["tune", "--run", str(trained), "--strategy", str(path), "--steps", "1"]) == 0
    steps = json.loads((printed(capsys) / "search" / "steps.json").read_text())
    assert steps["widths"] == [1.0 if level >= 0 else 0.5 for level in steps["log_snr"]]
    assert set(steps["widths"]) == {0.5, 1.0}


def test_the_strategy_of_a_search_is_tuned_for(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--run", str(trained)]) == 0
    capsys.readouterr()
    assert main(["tune", str(trained), "--steps", "2"]) == 0
    tuned = printed(capsys)
    chosen = (Strategy.load(run / "search" / "strategy.json") for run in (trained, tuned))
    assert len(set(chosen)) == 1
    file = str(trained / "search" / "strategy.json")
    assert main(["tune", str(trained), "--steps", "2", "--strategy", file]) == 0
    assert printed(capsys) == tuned


@pytest.mark.parametrize("left", [["step-000003"], []])
def test_the_same_command_without_a_run_continues_what_it_began(
    trained: Path, left: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(trained.parent)]
    assert main(["search", *root, "--method", "proxy"]) == 0
    command = ["tune", *root, "--steps", "6", "--set", "train.checkpoint_every=3"]
    capsys.readouterr()
    assert main(command) == 0
    tuned = printed(capsys)
    for checkpoint in list_checkpoints(tuned):  # as if it had been killed earlier
        if checkpoint.name not in left:
            shutil.rmtree(checkpoint)
    assert main(command) == 0
    assert printed(capsys) == tuned
    assert list_checkpoints(tuned)[-1].name == "step-000006"
    assert len(list(trained.parent.iterdir())) == 2

    # a search of the tuned run that found another strategy begins a second round
    Strategy((0.5, 1.0), (1.25,)).save(tuned / "search" / "strategy.json")
    for _ in range(2):
        assert main(command) == 0
        second = printed(capsys)
        assert second.name == "00002-digits-tune"
        config = json.loads((second / "config.json").read_text())
        assert config["tune"]["origin"] == tuned.name


def test_a_tuned_run_is_given_more_steps(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = ["tune", "--root", str(trained.parent), "--strategy", "0.5", "--steps", "2"]
    assert main([*tune, "--extend", "4"]) == 2
    assert "holds no run 'digits-tune' of these settings" in capsys.readouterr().err
    assert main(tune) == 0
    tuned = printed(capsys)
    assert main([*tune, "--extend", "4", "--dry-run"]) == 0
    assert "for 4 steps of 8 images" in capsys.readouterr().out
    for more in (["--extend", "4"], []):
        assert main([*tune, *more]) == 0
        assert printed(capsys) == tuned
    assert list_checkpoints(tuned)[-1].name == "step-000004"


def test_the_run_of_a_quickstart_is_extended_by_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quickstart.settings(argparse.Namespace(fast=False, set=TINY))
    run = Run.create(tmp_path, "quickstart", config)
    run.train()
    command = ["train", "--root", str(tmp_path), "--name", "quickstart", *sets(TINY)]
    assert main([*command, "--extend", "5"]) == 0
    assert printed(capsys) == run.folder
    assert Run.create(tmp_path, "quickstart", config).config.train.steps == 5


def test_a_run_in_this_folder_or_behind_a_link_is_tuned_beside_it(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "best").symlink_to(trained)
    tune = ["tune", "--strategy", "0.5", "--steps", "2"]
    assert main([*tune, str(tmp_path / "links" / "best")]) == 0
    tuned = printed(capsys)
    monkeypatch.chdir(trained)
    assert main([*tune, "."]) == 0
    assert printed(capsys).resolve() == tuned.resolve() == trained.parent / "00001-digits-tune"
    assert [path.name for path in (tmp_path / "links").iterdir()] == ["best"]
    # it also goes on, from its origin, where it is named by a link
    shutil.rmtree(tuned / "checkpoints")
    (tmp_path / "links" / "tuned").symlink_to(tuned)
    assert Run.open(tmp_path, tmp_path / "links" / "tuned").train().finished


def test_a_dry_run_of_tuning_writes_nothing(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(trained.parent.rglob("*"))
    command = ["tune", str(trained), "--strategy", "0.5", "--set", "tune.sandwich_share=0.3"]
    assert main([*command, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for part in ('"origin": "00000-digits"', '"sandwich_share": 0.3', "for 1 steps of 8", "time:"):
        assert part in text
    assert sorted(trained.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tune"], "has no strategy; need ddsm search first, a file or a width"),
        (["tune", "--strategy", "3"], "3"),
        (["tune", "--strategy", "nothing.json"], "nothing.json"),
        (["tune", "--strategy", "0.5", "--steps", "0"], "steps is 0"),
        (["tune", "--strategy", "0.5", "--set", "model.ch=16"], "model belongs to the weights"),
        (["tune", "--strategy", "0.5", "--set", "train.batch_size=1000000"], "train.batch_size"),
        (["tune", "0", "--run", "0"], "need one"),
        (["train", "--extend", "9"], "holds no run 'digits' of these settings"),
        (["train", "--extend", "2", *sets(TINY)], "steps is 2, the run has 3; need more"),
        (["train", "--extend", "9", "--new"], "not allowed with"),
    ],
)
def test_refusals(
    trained: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(trained.parent.rglob("*"))
    assert main([*arguments, "--root", str(trained.parent)]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert sorted(trained.parent.rglob("*")) == before


def test_an_extended_run_goes_on_by_either_command(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--root", str(trained.parent), *sets(TINY)]
    assert main([*train, "--extend", "6", "--dry-run"]) == 0
    assert "for 6 steps of 8 images" in capsys.readouterr().out
    assert json.loads((trained / "config.json").read_text())["train"]["steps"] == 3
    for more in (["--extend", "6"], [], ["--extend", "6"]):
        assert main([*train, *more]) == 0
        assert printed(capsys) == trained
    assert [path.name for path in trained.parent.iterdir()] == [trained.name]
    assert list_checkpoints(trained)[-1].name == "step-000006"
    steps = [json.loads(row)["step"] for row in (trained / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
