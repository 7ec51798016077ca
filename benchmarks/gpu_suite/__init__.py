"""One command for a GPU machine: see gpu_suite.sh. Nothing is built yet: standard library only."""
