"""search.txt and flag files: the published strategy, other forms, refusals without execution."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest

from ddsm_ext.compat.official_ddsm import official_config
from ddsm_ext.compat.official_strategy import (
    load_official_strategy,
    parse_official_flags,
    parse_official_process,
    parse_official_strategy,
)
from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.sampling.config import SamplerConfig

# The published CIFAR-10 strategy of eval/search.txt between its long constant runs: t 0-265 is 1,
# 266-428 is 0.75, 470-999 is 0.5; counts 1.0: 274, 0.75: 181, 0.5: 534, 0.25: 11.
MIXTURE = (
    "0.5, 0.75, 0.75, 0.75, 0.75, 0.25, 0.75, 0.25, 1, 0.25, 1, 0.5, 1, 0.5, 1, 0.25, 0.25, 0.25, "
    "0.25, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.25, 0.75, 1, 1, 1, 0.25, 1, 0.75, "
    "0.25, 0.75, 0.25, 0.75, 0.5, 0.75"
)
PUBLISHED = "[" + "1, " * 266 + "0.75, " * 163 + MIXTURE + ", 0.5" * 530 + "]"


def test_published_strategy() -> None:
    widths = parse_official_strategy(PUBLISHED)
    assert len(widths) == 1000
    assert {w: widths.count(w) for w in set(widths)} == {1.0: 274, 0.75: 181, 0.5: 534, 0.25: 11}
    assert all(isinstance(w, float) for w in widths)


def test_published_strategy_over_log_snr(tmp_path: Path) -> None:
    path = tmp_path / "search.txt"
    path.write_text(PUBLISHED)
    schedule = make_schedule(DiffusionConfig())
    for source in (path, str(path), PUBLISHED):
        strategy = load_official_strategy(source)
        assert strategy.widths_for(schedule.log_snrs.tolist()) == parse_official_strategy(PUBLISHED)
        assert strategy.origin["file"] == "search.txt"
    # 100 evenly spaced steps meet the same noise levels, so the same widths.
    assert strategy.width_at(schedule.log_snr(100.0)) == 1.0
    assert strategy.width_at(schedule.log_snr(999.0)) == 0.5


def test_several_searches_in_one_file() -> None:
    """The reference appends without a line break."""
    text = "[1, 0.5][0.25, 0.25]\n[1, 1]"
    assert parse_official_strategy(text, index=1) == [0.25, 0.25]
    assert parse_official_strategy(text, index=-1) == [1.0, 1.0]
    with pytest.raises(ValueError, match="holds 3 strategies; need an index"):
        parse_official_strategy(text)
    with pytest.raises(ValueError, match="holds 3 strategies, index is 3"):
        parse_official_strategy(text, index=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found ''; need lists of widths"),
        ("1, 1", "found '1, 1'"),
        ("[1, 0.5", r"found '\[1, 0.5'"),
        ("[]", "the list is empty"),
        ("[1, 1.5]", "the width at t=1 is 1.5; need 0 < width <= 1"),
        ("[0.0]", "the width at t=0 is 0.0"),
        ("[True]", "the width at t=0 is True"),
        ("['1']", "the width at t=0 is '1'"),
        ("[1, print('x')]", "is no list of numbers"),
        ("[__import__('os').mkdir('x')]", "is no list of numbers"),
        ("[" + "-" * 100_000 + "1]", "need widths like"),
        ("[1e999]", "the width at t=0 is inf"),
        ("[np.float64(1.5)]", "the width at t=0 is 1.5"),
        ("[np.float64(np.float64(1))]", "is no list of numbers"),
        ("[np.load(1)]", "is no list of numbers"),
        ("[[1, 0.5]", "found '\\['"),
        ("[1]; [1]", "found ';'"),
    ],
)
def test_bad_text(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "eval", None)
    with pytest.raises(ValueError, match=message) as caught:
        parse_official_strategy(text)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_official_strategy(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        load_official_strategy(tmp_path / "bytes.txt")
    (tmp_path / "large.txt").write_bytes(b"[1]" * 2**21)
    with pytest.raises(ValueError, match="need at most"):
        load_official_strategy(tmp_path / "large.txt")


@pytest.mark.parametrize("name", ["[best] search.txt", "[1, 0.5]", " [1].txt", "search.txt"])
def test_a_file_is_read_whatever_its_name_begins_with(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("\ufeff[1, 1, 0.25]", encoding="utf-8")  # with a byte order mark
    schedule = DiffusionConfig(timesteps=3)
    for source in (name, Path(name)):
        strategy = load_official_strategy(source, diffusion=schedule)
        assert (strategy.widths, strategy.origin["file"]) == ((0.25, 1.0), name)
    with pytest.raises(FileNotFoundError, match="does not exist; need a text file"):
        load_official_strategy(Path("[1, 1, 0.5]"))
    for text in ("[1, 1, 0.5]", "\n [1, 1, 0.5]", "\ufeff[1, 1, 0.5]"):
        assert load_official_strategy(text, diffusion=schedule).widths == (0.5, 1.0)


@pytest.mark.parametrize("count", [100, 999])
def test_a_number_of_widths_that_is_not_the_references_is_said(count: int) -> None:
    text = str([1.0] * count)
    with pytest.warns(UserWarning, match=f"has {count} widths and not the reference's 1000"):
        assert load_official_strategy(text).origin["diffusion"]["timesteps"] == count
    with pytest.raises(ValueError, match=f"has {count} widths, the schedule 1000 timesteps"):
        load_official_strategy(text, diffusion=DiffusionConfig())


def test_length_must_match_a_given_schedule() -> None:
    with pytest.raises(ValueError, match="has 3 widths, the schedule 1000 timesteps"):
        load_official_strategy("[1, 1, 0.5]", diffusion=DiffusionConfig())
    assert load_official_strategy("[1, 1, 0.5]").widths == (0.5, 1.0)


def test_flags_of_the_reference() -> None:
    # Lines of config/slimmable_CIFAR10.txt.
    text = (
        "--T=1000\n--attn=1\n--batch_size=256\n--ch=128\n--ch_mult=1\n--ch_mult=2\n--ch_mult=2\n"
        "--ch_mult=2\n--dropout=0.1\n--noeval\n--img_size=32\n--num_res_blocks=2\n--parallel\n"
    )
    config = parse_official_flags(text)
    assert official_config(config) == official_config({})
    assert parse_official_flags(text + "--slimmable_g16\n")["groups"] == 16
    assert parse_official_flags("--slimmable_g16\n--noslimmable_g16\n")["groups"] == 32
    widths = parse_official_flags(
        "--slimmable_g16\n--candidate_width=0.875\n--min_width=0.5\n// the end"
    )
    assert official_config(widths).widths == (1.0, 0.875, 0.5)
    with pytest.raises(ValueError, match="flag file:1: --ch is 'x'; need an integer"):
        parse_official_flags("--ch=x")
    with pytest.raises(ValueError, match="flag file:2: found 'hello'; need lines like --ch=128"):
        parse_official_flags("\nhello")


def test_the_process_of_a_flag_file() -> None:
    sampler = SamplerConfig(kind="ddpm", clip_denoised=False)
    assert parse_official_process("") == (DiffusionConfig(), sampler)
    # Lines of eval/flagfile_eval.txt with other values
    text = (
        "--T=2000\n--assigned_width=1.0\n--beta_1=0.0002\n--beta_T=0.01\n--log_dir=\n--parallel\n"
        "--mean_type=xstart\n--var_type=fixedsmall\n--warmup=5000\n"
    )
    diffusion, sampler = parse_official_process(text)
    assert diffusion == DiffusionConfig("linear", 2000, 2e-4, 0.01, "x0")
    assert sampler.variance == "fixed_small"
    assert parse_official_process("--beta_T=0.5\n--beta_T=0.03")[0].beta_end == 0.03  # as absl


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--mean_type=xprev", "f:1: --mean_type is 'xprev'; need epsilon or xstart"),
        ("\n--var_type=learned", "f:2: --var_type is 'learned'; need fixedlarge or fixedsmall"),
        ("--beta_T=high", "f:1: --beta_T is 'high'; need a number"),
        ("--beta_T=2", "f: DiffusionConfig: beta_end is 2.0"),
        ("--beta_1=nan", "f: DiffusionConfig: beta_start is nan"),
        ("--T=1", "f: DiffusionConfig: timesteps is 1"),
        ("--T", "f:1: --T is ''; need an integer"),
        ("--beta_T 0.01", "f:1: found '--beta_T 0.01'; need lines like --ch=128"),
        ("--", "f:1: found '--'"),
        ("--T\n--beta_1=0.1", "f:1: --T is '--beta_1=0.1'; need an integer"),
        ("--flagfile=other.txt", "f:1: --flagfile names another file; need its lines in this"),
    ],
)
def test_flags_of_the_process_that_cannot_be_kept_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_official_process(text, source="f")


@pytest.mark.parametrize("join", [", ", ",\n", ",", "][", "]\n["])
def test_lists_joined_otherwise_than_the_reference_does(join: str) -> None:
    text = f"[1, 0.5]{join}[0.25, 1]" if "," in join else f"[1, 0.5{join}0.25, 1]"
    forms = [text, f"[{text}]", f"[{text},]", f"[\n{text}\n]\n"] if "," in join else [text]
    for form in forms:
        assert parse_official_strategy(form, index=0) == [1.0, 0.5]
        assert parse_official_strategy(form, index=-1) == [0.25, 1.0]
        with pytest.raises(ValueError, match="holds 2 strategies"):
            parse_official_strategy(form)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16"])
def test_numbers_as_numpy_shows_them(kind: str) -> None:
    values = [1.0, 0.5, 0.25]
    text = str([getattr(np, kind)(value) for value in values])  # np.float64(1.0) since NumPy 2
    assert parse_official_strategy(text) == values
    assert parse_official_strategy(f"[np.{kind}(1.0), numpy.{kind}(0.5), np.int64(1)]") == [
        1,
        0.5,
        1,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "--T=12\n--ch=64\n--ch_mult=1\n--ch_mult=2\n--beta_T=0.01\n",
        "-T=12\n-ch=64\n-ch_mult=1\n-ch_mult=2\n-beta_T=0.01\n",
        "--T\n12\n-ch\n\n# channels\n 64\n--ch_mult\n1\n--ch_mult\n2\n--parallel\n--beta_T\n0.01",
        "--log_dir\nlogs/a\n--noeval\n--T=12\n--slimmable_g16=false\n--ch=64\n--ch_mult=1\n"
        "--ch_mult=2\n--parallel\n--beta_T=0.01",
    ],
)
def test_flags_in_the_forms_that_absl_reads(text: str) -> None:
    expected = {"T": 12, "ch": 64, "ch_mult": [1, 2], "groups": 32}
    assert parse_official_flags(text) == expected
    assert parse_official_process(text)[0] == DiffusionConfig(timesteps=12, beta_end=0.01)


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("--beta_t=0.01", "beta_T"),
        ("--beta-T=0.01", "beta_T"),
        ("-betaT=0.01", "beta_T"),
        ("--Beta_T\n0.01", "beta_T"),
        ("--Ch=64", "ch"),
        ("--t=100", "T"),
        ("--meantype=xstart", "mean_type"),
        ("--var-type=fixedsmall", "var_type"),
        ("--chmult=1", "ch_mult"),
        ("--slimmable-g16", "slimmable_g16"),
        ("--no_slimmable_g16", "noslimmable_g16"),
    ],
)
def test_a_flag_that_is_almost_a_known_one_is_refused(line: str, known: str) -> None:
    for parse in (parse_official_flags, parse_official_process):
        with pytest.raises(ValueError, match=rf"f:2: --\S+ is no flag .*; need --{known}$"):
            parse(f"--lr=0.1\n{line}", source="f")


@pytest.mark.parametrize("flag", ["min_width", "candidate_width"])
@pytest.mark.parametrize("value", ["nan", "0", "1.5"])
def test_a_width_that_cannot_be_is_refused_by_its_flag(flag: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"width is {value}; need .* as each {flag}"):
        official_config(parse_official_flags(f"--{flag}={value}"))
