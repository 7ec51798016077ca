"""Foreign state dicts: names of wrappers, values beside weights, weights that are no numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ddsm_ext.compat.guided_diffusion import (
    guided_diffusion_state_dict_shapes,
    load_guided_diffusion,
)
from ddsm_ext.compat.weights_file import read_state_dict


class Net(nn.Module):
    """Two parts, as what is one module would have a name in common."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(2, 3), nn.ModuleDict({"model": nn.Linear(3, 3)})


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Net().state_dict()


SHAPES = {name: tuple(tensor.shape) for name, tensor in weights().items()}


def read(source: Any, **options: Any) -> dict[str, Tensor]:
    return read_state_dict("net", source, SHAPES, **options)


def same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    if state.keys() != expected.keys():
        return False
    return all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "ema.model."],
)
def test_names_that_all_begin_with_a_wrappers(prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in weights().items()}
    save_file(state, tmp_path / "wrapped.safetensors")
    torch.save({"net_model": state}, tmp_path / "wrapped.pt")
    assert same(read(state), weights())
    assert same(read(tmp_path / "wrapped.safetensors"), weights())
    assert same(read(tmp_path / "wrapped.pt", groups=("net_model",)), weights())


def test_names_that_torch_makes() -> None:
    net = Net()
    net.load_state_dict(weights())
    averaged = torch.optim.swa_utils.AveragedModel(net)  # with n_averaged, a number of its own
    assert same(read(averaged.state_dict()), weights())
    assert same(read(nn.DataParallel(net).state_dict()), weights())
    assert same(read(torch.compile(net).state_dict()), weights())
    net.body["model"] = torch.compile(net.body["model"])
    assert same(read(nn.DataParallel(net).state_dict()), weights())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {f"module.{n}" if "head" in n else n: t for n, t in s.items()}, "lacks 'head"),
        (lambda s: {**s, "module.head.bias": s["head.bias"] + 1}, "unknown 'module.head.bias'"),
        (lambda s: {**s, "_orig_mod.head.bias": s["head.bias"] + 1}, "unknown '_orig_mod.head"),
        (lambda s: {n: t for n, t in s.items() if "head" in n}, "lacks 'body.model.weight' and 1"),
        (
            lambda s: {f"module.{n}": t for n, t in s.items() if "head" in n},
            "lacks 'head.weight' and 3",
        ),
    ],
)
def test_names_of_which_only_some_are_wrapped(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(change(weights()))


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_and_arrays_of_numpy_beside_weights(tmp_path: Path, zipped: bool) -> None:
    beside = {"loss": np.float64(0.1), "step": np.int64(3), "lr": np.float32(1e-4),
              "history": np.arange(5.0), "names": np.array(["a"])}  # fmt: skip
    path, allowed = tmp_path / "ckpt.pt", {*torch.serialization.get_safe_globals()}
    torch.save({"ema": weights(), **beside}, path, _use_new_zipfile_serialization=zipped)
    assert same(read(path, groups=("ema",)), weights())
    # as numpy 1 wrote them
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    if not zipped:
        (tmp_path / "old.pt").write_bytes(old)
        assert same(read(tmp_path / "old.pt", groups=("ema",)), weights())
    torch.save({**weights(), "loss": np.float64(0.1)}, path)
    with pytest.raises(ValueError, match=r"entry 'loss' is a NumPy value; need a state dict"):
        read(path)
    assert {*torch.serialization.get_safe_globals()} == allowed


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, torch.finfo(torch.float64).max], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in weights().items()}
    state["body.model.bias"][1] = value
    with pytest.raises(ValueError, match=r"net: body\.model\.bias has values that are not finite"):
        read(state)
    assert read({"ema": state, "last": weights()}, groups=("ema", "last"), wanted="last")


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s},
        lambda s: {"epoch": 1, "state_dict": under("model.", s), "loops": {}},  # of Lightning
        lambda s: {"state_dict": {**under("net.", s), "loss.weight": torch.ones(3)}},
        lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "step": 4},
        lambda s: {"module": under("module.", s), "ds_version": "1"},  # of DeepSpeed
        lambda s: {"module": s, "param_shapes": {n: t.shape for n, t in s.items()}},
        lambda s: {"betas": torch.ones(9), "steps": torch.tensor([3]), **under("model.", s)},
        lambda s: {"a": {"b": {"c": under("d.e.", s)}}},
        lambda s: {n.replace("body.model.", "body.module.model."): t for n, t in s.items()},
        lambda s: under("module.", {n.replace("model.", "model.module."): t for n, t in s.items()}),
    ],
)
def test_the_network_is_found_wherever_a_trainer_puts_it(wrap: Any, tmp_path: Path) -> None:
    torch.save(wrap(weights()), tmp_path / "ckpt.pt")
    for source in (wrap(weights()), tmp_path / "ckpt.pt"):
        assert same(read(source), weights())
        assert same(read(source, groups=("ema_model",), wanted="ema_model"), weights())
        with pytest.raises(ValueError, match="group is 'emma'; need"):
            read(source, groups=("ema_model",), wanted="emma")


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda a, b: {"model": a, "ema": b, "opt": {}}, ("model", "ema")),
        (
            lambda a, b: {"state_dict": {**under("net.", a), **under("ema.net.", b)}},
            ("state_dict.net", "state_dict.ema.net"),
        ),
        (  # ema_pytorch's EMA
            lambda a, b: {"initted": torch.tensor(True), "step": torch.tensor([9]),
                          **under("online_model.", a), **under("ema_model.", b)},
            ("online_model", "ema_model"),
        ),
    ],
)  # fmt: skip
def test_one_of_several_networks_is_chosen_by_name(wrap: Any, names: tuple[str, str]) -> None:
    content = wrap(weights(), other(weights()))
    with pytest.raises(ValueError, match=f"2 sets .*'{names[0]}' and '{names[1]}'; need the name"):
        read(content)
    assert same(read(content, wanted=names[0]), weights())
    assert same(read(content, wanted=names[1]), other(weights()))
    with pytest.raises(ValueError, match="2 sets"):
        read(content, wanted="nothing")
    part = next(part for part in names[1].split(".") if part.startswith("ema"))
    assert same(read(content, wanted=part), other(weights()))


