"""Bridge to torch-fidelity (the `metrics` extra): its InceptionV3 as a feature extractor."""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.eval.features import checked_images, chunked
from ddsm_ext.settings import MissingLibrary, Refusal

# torch.library registrations live as long as this object.
_TORCHVISION_SCHEMAS: list[Any] = []
_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def import_torch_fidelity() -> ModuleType:
    """Import torch-fidelity, also beside a CPU torch with a CUDA build of torchvision.

    That pair fails on import with `operator torchvision::nms does not exist`, because
    torchvision's own library cannot load. No metric needs the operators, so declaring their schemas
    lets the import pass.

    Raises:
        ImportError: torch-fidelity is not installed or does not import.
    """
    try:
        _import_torchvision()
        return importlib.import_module("torch_fidelity")
    except ImportError as error:
        raise MissingLibrary(
            f"torch_fidelity: it does not import ({error}); need the extra: "
            "pip install 'ddsm_ext[metrics]'"
        ) from error


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _TORCHVISION_SCHEMAS:
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _TORCHVISION_SCHEMAS.append(library)
        # The failed import left its submodules behind.
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")


class InceptionExtractor:
    """torch-fidelity's InceptionV3, pooled features [N, 2048]; what FID and KID are defined on.

    torch-fidelity unpickles a weights file without restrictions. Here the file is read with
    `weights_only=True`, and torch-fidelity is handed a buffer that this class wrote itself.

    Args:
        path: weights-inception-2015-12-05-6726825d.pth, or a state dict of equal shapes.
        device: where to compute.

    Raises:
        FileNotFoundError: no such file.
        ImportError: torch-fidelity is not installed.
        ValueError: the file holds something else.
    """

    name = "inception-v3"
    dim = 2048

    def __init__(self, path: Path, device: str | torch.device) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f"inception weights {path}: no such file; need torch-fidelity's {_WEIGHTS}"
            )
        import_torch_fidelity()
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        data = path.read_bytes()
        buffer = io.BytesIO()
        torch.save(_state_dict(path, data), buffer)
        buffer.seek(0)
        try:
            network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(self.dim)], feature_extractor_weights_path=buffer
            )
        except RuntimeError as error:
            raise Refusal(
                f"inception weights {path}: the names or shapes are not those of torch-fidelity's "
                f"InceptionV3; need {_WEIGHTS}"
            ) from error
        self.digest = hashlib.sha256(data).hexdigest()
        self.device = torch.device(device)
        self._network = network.to(self.device)

    def __call__(self, images: Any) -> Tensor:
        """Return fp32 features [N, 2048] of uint8 images [N, 3 or 1, H, W]; grey is repeated.

        Raises:
            TypeError: images that are not uint8.
            ValueError: another number of channels.
        """
        x = checked_images(images, self.name)  # [N, C, H, W]
        if x.shape[1] not in (1, 3):
            raise Refusal(
                f"{self.name}: images have shape {tuple(x.shape)}; need [N, 1 or 3, H, W]"
            )
        x = x.expand(-1, 3, -1, -1)
        return chunked(lambda part: self._network(part)[0], x, self.dim, self.device)


def _state_dict(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise Refusal(
            f"inception weights {path}: not a plain PyTorch state dict; need {_WEIGHTS}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise Refusal(f"inception weights {path}: it holds no tensors by name; need {_WEIGHTS}")
    return {name: value.detach().clone() for name, value in state.items()}
