"""EDM's networks: outputs and gradients of the reference code, names, refusals.

Numbers of EDM are read from the shared files and nowhere else: its licence keeps them from here.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compat.official_weights import formula_weights
from compat.openai_goldens import read, relative
from safetensors.torch import save_file
from torch import Tensor

from ddsm_ext.compat import edm
from ddsm_ext.compat.edm import (
    edm_config,
    edm_state_dict_shapes,
    load_edm,
    to_edm_state_dict,
)
from ddsm_ext.graph import parameter_count
from ddsm_ext.models import DhariwalUNetConfig, SlimmableNetwork, SongUNetConfig, preset
from ddsm_ext.runtime.runner import StepRunner

CASES = ("edm_ddpmpp", "edm_ncsnpp", "edm_dhariwal")
WIDTHS = (1.0, 0.5)  # that each file holds
SONG = {"cls": "SongUNet", "img_resolution": 16, "in_channels": 3, "out_channels": 3,
        "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1,
        "attn_resolutions": [8]}  # fmt: skip
NCSN = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1]}  # fmt: skip
DHARIWAL = {**SONG, "cls": "DhariwalUNet", "model_channels": 64, "label_dim": 5}


def weights(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """By the formula over all parameters; frequencies are 16 sin(1.3 i + .5)."""
    buffers = ("map_noise.freqs", "resample_filter")
    state = formula_weights({n: s for n, s in shapes.items() if not n.endswith(buffers)}, dtype)
    if "map_noise.freqs" in shapes:
        i = np.arange(*shapes["map_noise.freqs"])
        state["map_noise.freqs"] = torch.from_numpy(16 * np.sin(1.3 * i + 0.5)).to(dtype)
    return state


@lru_cache
def loaded(name: str) -> tuple[dict[str, Any], dict[str, Any], SlimmableNetwork]:
    data = read(name)
    config = json.loads(str(data["config"]))
    state = weights(edm_state_dict_shapes(config), torch.float64)
    return data, config, load_edm(state, config)


def group_like_the_file(net: SlimmableNetwork, width: float) -> None:
    """Give norms min(32, c / 4) groups of their active channels.

    So has the file's narrow network; ours keeps the full width's channels a group.
    """
    counts = net.config.counts(width)
    for node in net.graph.nodes:
        if node.op == "norm":
            c = counts[node.index]
            net.layer(node.name).channels_per_group = c // min(32, c // 4)


class Golden:
    """A golden file, a copy of its network, and what that is called with."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.data, self.config, net = loaded(name)
        self.net = copy.deepcopy(net).to(dtype)
        self.x = torch.from_numpy(self.data["x"]).to(dtype)
        self.t = torch.from_numpy(self.data["noise_labels"])
        given = {key: torch.from_numpy(self.data[key]) for key in self.data if "_labels" in key}
        self.y = given["class_labels"].argmax(1) if "class_labels" in given else None
        self.augment = given.get("augment_labels")

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.data[key])

    def at(self, key: str, width: float) -> Tensor:
        return self[key if width == 1.0 else f"{key}_{width:g}"]

    def __call__(self, width: float, **more: bool) -> Tensor:
        return self.net(self.x, self.t, width, self.y, augment=self.augment, **more)


@pytest.mark.parametrize("name", CASES)
def test_names_shapes_and_parameter_counts(name: str) -> None:
    golden = Golden(name)
    expected = json.loads(str(golden.data["state_shapes"]))
    shapes = edm_state_dict_shapes(golden.config)
    assert shapes == {key: tuple(shape) for key, shape in expected.items()}
    # Ours has a row of its own for "no class", where EDM has zeros.
    null = 4 * golden.net.config.ch if name == "edm_dhariwal" else 0
    assert parameter_count(golden.net.config) == golden["params"].item() + null
    assert sum(p.numel() for p in golden.net.parameters()) == golden["params"].item() + null


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", CASES)
def test_outputs_of_the_modules(name: str, dtype: torch.dtype, limit: float) -> None:
    golden = Golden(name, dtype)
    for width in WIDTHS:
        group_like_the_file(golden.net, width)
        assert relative(golden(width).detach(), golden.at("out", width)) < limit


