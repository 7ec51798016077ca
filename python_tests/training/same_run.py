"""Whether two training runs are the same, bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch

from ddsm_ext.io.checkpoint import load_checkpoint, newest_complete
from ddsm_ext.io.files import read_jsonl


def assert_same_run(first: Path, second: Path) -> None:
    """Weights, average, optimiser, running errors bit for bit; log but for the speed."""
    one, two = (load_checkpoint(newest_complete(run)) for run in (first, second))
    assert one.step == two.step
    assert one.tensors.keys() == two.tensors.keys() >= {"model", "ema", "optim"}
    for group, tensors in one.tensors.items():
        assert tensors.keys() == two.tensors[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two.tensors[group][name]), (group, name)
    rows = [read_jsonl(run / "log.jsonl") for run in (first, second)]
    for row in (*rows[0], *rows[1]):
        del row["images_per_s"]
    assert rows[0] == rows[1]
    steps = [row["step"] for row in rows[0]]
    assert steps == sorted(set(steps))
