"""Write report.html, one self-contained page with pictures, into a run folder.

A file that is damaged is named in the place of what it would have shown; the rest stands.
"""

from __future__ import annotations

import argparse

from ddsm_ext.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm report`."""
    options.add_run_argument(parser)
    parser.add_argument("--out", metavar="FILE", help="where to write (default: in the run)")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm report`."""
    options.check_output("--out", args.out, suffix=".html")
    folder = options.find_run(args)

    from ddsm_ext.io.lock import output_lock
    from ddsm_ext.report.page import build_report

    with output_lock(folder, args.out):
        print(build_report(folder, args.out))
    return 0
