"""The workflow of a run: configuration, folder, training, search, samples and scores."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Run": "run",
        "RunConfig": "config",
        "configure": "config",
        "configure_autoencoder": "autoencoder",
        "create_run": "folder",
        "find_resumable": "folder",
        "import_official": "importing",
        "import_shards": "importing",
        "load_autoencoder_images": "autoencoder",
        "macs_table": "costs",
        "make_autoencoder": "autoencoder",
        "measure_ms": "costs",
        "resolve_run": "folder",
    },
)
