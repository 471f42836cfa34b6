"""Whether a worker process would execute the user's script again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.studies import ROOT

ASK = "from workbench.executors.guard import can_start_workers"
SCRIPTS = {
    "plain": (f"{ASK}\nprint(can_start_workers())\n", False),
    "guarded": (f"{ASK}\nif __name__ == '__main__':\n    print(can_start_workers())\n", True),
    "called under the guard": (
        f"{ASK}\ndef main():\n    print(can_start_workers())\nif __name__ == '__main__':\n    main()\n",
        True,
    ),
    "under another if": (f"{ASK}\nif True:\n    print(can_start_workers())\n", False),
    "before the guard": (f"{ASK}\nprint(can_start_workers())\nif __name__ == '__main__':\n    pass\n", False),
    "in a thread of a guarded script": (
        f"import threading\n{ASK}\nif __name__ == '__main__':\n"
        "    it = threading.Thread(target=lambda: print(can_start_workers()))\n    it.start(); it.join()\n",
        True,
    ),
}


def answer(*command: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_asked_for_its_guard(name: str, tmp_path: Path) -> None:
    text, expected = SCRIPTS[name]
    (tmp_path / "script.py").write_text(text, encoding="utf-8")
    assert answer("script.py", folder=tmp_path) == str(expected)


def test_what_is_no_script_needs_no_guard(tmp_path: Path) -> None:
    assert answer("-c", f"{ASK}; print(can_start_workers())", folder=tmp_path) == "True"
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(SCRIPTS["plain"][0], encoding="utf-8")
    assert answer("-m", "package", folder=tmp_path) == "True"
