"""Runs made of weights of others: what their flags say is in the configuration."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compat.official_weights import formula_weights
from safetensors.torch import save_file
from torch import Tensor

from ddsm_ext.compat.edm import edm_state_dict_shapes
from ddsm_ext.compat.official_ddsm import official_state_dict_shapes
from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.run import Run, configure
from ddsm_ext.run.compose import load_network
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.folder import run_config
from ddsm_ext.run.importing import import_edm, import_official, import_shards

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
    said = {
        "schedule": "linear", "timesteps": 12, "beta_start": 0.01, "beta_end": 0.9,
        "parameterisation": "x0",
    }  # fmt: skip
    assert config["diffusion"] == DiffusionConfig(**said).to_dict()
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


CONFIG = configure("digits").to_dict()


def network_weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    shapes = SlimmableNetwork(configure("digits").model).state_dict()
    return {name: torch.rand(tensor.shape) for name, tensor in shapes.items()}


def written(folder: Path, state: dict[str, Tensor], **about: Any) -> Path:
    """An index of two files."""
    files = {name: f"{i % 2}.safetensors" for i, name in enumerate(state)}
    for file in set(files.values()):
        save_file({name: state[name] for name in state if files[name] == file}, folder / file)
    index = folder / "w.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"config": CONFIG, **about}, "weight_map": files}))
    return index


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.module.", "ema_model."])
def test_weights_in_files_become_a_run_that_loads(prefix: str, tmp_path: Path) -> None:
    expected = network_weights()
    state = {f"{prefix}{name}": tensor.half() for name, tensor in expected.items()}
    if prefix == "ema_model.":
        state |= {f"online_model.{name}": tensor for name, tensor in expected.items()}
        with pytest.raises(ValueError, match="holds 2 sets of the network's weights"):
            import_shards(written(tmp_path, state), tmp_path / "runs")
    run = import_shards(written(tmp_path, state, step=7), tmp_path / "runs", group="ema_model"
                        if prefix == "ema_model." else "")  # fmt: skip
    assert [path.name for path in run.glob("checkpoints/step-*")] == ["step-000007"]
    loaded = load_network(run, RunConfig.from_dict(run_config(run)), torch.device("cpu"))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name].half().float()), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"head.bias": s["head.bias"] * math.nan}), "head.bias has values that"),
        (lambda s: s.pop("head.bias"), "lacks 'head.bias'; need exactly"),
        (lambda s: s.update(extra=torch.zeros(2)), "has an unknown 'extra'"),
        (lambda s: s.update({"head.bias": torch.zeros(3)}), r"head.bias has shape \[3\]"),
        (
            lambda s: s.update({"head.bias": s["head.bias"].to(torch.complex64)}),
            "head.bias is torch.complex64; need floating-point",
        ),
        (lambda s: s.update({"head.bias": s["head.bias"].int()}), "head.bias is torch.int32"),
        (lambda s: s.clear(), "is empty; need a state dict"),
    ],
)
def test_weights_that_are_not_the_networks_are_refused(
    change: Any, message: str, tmp_path: Path
) -> None:
    state = network_weights()
    change(state)
    with pytest.raises(ValueError, match=rf"w\.safetensors\.index\.json:? {message}"):
        import_shards(written(tmp_path, state), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("about", "message"),
    [
        *(({"step": step}, "step in its metadata is") for step in
          (None, "abc", "7", [1], -1, 1.5, True, 1e300, 10**30)),
        *(({"config": config}, "config in its metadata is") for config in
          (None, "x", json.dumps(CONFIG), [1], {"model": None}, {**CONFIG, "train": "x"})),
        ({"config": {}}, "model.image_size is missing"),
        ({"config": {**CONFIG, "modell": {}}}, "unknown section 'modell'"),
    ],
)  # fmt: skip
def test_metadata_of_another_kind_are_refused(
    about: dict[str, Any], message: str, tmp_path: Path
) -> None:
    index = written(tmp_path, network_weights(), **about)
    with pytest.raises((ValueError, TypeError), match=rf"index\.json: {message}"):
        import_shards(index, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("section", ["model", "diffusion"])
def test_an_index_decides_network_and_process(section: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{section} is what the index decides; need none"):
        import_shards(tmp_path / "x.safetensors.index.json", tmp_path, changes={section: {}})


def test_imported_weights_are_loaded_with_their_own_process_alone(checkpoint: Path) -> None:
    file = checkpoint.with_name("flagfile.txt")
    file.write_text(FLAGS)
    run = import_official(checkpoint, checkpoint.parent / "runs", flags_file=file)
    config = RunConfig.from_dict(run_config(run))
    load_network(run, config, torch.device("cpu"))
    other = replace(config, diffusion=replace(config.diffusion, beta_end=0.5))
    with pytest.raises(ValueError, match=r"trained with betas \[.*need the same"):
        load_network(run, other, torch.device("cpu"))


def test_an_import_that_fails_leaves_no_run(checkpoint: Path, monkeypatch: Any) -> None:
    root = checkpoint.parent / "runs"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("ddsm_ext.io.checkpoint.write_synced", full)
        with pytest.raises(OSError, match="No space left"):
            imported(checkpoint, FLAGS)
    assert list(root.iterdir()) == []
    imported(checkpoint, FLAGS)
    assert [path.name for path in root.iterdir()] == ["00000-official"]


EDM_ARGUMENTS = {
    "cls": "SongUNet", "img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 3,
    "augment_dim": 9, "model_channels": 32, "channel_mult": [1, 2], "channel_mult_emb": 4,
    "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0,
}  # fmt: skip


def test_weights_of_edm_become_a_run_that_samples(tmp_path: Path) -> None:
    save_file(formula_weights(edm_state_dict_shapes(EDM_ARGUMENTS)), tmp_path / "edm.safetensors")
    (tmp_path / "arguments.json").write_text(json.dumps({**EDM_ARGUMENTS, "precond": "ve"}))
    how = {"flags_file": tmp_path / "arguments.json", "root": tmp_path / "runs"}
    folder = import_edm(tmp_path / "edm.safetensors", **how)
    config = Run.open(tmp_path / "runs", folder).config
    assert (config.model.family, config.model.label_count) == ("song-unet", 3)
    assert (config.diffusion.schedule, config.diffusion.parameterisation) == ("edm", "ve")
    assert config.diffusion.sigma_max == 100.0
    made = Run.open(tmp_path / "runs", folder).sample(range(3))
    assert made.images.shape == (3, 8, 8, 1)
    assert made.labels is not None
    assert made.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**EDM_ARGUMENTS, "precond": "edn"}, r"arguments.json: precond is 'edn'.*did you mean"),
        ({**EDM_ARGUMENTS, "cls": "UNet"}, "cls is 'UNet'; need 'SongUNet' or 'DhariwalUNet'"),
        ([1], r"arguments.json: holds \[1\]; need an object"),
    ],
)
def test_other_arguments_of_edm_are_refused(arguments: Any, message: str, tmp_path: Path) -> None:
    save_file(formula_weights(edm_state_dict_shapes(EDM_ARGUMENTS)), tmp_path / "edm.safetensors")
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    with pytest.raises(ValueError, match=message):
        import_edm(tmp_path / "edm.safetensors", tmp_path, flags_file=tmp_path / "arguments.json")
    (tmp_path / "edm.pkl").write_bytes(b"\x80\x04")
    (tmp_path / "arguments.json").write_text(json.dumps(EDM_ARGUMENTS))
    with pytest.raises(ValueError, match="is a pickle of EDM's code, which is not run here"):
        import_edm(tmp_path / "edm.pkl", tmp_path, flags_file=tmp_path / "arguments.json")
