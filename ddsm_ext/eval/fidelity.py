"""Scores that torch-fidelity (the `metrics` extra) computes from feature rows."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ddsm_ext._optional import import_torchvision
from ddsm_ext.io.files import one_line
from ddsm_ext.settings import MissingLibrary

log = logging.getLogger(__name__)

NEIGHBOURS = 3  # as in the paper and in torch-fidelity
SPLITS = 10  # likewise
_BATCH_ROWS = 1000  # distances of so many rows to all others are in memory


def precision_recall(rows: Any, reference: Any) -> dict[str, float]:
    """Return the improved precision and recall of feature rows, of equally many of both sets.

    Precision is the share of rows that lie nearer to one of the reference than its third neighbour
    does, recall the share of the reference that lies so near to one of the rows. Both depend on the
    number of rows: compare scores of equally many.

    Args:
        rows: float array [N, D] of samples in any order that has no meaning, N > NEIGHBOURS.
        reference: float array [M, D] of real images, likewise; of the larger set the first
            min(N, M) rows are taken.

    Returns:
        'precision' and 'recall', from 0 to 1.

    Raises:
        ImportError: torch-fidelity is not installed or does not import.

    Source: Kynkäänniemi et al., arXiv 1904.06991, eq. 1 and 2.
    """
    import_torch_fidelity()
    metric = importlib.import_module("torch_fidelity.metric_prc")
    count = min(len(rows), len(reference))
    scores = metric.prc_features_to_metric(
        torch.as_tensor(rows[:count], device="cpu"),
        torch.as_tensor(reference[:count], device="cpu"),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=_BATCH_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    return {name: float(scores[name]) for name in ("precision", "recall")}


def inception_score(logits: Tensor, seed: int) -> float:
    """Return the mean Inception Score of SPLITS parts of shuffled images.

    Args:
        logits: fp32 [N, classes] of Inception, N >= SPLITS.
        seed: seed of the shuffling.

    Raises:
        ImportError: torch-fidelity is not installed or does not import.

    Source: Salimans et al., arXiv 1606.03498, section 4.
    """
    import_torch_fidelity()
    metric = importlib.import_module("torch_fidelity.metric_isc")
    scores = metric.isc_features_to_metric(logits.cpu(), splits=SPLITS, rng_seed=seed)
    return float(scores["inception_score_mean"])


@functools.cache
def torch_fidelity_is_there() -> bool:
    """Return whether torch-fidelity imports; warns where it is installed and does not."""
    if importlib.util.find_spec("torch_fidelity") is None:
        return False
    try:
        import_torch_fidelity()
    except MissingLibrary as error:
        log.warning("precision, recall and Inception Score are left out: %s", error)
        return False
    return True


def import_torch_fidelity() -> ModuleType:
    """Import torch-fidelity; no metric needs the operators that `import_torchvision` is about.

    Raises:
        ImportError: torch-fidelity is not installed or does not import.
    """
    try:
        import_torchvision()
        return importlib.import_module("torch_fidelity")
    except (ImportError, RuntimeError) as error:
        raise MissingLibrary(
            f"torch_fidelity: it does not import ({one_line(error)}); need the extra: "
            "pip install 'ddsm_ext[metrics]'"
        ) from error
