"""Cases of checkpoints and search results of the reference code, and of weights of others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cases.made import Said, convert_line, official_state

from ddsm_ext.sampling.strategy import Strategy

Ddsm = Callable[..., Said]
SEARCHED = str([1.0] * 500 + [0.5] * 500)


def test_flags_of_the_process_ignored(ddsm: Ddsm) -> None:
    """V01: EnVision-Research/DDSM main.py:181, w86763777/pytorch-ddpm#9 (kind)."""
    state = official_state()
    content = {"ema_model": state, "net_model": state}
    said = ddsm(*convert_line(content, "--beta_1=0.0002", "--beta_T=0.01"))
    assert said.code == 0, said.err
    process = json.loads((said.path / "config.json").read_text())["diffusion"]
    assert (process["beta_start"], process["beta_end"]) == (0.0002, 0.01)


def test_prefixes_of_wrappers(ddsm: Ddsm) -> None:
    """V02: pytorch/pytorch#94575, huggingface/pytorch-image-models#2003."""
    content = {f"_orig_mod.{name}": tensor for name, tensor in official_state().items()}
    said = ddsm(*convert_line(content))
    assert said.code == 0, said.err


def test_numbers_of_numpy_beside_weights(ddsm: Ddsm) -> None:
    """V03: pytorch/pytorch#138985, mlfoundations/open_clip#1078."""
    state = official_state()
    content = {"ema_model": state, "net_model": state, "loss": np.float64(0.1)}
    said = ddsm(*convert_line(content))
    assert said.code == 0, said.err


def test_two_searches_in_one_file(ddsm: Ddsm) -> None:
    """V04: EnVision-Research/DDSM main.py:574, which opens search.txt to append."""
    Path("search.txt").write_text(SEARCHED + str([1.0] * 1000))
    line = ["convert", "search.txt", "--out", "s.json"]
    refused = ddsm(*line)
    assert refused.code == 2
    assert "holds 2 strategies; need an index" in refused.err
    assert ddsm(*line, "--index", "1").code == 0
    assert Strategy.load("s.json").widths == (1.0,)


def test_weights_that_are_not_finite(ddsm: Ddsm) -> None:
    """V05: sampling would fail later; training saves none such."""
    said = ddsm(*convert_line({k: v * math.nan for k, v in official_state().items()}))
    assert said.code == 2
    assert "finite" in said.err
    assert not Path("runs").exists()


def test_a_path_taken_for_text(ddsm: Ddsm) -> None:
    """V06: a name that begins as a list does."""
    Path("[best] search.txt").write_text(SEARCHED)
    said = ddsm("convert", "[best] search.txt", "--out", "s.json")
    assert said.code == 0, said.err
    assert Strategy.load("s.json").widths == (0.5, 1.0)