def test_the_name_that_a_wrapped_network_lacks_is_said() -> None:
    state = under("model.", weights())
    del state["model.head.bias"]
    with pytest.raises(ValueError, match=r"net lacks 'head\.bias'; need exactly the 4 names"):
        read({"epoch": 3, "state_dict": state})
    # nothing of another network is taken for one that is named and damaged
    with pytest.raises(ValueError, match="net is empty"):
        read({"a": {}, "b": weights()}, groups=("a", "b"), wanted="a")
    damaged = weights()
    del damaged["head.bias"]
    for content in (
        {"state": {"a": damaged, "b": weights()}},
        {**under("a.", damaged), **under("b.", weights())},
        {"state": {"a": {**damaged, "head.bias": 3}, "b": weights()}},
    ):
        with pytest.raises((ValueError, TypeError), match=r"head\.bias"):
            read(content, groups=("a", "b"), wanted="a")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda t: t.to("meta"), "meta"),
        (lambda t: t.to_sparse(), "torch.sparse_coo"),
        (lambda t: t.to_sparse_csr(), "torch.sparse_csr"),
        (lambda t: torch.nested.nested_tensor([t]), "nested"),
        (lambda t: torch.nested.nested_tensor([t], layout=torch.jagged), "nested"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_refused(change: Any, kind: str) -> None:
    state = weights()
    state["head.weight"] = change(state["head.weight"])
    with pytest.raises(ValueError, match=rf"net: head\.weight is a {kind} tensor; need a dense"):
        read(state)


def test_a_network_of_guided_diffusion_is_chosen_by_name() -> None:
    config = {"image_size": 8, "in_channels": 3, "model_channels": 32, "out_channels": 3,
              "num_res_blocks": 1, "attention_resolutions": (), "channel_mult": (1,)}  # fmt: skip
    shapes = guided_diffusion_state_dict_shapes(config)
    state = {name: torch.ones(shape) for name, shape in shapes.items()}
    content = {"model": state, "ema": other(state)}
    with pytest.raises(ValueError, match="'model' and 'ema'; need the name of one as group"):
        load_guided_diffusion(content, config)
    for group, value in (("model", 1.0), ("ema", 2.0)):
        net = load_guided_diffusion(content, config, group=group)
        assert (net.get_parameter("head.bias") == value).all()


def test_the_usual_name_is_taken_and_what_is_asked_for_never_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    groups = ("ema_model", "net_model")
    both = {"ema_model": weights(), "net_model": other(weights())}
    assert same(read(both, groups=groups), weights())
    alone = {"net_model": weights()}
    with caplog.at_level("INFO"):
        assert same(read(alone, groups=groups), weights())
    assert "has no ema_model weights, those of net_model are taken" in caplog.text
    for content, wanted in ((alone, "ema_model"), ({"ema_model": weights()}, "net_model")):
        with pytest.raises(ValueError, match=f"group is '{wanted}'; need none"):
            read(content, groups=groups, wanted=wanted)
