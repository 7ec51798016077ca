"""Packages that an extra brings, imported when they are asked for."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from types import ModuleType

from ddsm_ext.settings import MissingLibrary

_LEAST_DIFFUSERS = (0, 42)  # earlier ones run code of a model's folder (trust_remote_code)


def import_diffusers(what: str) -> ModuleType:
    """Import diffusers, also beside a CPU torch with a CUDA build of torchvision.

    Args:
        what: needs it, for the error, e.g. "ddsm encode".

    Raises:
        ImportError: it is not installed, too old, or does not import.
    """
    need = "need the extra: pip install 'ddsm_ext[diffusers]'"
    if importlib.util.find_spec("diffusers") is None:
        raise MissingLibrary(f"{what}: diffusers is not installed; {need}")
    try:
        if importlib.util.find_spec("torchvision") is not None:
            import_torchvision()
        found = importlib.import_module("diffusers")
        importlib.import_module("diffusers.models.autoencoders")
    except (ImportError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise MissingLibrary(f"{what}: diffusers does not import ({text}); {need}") from error
    version = str(found.__version__)
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _LEAST_DIFFUSERS:
        raise MissingLibrary(f"{what}: diffusers is {version}; {need}")
    return found


def import_torchvision() -> ModuleType:
    """Import torchvision, also a CUDA build of it beside a CPU torch.

    That pair fails on import with `operator torchvision::nms does not exist`, because
    torchvision's own library cannot load. What needs none of its operators can do with their
    schemas, which are declared here.

    Raises:
        ImportError, RuntimeError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define("torchvision::nms", schema)
        torch.library.define("torchvision::qnms", schema)
        # The failed import left its submodules behind.
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return importlib.import_module("torchvision")
