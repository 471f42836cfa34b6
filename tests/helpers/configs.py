"""A study's YAML and the classes that it names."""

from __future__ import annotations

from pathlib import Path

YAML = """
name: again
seeds: [0, 1]
benchmark: {class_path: methods.Bench, init_args: {path: here}}
strategies:
  seqft: {class_path: methods.Plain}
  lora:
    class_path: methods.LoRA
    init_args: {rank: 8}
    optimizer: {init_args: {lr: 2e-3}}
    per_task: {FOMC: {max_epochs: 7}}
  mix:
    - {class_path: methods.LoRA, trainer: {max_steps: 5}}
    - {class_path: methods.Plain}
optimizer: {class_path: methods.Adam, init_args: {lr: 1.0e-3, decay: 0.1}}
per_task:
  FOMC: {max_epochs: 3, optimizer: {init_args: {lr: 1.0e-5}}}
  MeetingBank: {optimizer: {class_path: methods.SGD}, scheduler: {class_path: methods.Cosine}}
data: {batch_size: 32, max_length: 256}
trainer: {max_epochs: 1, accelerator: auto}
"""

METHODS = """
class Bench:
    def __init__(self, path: str): ...
class Plain: ...
class LoRA:
    def __init__(self, rank: int = 8): ...
class Adam:
    def __init__(self, params, lr: float = 1.0, decay: float = 0.0): ...
class SGD:
    def __init__(self, params, lr: float = 1.0): ...
class Cosine:
    def __init__(self, optimizer, steps: int = 1): ...
class Trainer:
    def __init__(self, max_epochs: int | None = None, max_steps: int = -1, accelerator: str = "auto"): ...
"""


def write_study(folder: Path) -> Path:
    """Write the YAML and a module with its classes, and return the YAML's path."""
    (folder / "methods.py").write_text(METHODS, encoding="utf-8")
    (folder / "study.yaml").write_text(YAML, encoding="utf-8")
    return folder / "study.yaml"
