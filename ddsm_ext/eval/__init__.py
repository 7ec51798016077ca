"""Feature extractors, streaming moments, Fréchet and kernel distances, reference statistics."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "KernelDistance": "distances",
        "ReferenceStatistics": "metrics",
        "StreamingMoments": "distances",
        "evaluate": "metrics",
        "frechet_distance": "distances",
        "frechet_to_reference": "metrics",
        "gather_moments": "distances",
        "kernel_distance": "distances",
        "load_statistics": "metrics",
        "make_extractor": "features",
        "reference_statistics": "metrics",
        "save_statistics": "metrics",
        "train_classifier": "classifier",
    },
)
