"""`ddsm convert`: which options belong to which kind of file, and that none is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddsm_ext.cli.main import main
from ddsm_ext.sampling.strategy import Strategy


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("ckpt.pt", "w.safetensors.index.json"):
        Path(name).write_bytes(b"")
    return tmp_path


def search_file(*searches: list[float], name: str = "search.txt") -> str:
    Path(name).write_text("".join(map(str, searches)))  # as the reference appends them
    return name


def test_one_of_several_searches_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    name = search_file([1.0] * 1000, [0.5] * 1000, name="[best] search.txt")
    assert main(["convert", name]) == 2
    assert "holds 2 strategies; need an index to choose one" in capsys.readouterr().err
    for index, width in (("0", 1.0), ("1", 0.5), ("-1", 0.5)):
        assert main(["convert", name, "--index", index, "--out", "s.json"]) == 0
        assert Strategy.load("s.json").widths == (width,)
    assert main(["convert", name, "--index", "2"]) == 2
    assert "index is 2; need one of them" in capsys.readouterr().err


def test_the_flag_file_says_at_which_noise_a_search_changes_its_width(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = search_file([1.0] * 500 + [0.5] * 500)
    Path("flagfile.txt").write_text("--T=1000\n--beta_T=0.01\n")
    # halfway between the log-SNRs of t = 499 and 500: alpha-bar is the product of 1 - beta
    for flags, cut in (([], -2.467), (["--flags", "flagfile.txt"], -0.969)):
        assert main(["convert", name, "--out", "s.json", *flags]) == 0
        assert Strategy.load("s.json").cuts == pytest.approx((cut,), abs=1e-3)
    Path("flagfile.txt").write_text("--T=500\n--beta_T=0.04\n")
    assert main(["convert", name, "--flags", "flagfile.txt"]) == 2
    assert "has 1000 widths, the schedule 500 timesteps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("search.txt", ["--set", "train.steps=3"]),
        ("search.txt", ["--groups", "16"]),
        ("search.txt", ["--group", "net_model"]),
        ("search.txt", ["--name", "x"]),
        ("search.txt", ["--root", "r"]),
        ("ckpt.pt", ["--index", "0"]),
        ("ckpt.pt", ["--out", "s.json"]),
        ("w.safetensors.index.json", ["--flags", "f.txt"]),
        ("w.safetensors.index.json", ["--out", "s.json"]),
    ],
)
def test_an_option_of_another_kind_of_file_is_refused(
    source: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    search_file([1.0] * 1000)
    before = sorted(Path().iterdir())
    assert main(["convert", source, *options]) == 2
    assert f"{options[0]} is of no use for {source}, a" in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before
