"""A network said once: nodes, the rules that slim them, counts. No torch."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Graph": "graph",
        "NetworkConfig": "config",
        "Node": "node",
        "Slicing": "slicing",
        "activation_bytes": "count",
        "layer_macs": "count",
        "layers": "count",
        "macs": "count",
        "parameter_count": "count",
        "run": "node",
    },
)
