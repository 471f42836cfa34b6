"""Signals raise exceptions, and are sent again where Python or a library drops them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from workbench.runtime.signals import raise_on_signals

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Ctrl-C as in a terminal: in a shell's background job it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


class SendsWhenCollected:
    def __del__(self) -> None:
        send(signal.SIGTERM)


def send_and_swallow() -> None:
    with suppress(SystemExit):
        send(signal.SIGTERM)


def seconds_until_exit(drop: Callable[[], object]) -> float:
    """Seconds from a dropped signal to the exit, at most ten."""
    started = time.monotonic()

    def drop_and_wait() -> None:
        drop()
        time.sleep(10)

    with pytest.raises(SystemExit) as error, raise_on_signals():
        drop_and_wait()
    assert error.value.code == 143
    return time.monotonic() - started


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_to_end_raises_its_exit_status(number: signal.Signals, status: int) -> None:
    with pytest.raises(SystemExit) as error, raise_on_signals():
        send(number)
    assert error.value.code == status


def test_ctrl_c_raises_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), raise_on_signals():
        send(signal.SIGINT)


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with raise_on_signals():
        send(signal.SIGINT)


def test_handlers_and_hook_are_restored_and_no_signal_follows() -> None:
    before = [signal.getsignal(number) for number in NUMBERS], sys.unraisablehook
    heard: list[int] = []
    with pytest.raises(SystemExit), raise_on_signals():
        send(signal.SIGTERM)
    assert ([signal.getsignal(number) for number in NUMBERS], sys.unraisablehook) == before
    handler = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    time.sleep(1.7)
    signal.signal(signal.SIGTERM, handler)
    assert heard == []


def test_a_signal_that_is_dropped_in_garbage_collection_comes_again_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert seconds_until_exit(SendsWhenCollected) < 1
    assert "Exception ignored" not in capsys.readouterr().err


def test_a_signal_that_code_swallows_comes_again() -> None:
    assert seconds_until_exit(send_and_swallow) < 3


def test_other_dropped_exceptions_are_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))

    class Fails:
        def __del__(self) -> None:
            raise ZeroDivisionError

    with raise_on_signals():
        Fails()
    assert reported == [ZeroDivisionError]
