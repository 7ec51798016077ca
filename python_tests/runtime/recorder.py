"""Stands in for CUDA graphs: replays a call by making it again."""

from __future__ import annotations

from typing import ClassVar

from ddsm_ext.runtime.cuda import Call


class Recorder:
    """Counts what is captured and replayed; `made` lists all recorders, newest last."""

    made: ClassVar[list[Recorder]] = []

    def __init__(self, device: object = None) -> None:
        self.captures = self.replays = self.waits = self.finishes = 0
        Recorder.made.append(self)

    def capture(self, call: Call) -> Call:
        call()  # as before a real capture
        self.captures += 1
        call()

        def replay() -> None:
            assert self.waits > self.replays, "a replay that waited for no other"
            self.replays += 1
            call()

        return replay

    def wait(self) -> None:
        self.waits += 1

    def finish(self) -> None:
        self.finishes += 1

    def nbytes(self) -> int:
        return 1000 * self.captures
