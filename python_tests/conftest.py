"""What every test process needs."""

import os
import sys
from pathlib import Path

import pytest

# Tests that start Python must test the package that this process tests, not the source folder
# that happens to be the working directory.
os.environ["PYTHONSAFEPATH"] = "1"

# Workers of pytest-xdist share the cores, and the processes that tests start share theirs: with all
# cores for each, their threads wait for one another (2 cores, `-n 2`: some files take twice the
# time). What holds of several threads is tested with `torch.set_num_threads`. Torch reads it as it
# is imported.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# A failed assert of the tests' helpers says what it compared, as one of a test does.
_FOLDERS = [path.name for path in Path(__file__).parent.iterdir() if path.is_dir()]
pytest.register_assert_rewrite(*(f for f in _FOLDERS if f not in sys.stdlib_module_names))
