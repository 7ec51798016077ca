"""Write report.html, one self-contained page with pictures, into a run folder."""

from __future__ import annotations

import argparse

from ddsm_ext.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm report`."""
    options.add_run_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ddsm report`."""
    from ddsm_ext.report.page import build_report

    print(build_report(options.find_run(args)))
    return 0
