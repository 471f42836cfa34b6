"""Signal handlers that stop a run cleanly."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

SECONDS_TO_UNWIND = 1.5
SECONDS_AFTER_DROP = 0.05


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, and SystemExit(128 + number) on SIGTERM and SIGUSR1.

    Clusters and `kill` send SIGTERM; SLURM is often asked to send SIGUSR1 before a job's time limit. Every file is
    whole at any moment, so the exception may be raised anywhere. Where Ctrl-C is already ignored, as in a shell's
    background job, it stays ignored.

    Python drops an exception raised in `__del__` (garbage collection) or in a weakref callback and reports it to
    `sys.unraisablehook`: from there the signal is sent again after 0.05 s. A signal that has not ended the context
    after 1.5 s, because some library swallowed the exception, is sent again as well.
    """
    received: list[int] = []
    timers: list[Timer] = []
    report_unraisable = sys.unraisablehook

    def send_again(seconds: float) -> None:
        timers.append(Timer(seconds, os.kill, (os.getpid(), received[-1])))
        timers[-1].daemon = True
        timers[-1].start()

    def stop(number: int, _: object) -> None:
        received.append(number)
        send_again(SECONDS_TO_UNWIND)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def notice_drop(unraisable: Any) -> None:
        if received and isinstance(unraisable.exc_value, KeyboardInterrupt | SystemExit):
            send_again(SECONDS_AFTER_DROP)
        else:
            report_unraisable(unraisable)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    handlers = {number: signal.signal(number, stop) for number in numbers}
    sys.unraisablehook = notice_drop
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        sys.unraisablehook = report_unraisable
        for number, handler in handlers.items():
            signal.signal(number, handler)
