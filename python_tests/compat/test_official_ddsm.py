"""Reference checkpoints: outputs and gradients of the reference code, names, files, refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compat.official_weights import TIME_TABLE, formula_weights, time_table
from safetensors.torch import save_file
from torch import Tensor

from ddsm_ext.compat.official_ddsm import (
    load_official_ddsm,
    official_config,
    official_names,
    official_state_dict_shapes,
    to_official_state_dict,
)
from ddsm_ext.models.families import preset
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.runtime import StepRunner

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DDSM_SHARED", ROOT.parent / "shared"))
GOLDEN = SHARED / "golden" / "official_unet_g32_small.npz"
TINY = {"T": 20, "ch": 32, "ch_mult": [1, 2], "attn": [1], "num_res_blocks": 1, "groups": 16,
        "image_size": 8}  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN.name} is not there: set DDSM_SHARED to the folder that holds golden/")
    with np.load(GOLDEN, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def golden_network(golden: dict[str, Any], dtype: torch.dtype) -> SlimmableNetwork:
    config = json.loads(str(golden["config"]))
    state = formula_weights(official_state_dict_shapes(config))
    return load_official_ddsm(state, config).to(dtype)


def test_names_equal_the_golden_ones(golden: dict[str, Any]) -> None:
    shapes = official_state_dict_shapes(json.loads(str(golden["config"])))
    assert sorted(shapes) == golden["grad_norm_names"].tolist()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_golden_outputs(golden: dict[str, Any], dtype: torch.dtype, limit: float) -> None:
    net = golden_network(golden, dtype)
    x, t = torch.from_numpy(golden["x"]).to(dtype), torch.from_numpy(golden["t"])
    for width in (1.0, 0.75, 0.5, 0.25):
        expected = torch.from_numpy(golden[f"y_{width:g}"])
        with torch.no_grad():
            for times in (t, t.to(dtype)):
                error = (net(x, times, width).double() - expected).abs().max()
                assert error / expected.abs().max() < limit


def test_golden_outputs_of_compiled_steps(golden: dict[str, Any]) -> None:
    net = golden_network(golden, torch.float32)
    x, t = torch.from_numpy(golden["x"]).float(), torch.from_numpy(golden["t"])
    runner = StepRunner(net.eval())
    assert runner.reason_against(x.dtype, x.device) is None
    for width in (1.0, 0.75, 0.5, 0.25):
        expected = torch.from_numpy(golden[f"y_{width:g}"])
        assert (runner(x, t, width) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("accumulate", [False, True], ids=["autograd", "accumulate_grad"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_golden_gradient_norms(
    golden: dict[str, Any], dtype: torch.dtype, limit: float, accumulate: bool
) -> None:
    net = golden_network(golden, dtype)
    x, t = torch.from_numpy(golden["x"]).to(dtype), torch.from_numpy(golden["t"])
    (net(x, t, 0.5, accumulate_grad=accumulate) * x).mean().backward()
    norms = dict(
        zip(golden["grad_norm_names"].tolist(), golden["grad_norms_0.5"].tolist(), strict=True)
    )
    assert norms.pop(TIME_TABLE) == 0.0
    ours = {official_names(net.config)[name]: p.grad for name, p in net.named_parameters()}
    assert ours.keys() == norms.keys()
    # A key's bias shifts all scores of a query alike: its exact gradient is 0 and both sides hold
    # rounding only, which is measured against the largest gradient.
    rounding = {torch.float32: 1e-9, torch.float64: 1e-15}[dtype] * max(norms.values())
    for name, expected in norms.items():
        got = ours[name].double().norm().item()
        assert abs(got - expected) <= limit * expected + rounding, name


# Outputs of Slimmable16UNet (slimmable_model_g16.py at commit 9e15f46) in float64 with the formula
# weights, T=20, ch=64, ch_mult=[1, 2], attn=[1], num_res_blocks=1, 8x8 images x = sin(1.3 i + 0.2),
# t = (3, 7): 2-norm of the output, y[0, :, 2, 3] and y[1, :, 5, 1].
G16_EXPECTED = {
    1.0: (34.67972307463332, [4.005347123857485, -0.9743157686608198, -4.237628280875329],
          [-0.5948430009514722, -0.09480204013218696, 0.5232112212321179]),
    0.75: (26.109378960801596, [2.347120819586367, -1.7275865362514846, -2.716992226139048],
           [-0.204207396220916, -0.08368089999473534, 0.13460697442559913]),
    0.5: (19.383679207744134, [2.585701135908228, -0.918962134576984, -2.807871568621299],
          [-0.23865902180982473, -0.03438235277358697, 0.17806332394383237]),
    0.25: (9.0561978202736, [1.1667801607794872, -0.07481968283470151, -1.234762021220649],
           [-0.6136375174665599, -0.4975007623027375, 0.4684499605176401]),
}  # fmt: skip


@pytest.mark.parametrize("width", sorted(G16_EXPECTED))
def test_sixteen_groups(width: float) -> None:
    config = {**TINY, "ch": 64}
    net = load_official_ddsm(formula_weights(official_state_dict_shapes(config)), config).double()
    i = torch.arange(2 * 3 * 8 * 8, dtype=torch.float64)
    with torch.no_grad():
        y = net(torch.sin(1.3 * i + 0.2).view(2, 3, 8, 8), torch.tensor([3, 7]), width)
    norm, first, second = G16_EXPECTED[width]
    assert y.norm().item() == pytest.approx(norm, rel=1e-9)
    assert y[0, :, 2, 3].tolist() == pytest.approx(first, rel=1e-9)
    assert y[1, :, 5, 1].tolist() == pytest.approx(second, rel=1e-9)


def test_cifar10_shapes() -> None:
    shapes = official_state_dict_shapes({})
    # The reference prints 35.87 M parameters for its CIFAR-10 flags, the table included.
    assert sum(int(np.prod(s)) for s in shapes.values()) == 35_874_307
    assert shapes[TIME_TABLE] == (1000, 128)
    assert shapes["upblocks.0.block1.2.weight"] == (256, 512, 3, 3)
    assert shapes["downblocks.3.attn.proj_q.weight"] == (256, 256, 1, 1)
    assert shapes["tail.2.bias"] == (3,)


def tiny_state() -> dict[str, Tensor]:
    return formula_weights(official_state_dict_shapes(TINY))


def same_weights(net: SlimmableNetwork, state: dict[str, Tensor]) -> None:
    back = to_official_state_dict(net)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_round_trip_and_time_table() -> None:
    state = tiny_state()
    same_weights(load_official_ddsm(state, TINY), state)
    assert torch.equal(state[TIME_TABLE], time_table(20, 32))
    without = {name: tensor for name, tensor in state.items() if name != TIME_TABLE}
    back = to_official_state_dict(load_official_ddsm(without, TINY))
    assert torch.equal(back[TIME_TABLE], state[TIME_TABLE])


def test_dtype_follows_the_weights() -> None:
    state = {name: tensor.double() for name, tensor in tiny_state().items()}
    net = load_official_ddsm(state, TINY)
    assert net.head.weight.dtype == torch.float64
    y = net(torch.zeros(1, 3, 8, 8), torch.tensor([3]), 0.5)  # float32 images are widened
    assert y.dtype == torch.float64


def test_files_checkpoints_and_prefixes(tmp_path: Path) -> None:
    state = tiny_state()
    other = {name: tensor + 1 for name, tensor in state.items()}
    torch.save(state, tmp_path / "raw.pt")
    torch.save({f"module.{n}": t for n, t in state.items()}, tmp_path / "parallel.pt")
    checkpoint = {"net_model": other, "ema_model": state, "optim": {"state": {}}, "step": 3,
                  "sched": {"base_lrs": [2e-4]}, "x_T": torch.zeros(1)}  # fmt: skip
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    save_file(state, tmp_path / "raw.safetensors")
    for name in ("raw.pt", "parallel.pt", "ckpt.pt", "raw.safetensors"):
        same_weights(load_official_ddsm(tmp_path / name, TINY), state)
    same_weights(load_official_ddsm(str(tmp_path / "ckpt.pt"), TINY, group="net_model"), other)
    same_weights(load_official_ddsm({"net_model": state}, TINY), state)


class Evil:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_files_that_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    torch.save({"ema_model": tiny_state(), "extra": Evil(trace)}, tmp_path / "evil.pt")
    torch.save({"ema_model": tiny_state(), "extra": Evil(trace)}, tmp_path / "old.pt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save(tiny_state(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    expected = {
        "evil.pt": "holds Python objects", "old.pt": "holds Python objects",
        "list.pt": "holds a list; need a state dict", "cut.pt": "cut.pt", "text.pt": "text.pt",
        "empty.pt": "empty.pt", "cut.safetensors": "no whole safetensors file",
    }  # fmt: skip
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_official_ddsm(tmp_path / name, TINY)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
    assert not trace.exists()
    with pytest.raises(FileNotFoundError, match=r"does not exist; need a \.pt"):
        load_official_ddsm(tmp_path / "none.pt", TINY)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_official_ddsm(tmp_path, TINY)


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    small = dict(list(tiny_state().items())[:2])
    for name, save in (("a.pt", torch.save), ("a.safetensors", save_file)):
        save(small, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for i in range(50):
            (tmp_path / name).write_bytes(whole[: len(whole) * i // 50])
            with pytest.raises(ValueError, match=r"a\.(pt|safetensors)"):
                load_official_ddsm(tmp_path / name, TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), "lacks 'head.bias'; need exactly the 145 names"),
        (lambda s: [s.pop("head.bias"), s.pop("head.weight")], "lacks 'head.weight' and 1 more"),
        (lambda s: s.update(extra=torch.zeros(1)), "has an unknown 'extra'"),
        (lambda s: s.update({"head.bias": torch.zeros(3)}), r"has shape \[3\]; need \[32\]"),
        (lambda s: s.update({"head.bias": 3}), "'head.bias' is a int; need a state dict"),
        (lambda s: s.update({"head.bias": torch.zeros(32, dtype=torch.int)}), "is torch.int32"),
        (lambda s: s.clear(), "is empty"),
    ],
)
def test_wrong_state_dict(change: Any, message: str) -> None:
    state = tiny_state()
    change(state)
    with pytest.raises(ValueError, match=message) as caught:
        load_official_ddsm(state, TINY)
    assert str(caught.value).startswith("official DDSM state dict")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ch_mults": [1]}, "unknown key 'ch_mults'; did you mean ch_mult"),
        ({"img_size": 32}, "unknown key 'img_size'; did you mean image_size"),
        ({"T": 0}, "T is 0; need a number of steps >= 1"),
        ({"groups": 24}, "ch is 128; need a multiple of groups, 24"),
    ],
)
def test_wrong_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official_config(config)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="config is list; need a mapping"):
        official_config([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got int; need a path"):
        load_official_ddsm(3, TINY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="group is 'ema'"):
        load_official_ddsm(tiny_state(), TINY, group="ema")
    with pytest.raises(ValueError, match="norm is 'channels_per_group'; need 'fixed"):
        to_official_state_dict(SlimmableNetwork(preset("digits")))


def test_only_the_paper_widths_that_run_are_offered() -> None:
    assert official_config({}).widths == (1.0, 0.75, 0.5, 0.25)
    assert official_config({"ch": 64}).widths == (1.0, 0.5)
