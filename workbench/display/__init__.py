"""Progress of a study: plain lines in a log, a live screen in a terminal, one line a run where runs share the time."""

from __future__ import annotations

import sys

from rich.console import Console

from workbench.display.base import Display as Display
from workbench.display.base import Lines as Lines
from workbench.display.base import Relay as Relay
from workbench.display.base import quiet as quiet
from workbench.display.live import LiveDisplay as LiveDisplay
from workbench.display.plain import PlainDisplay as PlainDisplay


def choose_display() -> Display:
    """Return a live screen in a terminal, and plain lines on a pipe or in a file."""
    console = Console()
    return LiveDisplay(console) if sys.stdout.isatty() and console.is_terminal else PlainDisplay()
