"""`run_ops`: rows that are complete, checked and JSON-ready, and totals that add up."""

from __future__ import annotations

import json

import pytest
import torch

from ddsm_ext.bench.ops_table import run_ops
from ddsm_ext.bench.table import format_table
from ddsm_ext.models import UNetConfig

SMALL = UNetConfig(
    image_size=8,
    ch=64,
    ch_mult=(1, 2),
    attn=(1,),
    num_res_blocks=1,
    groups=16,
    norm="fixed_groups",
    concat_slicing="prefix",
)


def test_quick_rows_are_complete() -> None:
    threads = torch.get_num_threads()
    seen = []
    rows = run_ops(True, 1, batch=2, config=SMALL, progress=lambda *a: seen.append(a))
    assert torch.get_num_threads() == threads
    assert {(row["op"], row["width"]) for row in rows} == {
        (op, width)
        for op in ("conv2d", "linear", "group_norm", "attention")
        for width in (1.0, 0.5)
    }
    assert seen[-1] == (len(rows), len(rows))
    for row in rows:
        assert row["slicing_ms"] > 0
        assert row["ours_ms"] > 0
        assert row["ratio_slicing"] > 0
        assert row["error"] < 1e-4
        assert (row["batch"], row["dtype"], row["threads"]) == (2, "float32", 1)
        assert row["torch"] == torch.__version__
        assert row["clock"] == "thread CPU time"
    assert {row["dense_cl_ms"] is None for row in rows if row["op"] == "linear"} == {True}
    json.dumps(rows, allow_nan=False)
    text = format_table(rows)
    assert "slicing/ours" in text.splitlines()[0]
    assert len(text.splitlines()) == len(rows) + 2


def test_step_totals_are_calls_times_time() -> None:
    rows = run_ops(batch=1, config=SMALL, ops=["linear"], widths=[0.5])
    *parts, total = rows
    assert total["shape"] == "step total"
    assert total["ours_ms"] == pytest.approx(sum(r["calls"] * r["ours_ms"] for r in parts))
    assert total["calls"] == sum(r["calls"] for r in parts) == 2 + 8  # embedding, blocks
    assert total["dense_cl_ms"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"dtype": "int8"}, "'int8'"),
        ({"ops": ["conv3d"]}, "'conv3d'"),
        ({"widths": [2.0]}, "2"),
    ],
)
def test_wrong_arguments_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_ops(config=SMALL, **arguments)