@pytest.mark.parametrize("name", CASES)
def test_outputs_of_dense_exports(name: str) -> None:
    golden = Golden(name)
    for width in WIDTHS:
        dense = golden.net.export_subnet(width)
        for module in dense.modules():
            if isinstance(module, torch.nn.GroupNorm):  # see `group_like_the_file`
                module.num_groups = min(32, module.num_channels // 4)
        with torch.no_grad():
            y = dense(golden.x, golden.t, golden.y, golden.augment)
        assert relative(y, golden.at("out", width)) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_embedding_of_the_noise(name: str) -> None:
    """The file holds it before EDM swaps its halves."""
    golden = Golden(name)
    node = next(node for node in golden.net.graph.nodes if node.op == "sinusoid")
    found: list[Tensor] = []
    layer = golden.net.layer("time_embedding.linear1")
    layer.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    golden.augment = None
    golden.y = None if golden.y is None else torch.full_like(golden.y, 5)
    if name == "edm_ncsnpp":
        golden.net.layer("time_embedding.label").weight.data[5] = 0
    golden(1.0)
    expected = golden["noise_embedding"]
    swapped = expected.unflatten(1, (2, -1)).flip(1).flatten(1)
    torch.testing.assert_close(found[0], swapped if node.swapped else expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_compiled_steps_without_augmentation(name: str) -> None:
    """The modules agree with the file; here steps agree with them, as the file is augmented."""
    golden = Golden(name, torch.float32)
    exact = copy.deepcopy(golden.net).double()
    runner = StepRunner(golden.net)
    assert runner.reason_against(torch.float32, golden.x.device) is None
    for width in (1.0, 0.75, 0.5, 0.25):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")  # running as the modules would warn
            y = golden.net(golden.x, golden.t, width, golden.y)
            assert torch.equal(runner(golden.x, golden.t, width, golden.y), y)
            expected = exact.run_modules(golden.x.double(), golden.t, width, golden.y)
        assert relative(y, expected) < 1e-4
    if golden.augment is None:
        assert relative(golden.net(golden.x, golden.t, 1.0, golden.y), golden["out"]) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_steps_err_no_more_than_the_modules(name: str) -> None:
    golden = Golden(name, torch.bfloat16)
    exact = copy.deepcopy(golden.net).double()
    assert StepRunner(golden.net).reason_against(torch.bfloat16, golden.x.device) is None
    errors = []
    for width in (1.0, 0.75, 0.5, 0.25):
        with torch.no_grad():
            expected = exact.run_modules(golden.x.double(), golden.t, width, golden.y)
            modules = golden.net.run_modules(golden.x, golden.t, width, golden.y)
            steps = golden.net(golden.x, golden.t, width, golden.y)
        assert steps.dtype == torch.bfloat16
        errors.append([(y.double() - expected).norm().item() for y in (steps, modules)])
    ours, theirs = (math.hypot(*column) for column in zip(*errors, strict=True))
    assert ours <= 1.25 * theirs


def reference_norms(golden: Golden) -> dict[str, float]:
    """2-norms of all gradients by EDM's names, whose parameters hold several of ours."""
    gradients = copy.deepcopy(golden.net)
    with torch.no_grad():
        for ours, theirs in zip(gradients.parameters(), golden.net.parameters(), strict=True):
            ours.copy_(theirs.grad)
    state = {}
    for fused in edm._fused(gradients.config):
        for suffix in fused.layers[0].suffixes:
            parts = [gradients.get_parameter(f"{one.name}.{suffix}") for one in fused.layers]
            state[f"{fused.name}.{suffix}"] = fused.joined(parts)
    for node in gradients.graph.nodes:
        if node.op == "embed":  # of rows: W sqrt(K) + b each, or W
            table = gradients.get_parameter(f"{node.name}.weight")
            song = isinstance(gradients.config, SongUNetConfig)
            state["map_label.weight"] = table[:-1].t() * (math.sqrt(len(table) - 1) if song else 1)
            if song:
                state["map_label.bias"] = table.sum(0)
    return {name: gradient.double().norm().item() for name, gradient in state.items()}


@pytest.mark.parametrize(
    ("dtype", "limit", "accumulate"),
    [(torch.float32, 1e-3, False), (torch.float64, 1e-9, False), (torch.float64, 1e-9, True)],
)
@pytest.mark.parametrize("name", CASES)
def test_gradient_norms(name: str, dtype: torch.dtype, limit: float, accumulate: bool) -> None:
    golden = Golden(name, dtype)
    names = golden.data["grad_norm_names"].tolist()
    golden.x.requires_grad_()
    for width in WIDTHS:
        group_like_the_file(golden.net, width)
        golden.net.zero_grad()
        golden.x.grad = None
        y = golden(width, accumulate_grad=accumulate)
        factors = torch.cos(0.3 * torch.arange(y.numel(), dtype=torch.float64) + 1).view(y.shape)
        (y * factors.to(dtype)).mean().backward()
        ours = reference_norms(golden)
        expected = dict(zip(names, golden.at("grad_norms", width).tolist(), strict=True))
        assert ours.keys() == expected.keys()
        for parameter, norm in expected.items():
            assert abs(ours[parameter] - norm) <= limit * norm, parameter
        if width == 1.0:
            norm = golden["grad_x_norm"]
            assert abs(golden.x.grad.norm() - norm) <= limit * norm


def state_of(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return weights(edm_state_dict_shapes(config), dtype)


KINDS = [
    SONG, {**SONG, "augment_dim": 9, "label_dim": 4}, {**SONG, **NCSN, "label_dim": 3},
    {**SONG, "resample_filter": [1, 3, 3, 1]}, {**SONG, "channel_mult": [1, 2, 3]},
    DHARIWAL, {**DHARIWAL, "label_dim": 0, "augment_dim": 9, "attn_resolutions": [16, 8]},
]  # fmt: skip


@pytest.mark.parametrize("config", KINDS)
def test_round_trip_of_names_and_weights(config: dict[str, Any]) -> None:
    state = state_of(config)
    net = load_edm(state, config)
    back = to_edm_state_dict(net)
    assert {n: tuple(t.shape) for n, t in back.items()} == edm_state_dict_shapes(config)
    for name, tensor in state.items():
        if name.startswith("map_label."):
            torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(back[name], tensor), name
    again = load_edm(back, config).state_dict()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-6, atol=1e-6)


def test_filters_of_a_state_dict() -> None:
    """Their sum is 1; EDM's loading wants them."""
    back = to_edm_state_dict(load_edm(state_of({**SONG, **NCSN}), {**SONG, **NCSN}))
    filters = [tensor for name, tensor in back.items() if name.endswith("resample_filter")]
    assert len(filters) == 5  # two of each block that resamples, one beside it
    for tensor in filters:
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        assert torch.equal(tensor[0, 0], torch.outer(row, row))


def test_rows_of_fused_weights() -> None:
    """Heads, their channels, then q, k, v of each channel; scales before shifts."""
    state = state_of(DHARIWAL)
    net = load_edm(state, DHARIWAL)
    rows = state["dec.8x8_in0.qkv.weight"].view(128, 3, 128)  # channels of all heads, parts
    for part, layer in enumerate("qkv"):
        weight = net.get_parameter(f"middle.0.attention.{layer}.weight")[:, :, 0, 0]
        assert torch.equal(weight, rows[:, part])
    film = state["dec.8x8_in0.affine.bias"]
    assert torch.equal(net.get_parameter("middle.0.time.scale.bias"), film[:128])
    assert torch.equal(net.get_parameter("middle.0.time.shift.bias"), film[128:])


def test_labels_are_rows_and_the_last_is_none() -> None:
    """A one-hot label picks sqrt(K) W + b, or W; a label of zeros b, or nothing."""
    config = {**SONG, "label_dim": 4}
    state = state_of(config, torch.float64)
    table = load_edm(state, config).get_parameter("time_embedding.label.weight")
    labels = torch.cat([torch.eye(4), torch.zeros(1, 4)]).double()
    expected = labels * 2 @ state["map_label.weight"].t() + state["map_label.bias"]
    torch.testing.assert_close(table, expected, rtol=1e-12, atol=1e-12)
    state = state_of(DHARIWAL)
    table = load_edm(state, DHARIWAL).get_parameter("label_embedding.weight")
    assert torch.equal(table[:5], state["map_label.weight"].t())
    assert not table[5].any()


def test_files(tmp_path: Path) -> None:
    state = state_of(SONG)
    torch.save(state, tmp_path / "weights.pt")
    torch.save({f"model.{n}": t for n, t in state.items()}, tmp_path / "preconditioner.pt")
    save_file(state, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        back = to_edm_state_dict(load_edm(path, SONG))
        assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "edm-cifar10-32x32-uncond-vp.pkl"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"is a pickle of EDM's code, .* need its weights") as e:
        load_edm(path, SONG)
    assert "\n" not in str(e.value)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_edm(tmp_path / "none.pt", SONG)
    state = state_of(SONG)
    del state["map_layer0.bias"]
    with pytest.raises(ValueError, match=r"EDM state dict lacks 'map_layer0\.bias'"):
        load_edm(state, SONG)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cls": "EDMPrecond"}, ValueError, "cls is 'EDMPrecond'; need 'SongUNet' or"),
        ({"model_chanels": 3}, ValueError, "unknown key 'model_chanels'; did you mean"),
        ({"out_channels": 6}, ValueError, "out_channels is 6; need in_channels, 3"),
        ({"label_dim": -1}, ValueError, "label_dim is -1; need an integer >= 0"),
        ({"img_resolution": "16"}, ValueError, "img_resolution is '16'; need an integer >= 1"),
        ({"channel_mult_emb": 2}, ValueError, "channel_mult_emb is 2; need 4"),
        ({"embedding_type": "sin"}, ValueError, "need 'positional' or 'fourier'"),
        ({"encoder_type": "skip"}, ValueError, "need 'standard' or 'residual'"),
        ({"decoder_type": "skip"}, ValueError, "need 'standard'"),
        ({"encoder_type": "residual"}, ValueError, "taps is 2; need 4 beside aux_residual"),
        ({"resample_filter": [1, 2, 1]}, ValueError, r"need \[1, 1\] or \[1, 3, 3, 1\]"),
        ({"channel_mult": "1,2"}, TypeError, "channel_mult is '1,2'; need a sequence"),
        ({"channel_mult": []}, ValueError, "need one multiple a level"),
        ({"img_resolution": 9}, ValueError, "image_size is 9; need a multiple of 2"),
    ],
)
def test_wrong_config(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        edm_config({**SONG, **change})
    assert "\n" not in str(caught.value)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="config is list; need a mapping"):
        edm_config([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lacks img_resolution, in_channels, out_channels"):
        edm_config({"cls": "SongUNet"})
    with pytest.raises(TypeError, match="got UNetConfig; need a SlimmableNetwork of a SongUNetC"):
        to_edm_state_dict(SlimmableNetwork(preset("digits")))


def test_networks_that_edm_does_not_have() -> None:
    small = {"ch": 32, "ch_mult": (1,), "attn": (), "num_res_blocks": 1, "groups": 8}
    heads = SongUNetConfig(8, **small, head_channels=8)
    with pytest.raises(ValueError, match="head_channels is 8; need None, as in EDM"):
        to_edm_state_dict(SlimmableNetwork(heads))
    one = DhariwalUNetConfig(8, **small, head_channels=None)
    with pytest.raises(ValueError, match="head_channels is None; need 64, as in EDM"):
        to_edm_state_dict(SlimmableNetwork(one))


def test_a_row_of_no_class_goes_where_it_is_added() -> None:
    """EDM's DhariwalUNet has none: its network without a label adds zeros."""
    trained = load_edm(state_of(DHARIWAL, torch.float64), DHARIWAL)
    assert isinstance(trained.config, DhariwalUNetConfig)
    null = trained.config.null_label
    trained.layer("label_embedding").weight.data[null] += torch.randn(256, dtype=torch.float64)
    again = load_edm(to_edm_state_dict(trained), DHARIWAL)
    assert not again.layer("label_embedding").weight[null].any()
    x, t = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([-0.3, 0.4])
    for y in (torch.tensor([0, 1]), torch.tensor([null, 2])):
        with torch.no_grad():
            found, expected = again(x, t, 1.0, y), trained(x, t, 1.0, y)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_slices_of_uneven_channels() -> None:
    """As many as divide every norm's groups: 96 channels have 24, 192 have 32."""
    assert edm_config({**SONG, "model_channels": 96}).groups == 8
    assert edm_config(SONG).groups == 8
    assert edm_config({**SONG, "model_channels": 128}).groups == 32
