"""Damage each file of a study's folder in turn: the same command ends in equal results, or refuses with a remedy.

`python tests/end_to_end/tearing.py MOST [SEED]` prints a line for each of at most MOST trials of a killed and of a
finished study.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from killing import STRATEGIES, Trials, at


def torn(trials: Trials, rng: random.Random, most: int) -> Iterator[str]:
    """Damages files of a study that was killed, and of one that is finished; what came of it, a line for each."""
    for state, stop in (("killed", [at("training", trials.counts["training"] * 2 // 3)]), ("finished", [])):
        name, kept = f"torn-{state}", trials.folder / "kept"
        for one in stop:
            trials.child(name, one)
        if not stop:
            trials.child(name)
        root = trials.folder / "runs" / name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(root, kept)
        files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"]
        cases = [(file, how) for file in files for how in ("cut", "empty", "flipped")]
        for file, how in rng.sample(cases, min(most, len(cases))):
            shutil.rmtree(root)
            shutil.copytree(kept, root)
            damage(root / file, how, rng)
            yield f"{state}, {file} {how}: {verdict(trials, name, file)}"


def damage(file: Path, how: str, rng: random.Random) -> None:
    """Cuts a file at a random byte, empties it, or flips one bit."""
    content = bytearray(file.read_bytes())
    if how == "flipped" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        content = content[: rng.randrange(len(content)) if how == "cut" and content else 0]
    file.write_bytes(content)


def verdict(trials: Trials, name: str, file: Path) -> str:
    """Whether the same command then ends in equal results, or refuses with the file's name and a remedy."""
    (trials.folder / "errors.txt").unlink(missing_ok=True)
    if status := trials.child(name):
        said = (trials.folder / "errors.txt").read_text()
        helpful = file.name in said and "elete" in said and "Traceback" not in said
        return (
            f"refused, equal: {said.strip()[-160:]}"
            if status == 2 and helpful
            else f"ended with {status}: {said[-600:]}"
        )
    return trials.difference(name) or "went on, equal"


def main(most: int, seed: int) -> int:
    """Makes the trials; the number that did not end as they should."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        few = {name: STRATEGIES[name] for name in ("replay", "lora")}
        for line in torn(Trials(Path(folder), strategies=few), random.Random(seed), most):
            wrong += ", equal" not in line
            print(line, flush=True)
    print(f"{wrong} trials went wrong")
    return min(wrong, 99)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
