"""Files: atomic writes, JSON, checkpoints and weights, read as data and never as code."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "CheckpointError": "checkpoint",
        "Document": "document",
        "RunLock": "lock",
        "append_jsonl": "files",
        "load_checkpoint": "checkpoint",
        "load_shards": "weights",
        "newest_complete": "checkpoint",
        "read_json": "files",
        "read_jsonl": "files",
        "save_checkpoint": "checkpoint",
        "write_atomic": "files",
        "write_json": "files",
    },
)
