"""Files of a run: atomic writes, run folders, checkpoints, images and archives read as data."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "CheckpointError": "checkpoint",
        "ReadLimits": "images",
        "append_jsonl": "files",
        "cifar10_binary": "cifar",
        "cifar10_python": "cifar",
        "create_run": "run_dir",
        "find_resumable": "run_dir",
        "image_grid": "images",
        "images_from_archive": "archives",
        "images_from_folder": "images",
        "load_checkpoint": "checkpoint",
        "load_shards": "shards",
        "newest_complete": "checkpoint",
        "read_image": "images",
        "read_json": "files",
        "read_jsonl": "files",
        "resolve_run": "run_dir",
        "save_checkpoint": "checkpoint",
        "save_png": "images",
        "write_atomic": "files",
        "write_json": "files",
    },
)
