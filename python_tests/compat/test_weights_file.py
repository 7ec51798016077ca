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
    path, allowed = tmp_path / "ckpt.pt", torch.serialization.get_safe_globals()
    torch.save({"ema": weights(), **beside}, path, _use_new_zipfile_serialization=zipped)
    assert same(read(path, groups=("ema",)), weights())
    # as numpy 1 wrote them
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    if not zipped:
        (tmp_path / "old.pt").write_bytes(old)
        assert same(read(tmp_path / "old.pt", groups=("ema",)), weights())
    torch.save({**weights(), "loss": np.float64(0.1)}, path)
    with pytest.raises(ValueError, match=r"entry 'loss' is a NumPyValue; need a state dict"):
        read(path)
    assert torch.serialization.get_safe_globals() == allowed


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
