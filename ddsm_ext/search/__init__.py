"""Search for the width of every denoising step: genome, cost, quality, NSGA-II, Pareto front."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "CostTable": "cost_table",
        "Front": "front",
        "FrontPoint": "front",
        "SearchConfig": "config",
        "Sensitivity": "sensitivity",
        "StrategySpace": "genome",
        "additive_quality": "objective",
        "macs_table": "cost_table",
        "measure_ms": "cost_table",
        "measure_sensitivity": "sensitivity",
        "search": "engine",
        "solve_budget": "budget",
        "terminal_progress": "progress",
    },
)
