"""Search for the width of every denoising step: genome, cost, quality, NSGA-II, Pareto front."""

from ddsm_ext._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "CostTable": "cost",
        "Front": "front",
        "FrontPoint": "front",
        "Search": "engine",
        "SearchConfig": "config",
        "SearchProgress": "engine",
        "Sensitivity": "sensitivity",
        "StrategySpace": "genome",
        "measure_sensitivity": "sensitivity",
        "search": "engine",
        "solve_budget": "budget",
    },
)
