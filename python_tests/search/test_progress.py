"""The bar is drawn on a terminal only."""

from __future__ import annotations

import io
import sys

from ddsm_ext.search.progress import SearchProgress, terminal_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_no_bar_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert terminal_progress() is None


def test_a_bar_with_generation_and_hypervolume(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    show = terminal_progress()
    for count in (1, 5, 10):
        show(SearchProgress(count, 10, 1, 4, "cheap", 0.5))
    text = screen.getvalue()
    assert "10/10" in text
    assert "generation 2/4, hypervolume 0.5000" in text
