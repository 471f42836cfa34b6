"""Printed tables, read back as cells."""

from __future__ import annotations

from rich.console import Console


def printed(table: object) -> list[list[str]]:
    """A table's rows as cells, the header's left out."""
    console = Console(width=240)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
