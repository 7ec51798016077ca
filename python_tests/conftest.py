"""What every test process needs."""

import os

# Tests that start Python must test the package that this process tests, not the source folder
# that happens to be the working directory.
os.environ["PYTHONSAFEPATH"] = "1"
