"""Feature extractors, streaming moments, Fréchet and kernel distances, reference statistics."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "KernelDistance": "kid",
        "ReferenceStatistics": "statistics",
        "StreamingMoments": "moments",
        "evaluate": "metrics",
        "frechet_distance": "frechet",
        "frechet_to_reference": "metrics",
        "gather_moments": "moments",
        "kernel_distance": "kid",
        "load_statistics": "statistics",
        "make_extractor": "features",
        "reference_statistics": "metrics",
        "save_statistics": "statistics",
        "train_classifier": "classifier",
    },
)
