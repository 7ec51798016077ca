"""`ddsm convert`: which options belong to which kind of file, and that none is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddsm_ext.cli.main import main
from ddsm_ext.compat.official_ddsm import official_state_dict_shapes
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.run import configure
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


@pytest.mark.parametrize("name", ["search", "search.log", "search.txt.bak", "search.TXT", "s.pt"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n "])
def test_a_search_is_known_by_its_content(name: str, start: str) -> None:
    Path(name).write_text(f"{start}{[0.5] * 1000}", encoding="utf-8")
    assert main(["convert", name, "--out", "s.json"]) == 0
    assert Strategy.load("s.json").widths == (0.5,)


def test_a_checkpoint_that_begins_as_a_list_would(capsys: pytest.CaptureFixture[str]) -> None:
    # safetensors begin with the length of their header: 0x5b is "["
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x5B)
    Path("w.safetensors").write_bytes(b"[" + bytes(7) + header + bytes(4))
    assert main(["convert", "w.safetensors"]) == 2
    assert "need exactly the" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("my weights", "my-weights"),
        ("ema.v2", "ema.v2"),
        ("(best) of 3", "best-of-3"),
        ("\u0432\u0435\u0441\u0430", "run"),
    ],
)
def test_a_run_of_an_index_is_named_as_its_file_allows(name: str, run: str) -> None:
    config = configure("digits")
    state = SlimmableNetwork(config.model).state_dict()
    save_file(state, "a.safetensors")
    content = {
        "metadata": {"config": config.to_dict()},
        "weight_map": dict.fromkeys(state, "a.safetensors"),
    }
    Path(f"{name}.safetensors.index.json").write_text(json.dumps(content))
    assert main(["convert", f"{name}.safetensors.index.json"]) == 0
    assert [path.name for path in Path("runs").glob("0*")] == [f"00000-{run}"]


def test_the_network_of_a_checkpoint_is_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"T": 12, "ch": 32, "ch_mult": [1], "attn": [0], "num_res_blocks": 1}
    Path("f.txt").write_text("--T=12\n--ch=32\n--ch_mult=1\n--attn=0\n--num_res_blocks=1")
    shapes = official_state_dict_shapes(flags)
    state = {name: torch.ones(shape) for name, shape in shapes.items()}
    other = {name: 2 * tensor for name, tensor in state.items()}
    torch.save({"model": state, "ema": other, "opt": {}, "step": 4}, "both.pt")
    assert main(["convert", "both.pt", "--flags", "f.txt"]) == 2
    assert "weights, 'model' and 'ema'; need the name of one as group" in capsys.readouterr().err
    assert not Path("runs").exists()
    for group, value in (("model", 1.0), ("ema", 2.0)):
        assert main(["convert", "both.pt", "--flags", "f.txt", "--group", group]) == 0
        (file,) = Path(capsys.readouterr().out.strip()).glob("checkpoints/*/ema.safetensors")
        assert (load_file(file)["head.bias"] == value).all()
    assert main(["convert", "both.pt", "--flags", "f.txt", "--group", "emma"]) == 2
    assert "'model' and 'ema'" in capsys.readouterr().err
