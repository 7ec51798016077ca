"""One width of a run's network as an ONNX file, compared with onnxruntime before it is written."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.graph.count import parameter_count
from ddsm_ext.io.files import write_atomic
from ddsm_ext.run.config import RunConfig
from ddsm_ext.settings import MissingLibrary, Refusal, plain

log = logging.getLogger(__name__)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 2**31 - 2**20  # bytes of an ONNX file without others beside it
_TOLERANCE = 1e-4  # of the largest output; torch and onnxruntime differ by about 1e-6
_TRACED, _COMPARED = 2, 3  # images


def check_onnx() -> None:
    """Refuse where the packages of the extra are missing.

    Raises:
        ImportError: one is not installed.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingLibrary(
                f"ddsm export --to onnx: {package} is not installed; need the extra: "
                "pip install 'ddsm_ext[onnx]'"
            )


def export_onnx(load: Callable[[], Any], config: RunConfig, width: float, file: Path) -> Path:
    """Write a width as an ONNX file for any number of images.

    Its inputs are x, float32 [batch, C, H, W], t, float32 [batch], and, where the network takes
    them, y, int64 [batch], or context, float32 [batch, T, channels]; its output is "prediction".

    Args:
        load: returns the slimmable network.
        config: of its run.
        width: the width.
        file: to write.

    Raises:
        ImportError: a package of the extra is not installed.
        ValueError: the network has no such width or is too large, or the file's outputs are others.
    """
    check_onnx()
    size = 4 * parameter_count(config.model, width)
    if size > _LARGEST:
        raise Refusal(f"export: weights are {size:,} bytes; need less than 2 GB, a narrower width")
    dense = load().export_subnet(width).cpu().float().eval()
    proto = _traced(dense, config)
    about = plain({"width": width, "model": config.model, "diffusion": config.diffusion})
    importlib.import_module("onnx").helper.set_model_props(proto, {"ddsm": json.dumps(about)})
    content = proto.SerializeToString()
    difference, greatest = _compared(dense, content, config)
    text = f"largest difference from torch {difference:.2g}, of outputs up to {greatest:.2g}"
    if not difference <= _TOLERANCE * greatest:
        raise Refusal(f"export: {text} by onnxruntime; need a network that both compute alike")
    write_atomic(file, content)
    log.info("onnxruntime: %s", text)
    return file


def _inputs(config: RunConfig, images: int) -> dict[str, Tensor]:
    """What a network is called with, by name, of a fixed seed."""
    model, random = config.model, torch.Generator().manual_seed(0)
    side = model.image_size
    given = {
        "x": torch.randn(images, model.image_channels, side, side, generator=random),
        "t": torch.rand(images, generator=random) * (config.diffusion.timesteps - 1),
    }
    if "y" in model.graph.inputs:
        given["y"] = torch.arange(images) % model.label_count
    if "context" in model.graph.inputs:
        tokens = model.graph.inputs["context"]
        shape = (images, tokens.tokens, tokens.out.c_max)
        given["context"] = torch.randn(shape, generator=random)
    return given


def _traced(dense: Any, config: RunConfig) -> Any:
    given = _inputs(config, _TRACED)
    batch = {0: torch.export.Dim("batch")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            dense,
            kwargs=given,
            dynamo=True,
            input_names=[*given],
            output_names=["prediction"],
            dynamic_shapes=dict.fromkeys(given, batch),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _compared(dense: Any, content: bytes, config: RunConfig) -> tuple[float, float]:
    """The largest difference of onnxruntime's outputs from torch's, and the largest of these."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given = _inputs(config, _COMPARED)
    (theirs,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    with torch.no_grad():
        ours = dense(**given)
    return (torch.from_numpy(theirs) - ours).abs().max().item(), ours.abs().max().item()
