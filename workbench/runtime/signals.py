"""Signals that end a program: heard wherever it is, and once more where Python drops what they raise."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from types import FrameType

SECONDS = 1.5
SOON = 0.05


@contextmanager
def signals_end_it() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt at once; SIGTERM and SIGUSR1 raise SystemExit with 128 and the signal's number.

    SIGTERM is what `kill` and clusters send; SIGUSR1 what SLURM is often asked to send before a job's time is over.
    Python drops what is raised while it clears up after an object, or in a library's callback: so the signal is sent
    again after 1.5 s, until it is heard. In an object's `__del__`, where one that came while garbage was collected is
    heard, nothing is raised at first, but the signal sent again each 0.05 s for 1.5 s. Where Ctrl-C is ignored already,
    as in a shell's background job, it stays so.
    """
    again: list[Timer] = []

    def stop(number: int, frame: FrameType | None) -> None:
        """Ends the program wherever it is: files are whole at any moment."""
        waits = _clears_up(frame) and len(again) * SOON < SECONDS
        again.append(Timer(SOON if waits else SECONDS, os.kill, (os.getpid(), number)))
        again[-1].daemon = True
        again[-1].start()
        if not waits:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    known = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        known.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in known}
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _clears_up(frame: FrameType | None) -> bool:
    """Whether an object's `__del__` is being called."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
