"""Images: folders, archives and data sets, decoded as data under limits."""

from __future__ import annotations

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "DataConfig": "config",
        "ImageDataset": "dataset",
        "ReadLimits": "entries",
        "from_uint8": "pixels",
        "image_grid": "images",
        "images_from_archive": "source",
        "images_from_folder": "source",
        "load_dataset": "dataset",
        "read_cifar10": "cifar",
        "read_image": "images",
        "save_png": "images",
        "to_uint8": "pixels",
    },
)
