"""Atomic files, CSV and locks."""

from __future__ import annotations

import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import ROOT

from workbench.runtime.files import only_process, read_csv, to_csv, write_whole


def broken(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scores.csv"
    write_whole(file, "old")
    monkeypatch.setattr(os, call, broken)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "new")
    monkeypatch.undo()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    write_whole(file, "new")
    assert file.read_text() == "new"


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_folders_are_created_and_the_text_is_written_exactly(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file.txt"
    write_whole(file, "é\r\n中\n")
    assert file.read_bytes() == "é\r\n中\n".encode()


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    write_whole(tmp_path / "whole", "")
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_floats_and_texts_come_back_from_csv_as_they_were(tmp_path: Path) -> None:
    floats = [0.1, 1 / 3, 2**0.5 * 1e-300, 1e308, -0.0, 5e-324, 0.1 + 0.2, math.pi]
    texts = ['a "b", c', "line\nbreak", "é", "", " padded ", "1e5", "x;y\tz", "'"]
    rows = [{"text": text, "value": value} for text, value in zip(texts, floats, strict=True)]
    write_whole(tmp_path / "file.csv", to_csv(("text", "value"), rows))
    back = read_csv(tmp_path / "file.csv")
    assert [row["text"] for row in back] == texts
    assert [float(row["value"]).hex() for row in back] == [value.hex() for value in floats]


def test_what_was_not_measured_is_nan_or_empty(tmp_path: Path) -> None:
    write_whole(tmp_path / "file.csv", to_csv(("a", "b"), [{"a": math.nan}, {"a": None, "b": 1}]))
    assert read_csv(tmp_path / "file.csv") == [{"a": "nan", "b": ""}, {"a": "", "b": "1"}]


def test_an_unknown_column_is_refused_and_an_absent_file_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="c"):
        to_csv(("a", "b"), [{"c": 1}])
    assert read_csv(tmp_path / "absent.csv") == []


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from workbench.runtime.files import only_process\n"
        "with only_process(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    with pytest.raises(BlockingIOError, match="in use by another process"), only_process(tmp_path):
        pass
    other.kill()
    other.communicate()
    with only_process(tmp_path):  # a dead process keeps nothing
        pass


def test_a_lock_ends_with_its_process_and_not_with_its_children(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from workbench.runtime.files import close_inherited_locks, only_process\n"
        "with only_process(Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        close_inherited_locks(); print('child', flush=True); time.sleep(20); os._exit(0)\n"
        "    time.sleep(0.5); os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL)
    assert process.wait(timeout=60) == -9
    with only_process(tmp_path):
        pass
