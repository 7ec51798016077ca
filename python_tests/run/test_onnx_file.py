"""ONNX files of a width: onnxruntime computes what torch does, for any number of images."""

from __future__ import annotations

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddsm_ext.models import SlimmableNetwork
from ddsm_ext.run import configure
from ddsm_ext.run import onnx_file as module
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.onnx_file import PACKAGES, export_onnx

missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(missing) and "CI" not in os.environ, reason=f"needs the onnx extra: {missing}"
)


def config(**model: Any) -> RunConfig:
    small = {"image_size": 4, "image_channels": 2, "ch": 8, "ch_mult": [1, 2], "attn": [1],
             "num_res_blocks": 1, "groups": 4}  # fmt: skip
    return configure(model={**small, **model})


@lru_cache
def network(run: RunConfig) -> SlimmableNetwork:
    net = SlimmableNetwork(run.model).eval()
    g = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.2, generator=g)
    return net


@needs_onnx
def test_labels_and_any_number_of_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of an ADM network: scales and shifts, labels, attention, blocks that resample."""
    import onnx
    import onnxruntime

    caplog.set_level("INFO", "ddsm_ext")
    run = config(family="adm", head_channels=4, num_classes=3, null_class=True, pad_end=True)
    file = export_onnx(lambda: network(run), run, 0.5, tmp_path / "a" / "net.onnx")
    (said,) = caplog.messages
    assert said.startswith("onnxruntime: largest difference from torch ")
    assert [path.name for path in file.parent.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x", "t", "y"]
    for n in (1, 2, 5):
        x, t = torch.randn(n, 2, 4, 4), torch.linspace(0, 999, n)
        y = torch.arange(n) % 4
        given = {"x": x.numpy(), "t": t.numpy(), "y": y.numpy()}
        (made,) = session.run(["prediction"], given)
        expected = network(run).run_modules(x, t, 0.5, y).detach().numpy()
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
    about = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(about["ddsm"])["width"] == 0.5


@needs_onnx
def test_a_file_whose_outputs_are_others_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(attn=[], ch_mult=[1])
    monkeypatch.setattr(module, "_traced", lambda dense, run: _identity())
    with pytest.raises(ValueError, match=r"largest difference from torch .* by onnxruntime; need"):
        export_onnx(lambda: network(run), run, 1.0, tmp_path / "net.onnx")
    assert not [*tmp_path.iterdir()]


def _identity() -> Any:
    from onnx import TensorProto, helper

    x, t = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 2, 4, 4]), ("t", ["n"]))
    )
    y = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n", 2, 4, 4])
    node = helper.make_node("Identity", ["x"], ["prediction"])
    graph = helper.make_graph([node], "g", [x, t], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named_before_any_work(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else object()
    )
    with pytest.raises(ImportError, match=rf"{package} is not installed; .*'ddsm_ext\[onnx\]'"):
        export_onnx(pytest.fail, config(), 1.0, tmp_path / "net.onnx")


def test_what_is_too_large_or_has_no_such_width(tmp_path: Path) -> None:
    run = config(ch=2048, ch_mult=[4, 4])
    with pytest.raises(ValueError, match=r"weights are [\d,]+ bytes; need less than 2 GB"):
        export_onnx(pytest.fail, run, 1.0, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="width is 2"):
        export_onnx(pytest.fail, run, 2.0, tmp_path / "net.onnx")
