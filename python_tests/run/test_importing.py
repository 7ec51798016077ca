"""Runs made of weights of others: what their flags say is in the configuration."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from compat.official_weights import formula_weights
from safetensors.torch import save_file

from ddsm_ext.compat.official_ddsm import official_state_dict_shapes
from ddsm_ext.run import configure
from ddsm_ext.run.importing import import_official, import_shards

NETWORK = {"T": 12, "ch": 32, "ch_mult": [1, 1], "attn": [1], "num_res_blocks": 1, "groups": 16,
           "image_size": 8}  # fmt: skip
FLAGS = """--T=12
--ch=32
--ch_mult=1
--ch_mult=1
--attn=1
--num_res_blocks=1
--img_size=8
--slimmable_g16
--beta_1=0.01
--beta_T=0.9
--lr=0.0002
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = formula_weights(official_state_dict_shapes(NETWORK))
    torch.save({"ema_model": state, "net_model": state, "step": 3}, tmp_path / "ckpt.pt")
    return tmp_path / "ckpt.pt"


def imported(checkpoint: Path, flags: str, **more: Any) -> dict[str, Any]:
    file = checkpoint.with_name("flagfile.txt")
    file.write_text(flags)
    run = import_official(checkpoint, checkpoint.parent / "runs", flags_file=file, **more)
    return json.loads((run / "config.json").read_text())


def test_flags_of_network_process_and_sampler_are_kept(checkpoint: Path) -> None:
    more = "--mean_type=xstart\n--var_type=fixedsmall\n--candidate_width=0.5\n--min_width=0.5\n"
    config = imported(checkpoint, FLAGS + more)
    assert config["diffusion"] == {
        "schedule": "linear", "timesteps": 12, "beta_start": 0.01, "beta_end": 0.9,
        "parameterisation": "x0",
    }  # fmt: skip
    assert (config["sampler"]["kind"], config["sampler"]["variance"]) == ("ddpm", "fixed_small")
    assert config["model"]["widths"] == [1.0, 0.5]
    assert imported(checkpoint, FLAGS)["diffusion"]["parameterisation"] == "epsilon"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--mean_type=xprev", "flagfile.txt:12: --mean_type is 'xprev'"),
        ("--beta_T=0", "flagfile.txt: DiffusionConfig: beta_end is 0.0"),
        ("--candidate_width=1.5", "flagfile.txt: width is 1.5"),
        ("--ch=40", "flagfile.txt: .*ch is 40"),
    ],
)
def test_flags_that_cannot_be_kept_are_refused(line: str, message: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=message):
        imported(checkpoint, FLAGS + line)
    assert not checkpoint.with_name("runs").exists()


def test_weights_in_files_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file({"head.bias": torch.tensor([1.0, math.nan])}, tmp_path / "a.safetensors")
    about = {"config": configure("digits").to_dict()}
    index = tmp_path / "w.safetensors.index.json"
    index.write_text(json.dumps({"metadata": about, "weight_map": {"head.bias": "a.safetensors"}}))
    with pytest.raises(ValueError, match=r"w\.safetensors\.index\.json: head\.bias has values"):
        import_shards(index, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
