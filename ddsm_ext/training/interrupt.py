"""First Ctrl-C or SIGTERM asks for a clean stop; the second aborts."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Context in which the first SIGINT or SIGTERM sets `wanted` and the second one aborts.

    Outside the main thread, where Python sets no handlers, it never wants to stop.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.wanted:
            raise KeyboardInterrupt(f"second {name}")
        self.wanted = True
        print(f"\n{name}: finishing the step and saving; once more aborts", file=sys.stderr)
