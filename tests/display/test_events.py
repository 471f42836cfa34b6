"""Events that reach a display from another process: the same ones, in the same order."""

from __future__ import annotations

from typing import Any

from helpers.progress import one_run

from workbench.display import Display, Lines, Relay


class Kept(Display):
    """Keeps the lines that it receives."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_a_relay_sends_each_event_with_its_arguments() -> None:
    sent: list[tuple[str, tuple[Any, ...]]] = []
    one_run(Relay(lambda event, arguments: sent.append((event, arguments))))
    received: list[tuple[str, tuple[Any, ...]]] = []
    again = Relay(lambda event, arguments: received.append((event, arguments)))
    for event, arguments in sent:
        getattr(again, event)(*arguments)
    assert received == sent
    names = [event for event, _ in sent]
    assert names == ["run_begins", *["scoring", "scored", "scored", "item_begins", "steps", "steps"],
                     *["scoring", "scored", "scored"], "run_ends"]  # fmt: skip
    assert sent[-1][1][0]["OP"] == 0.875


def test_a_display_without_places_for_several_runs_gets_lines() -> None:
    kept = Kept()
    view = kept.beside("one")
    assert isinstance(view, Lines)
    one_run(view)
    view.note("  a note")
    view.run_fails("one failed: no memory")
    assert kept.lines == ["one: task 1 of 1 alpha", "one: finished after 3 s, OP 0.875", "one: a note",
                          "one failed: no memory"]  # fmt: skip
