"""diffusers, where it is installed: its import takes seconds and is made once a process."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import lru_cache
from typing import Any

import pytest


@lru_cache
def diffusers() -> Any:
    """The package, silent; skips where it is not installed, but not unseen in a submission."""
    if importlib.util.find_spec("diffusers") is None and "CI" not in os.environ:
        pytest.skip("diffusers is not installed: pip install 'ddsm_ext[diffusers]'")
    from ddsm_ext._optional import import_diffusers

    found = import_diffusers("tests")
    found.utils.logging.set_verbosity(logging.CRITICAL)
    found.utils.logging.disable_progress_bar()
    return found
