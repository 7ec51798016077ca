"""What every test process needs."""

import os
import sys
from pathlib import Path

import pytest

# Tests that start Python must test the package that this process tests, not the source folder
# that happens to be the working directory.
os.environ["PYTHONSAFEPATH"] = "1"

# A failed assert of the tests' helpers says what it compared, as one of a test does.
_FOLDERS = [path.name for path in Path(__file__).parent.iterdir() if path.is_dir()]
pytest.register_assert_rewrite(*(f for f in _FOLDERS if f not in sys.stdlib_module_names))
