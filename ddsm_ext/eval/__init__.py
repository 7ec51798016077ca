"""Feature extractors, streaming moments, Fréchet and kernel distances, reference statistics."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "KernelDistance": "distances",
        "ReferenceStatistics": "statistics",
        "StreamingMoments": "distances",
        "enough_images": "distances",
        "evaluate": "metrics",
        "frechet_distance": "distances",
        "frechet_to_reference": "metrics",
        "gather_moments": "distances",
        "kernel_distance": "distances",
        "load_statistics": "statistics",
        "make_extractor": "features",
        "mean_kernel": "distances",
        "reference_statistics": "metrics",
        "save_statistics": "statistics",
        "squared_mmd": "distances",
        "train_classifier": "classifier",
    },
)
