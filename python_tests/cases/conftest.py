"""Each case has a folder of its own to work in, the command line, and a trained run to begin with.

The cases are inputs from public reports that broke this package or others like it; a case asks for
what users expect, not for one way of getting there. The rooms' own tests say more of each kind.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cases.made import Said, labelled, train_line

from ddsm_ext.cli.main import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ddsm(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`ddsm("train", ...)` runs a command, which shows no traceback."""

    def run(*words: str) -> Said:
        capsys.readouterr()
        code = main(list(words))
        said = Said(code, *capsys.readouterr())
        assert "Traceback" not in said.err
        return said

    return run


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(train_line(labelled("lab"))) == 0
    return place


@pytest.fixture
def trained(trained_once: Path, here: Path) -> Path:
    """A run of a few steps on the images of lab/, as the command leaves it here."""
    shutil.copytree(trained_once, here, dirs_exist_ok=True)
    return Path("runs/00000-lab")
