"""`ddsm tune` and `ddsm train --extend`, tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli.commands import TINY, sets

from ddsm_ext.cli.main import main
from ddsm_ext.io.checkpoint import list_checkpoints
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
