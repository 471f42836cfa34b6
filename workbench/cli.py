"""The command: `lightning run`, `list`, `report`, `check`, `grow`, `merge`, `export`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from safetensors import SafetensorError

from workbench.config import Component, instantiate, load
from workbench.config.components import check_component
from workbench.config.loading import arguments as read_arguments
from workbench.config.loading import shipped_configs
from workbench.config.validation import check as check_components
from workbench.config.validation import check_parts, check_surroundings
from workbench.errors import ConfigError
from workbench.runtime.signals import raise_on_signals

if TYPE_CHECKING:
    from workbench.report import Comparison
    from workbench.study import Study

KEPT = "All that was measured is kept, and so is the last saved state: give the same command to go on."
INTERRUPTED = 130
FAILED = 1
WRONG_INPUT = 2

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Continual learning of LLaMA-family language models: one config is one study.",
)


Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")]


@app.command()
def run(config: str, overrides: Overrides = None) -> None:
    """Run a study: CONFIG is a path, or the name of a shipped config (see `lightning list`)."""
    study = checked(config, overrides or [])
    from workbench.display import choose_display

    with going_on(), choose_display() as display:
        comparisons = study.execute(display)
    if comparisons:
        show(study.folder, comparisons)
    if study.failures:
        tell(study.failures)
        raise typer.Exit(FAILED)


@app.command(name="list")
def list_() -> None:
    """List the strategies, benchmarks and configs that come along, a line each."""
    for package in ("strategies", "benchmarks"):
        module = import_module(package)
        print(f"{package}:")
        for name in module.__all__:
            print(f"  {package}.{name:<22} {first_line(getattr(module, name))}")
    print("configs:")
    for name, path in shipped_configs().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"  {name:<33} {first.lstrip('# ')}")


@app.command()
def report(folders: Annotated[list[str], typer.Argument(metavar="FOLDER... [key=value]...")]) -> None:
    """Rebuild the report of the run folders under each FOLDER, finished or not: tables here, files in a folder.

    The files of one FOLDER go there. Those of several go to out=FOLDER or, without it, to a new one beside them.

    Keys: out=FOLDER; baseline=STRATEGY; relearning=true and knock_out=true open each finished run's model again, which
    takes time.
    """
    given = [Path(folder) for folder in folders if "=" not in folder or Path(folder).exists()]
    settings = dict(text.split("=", 1) for text in folders if Path(text) not in given)
    if not given:
        raise ConfigError(["report: no folder is given. Give a study's folder, such as runs/quickstart."])
    from workbench.report import compare, write_report
    from workbench.report.analyses import requested
    from workbench.report.terminal import by_domain
    from workbench.report.write import destination

    analyses = []
    if asked := requested(settings):
        from workbench.analysis.runner import analyse, built
        from workbench.display import PlainDisplay, quiet

        analyses = built(asked)
    comparisons = compare(given, settings.get("baseline"))
    out = destination(given, settings.get("out"))
    if analyses:
        quiet()
        with going_on(), PlainDisplay() as display:
            analyse(out, comparisons, analyses, display)
    for part in by_domain(comparisons, output().width):
        output().print(part)
    write_report(out, comparisons)
    show(out, comparisons)


@app.command()
def check(class_path: str, arguments: Overrides = None) -> None:
    """Run the conformance suite on a strategy or a benchmark, given by import path and its arguments."""
    component = Component(class_path, read_arguments(arguments or []))
    if problems := check_component(component, class_path):
        raise ConfigError(problems)
    from workbench.display import quiet
    from workbench.testing import ConformanceError, check_either, likely_mistakes

    quiet()
    try:
        for sentence in likely_mistakes(lambda: instantiate(component)):
            print(f"warning: {sentence}", file=sys.stderr, flush=True)
        passed = check_either(lambda: instantiate(component))
    except ConformanceError as error:
        tell(error.failures)
        raise typer.Exit(FAILED) from error
    for sentence in passed:
        print(f"ok: {sentence}")


@app.command()
def grow(model: str, out: Path, class_path: str, arguments: Overrides = None) -> None:
    """Add layers to the folder MODEL as a strategy begins a run, from disk to disk, and write OUT; trains nothing."""
    component = Component(class_path, read_arguments(arguments or []))
    if problems := check_component(component, class_path):
        raise ConfigError(problems)
    from workbench import surgery

    with whole_or_nothing():
        made = surgery.grow(model, out, instantiate(component))
    identities = f", {made.identities} of them identities" if made.identities else ""
    print(
        f"{made.folder}: {made.before} layers became {made.after}{identities}; "
        f"{made.parameters:,} parameters, {made.size / 1e6:,.1f} MB."
    )
    if made.adapters:
        print(f"{model}/adapters was left behind: they fit the layers as they were numbered before.")


@app.command()
def merge(first: str, second: str, out: Path, arguments: Overrides = None) -> None:
    """Merge the model folders FIRST and SECOND into OUT: method=average or slerp, weight=SECOND's share."""
    component = Component("workbench.surgery.merging.merge", read_arguments(arguments or []))
    if problems := check_component(component, "merge", ("first", "second", "out")):
        raise ConfigError(problems)
    with whole_or_nothing():
        count = instantiate(component, first=first, second=second, out=out)
    print(f"{out}: {count} tensors of {first} and {second} were merged.")


@app.command()
def export(run: Path, out: Path) -> None:
    """Write the model of the finished run RUN to the folder OUT, for plain transformers or peft, with a model card."""
    from workbench.report import export as export_run

    with whole_or_nothing():
        folder = export_run(run, out)
    print(f"{folder}: the model, its tokenizer and README.md, which says how it was made and how to load it.")


@contextmanager
def going_on() -> Iterator[None]:
    """Ends a study that is stopped at once, whatever it does, with a status that a scheduler reads as interrupted.

    Raises:
        typer.Exit: Always, where the study did not end by itself; with that status.
    """
    try:
        with raise_on_signals():
            yield
    except KeyboardInterrupt as error:
        print(f"interrupted. {KEPT}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from error
    except SystemExit as error:
        print(f"terminated. {KEPT}", file=sys.stderr)
        raise typer.Exit(error.code if isinstance(error.code, int) else FAILED) from error
    except failures() as error:
        tell([f"{(str(error) or type(error).__name__).splitlines()[0]}. {KEPT}"])
        raise typer.Exit(FAILED) from error


def failures() -> tuple[type[Exception], ...]:
    """What ends a study that can be gone on with; of several processes each fails so when another one has ended."""
    from workbench.runtime.distributed import world

    known = (OSError, FloatingPointError, SafetensorError)
    return (*known, RuntimeError) if world() > 1 else known


@contextmanager
def whole_or_nothing() -> Iterator[None]:
    """Tells what a command on folders refuses, or what the disk does; a folder that was begun is gone by then."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error).splitlines()) from error
    except OSError as error:
        tell([f"{error}. Nothing was written. Choose another folder, or mend that."])
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as error:
        print("interrupted. Nothing was written.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from error


def checked(config: str, overrides: list[str]) -> Study:
    """The study of a config. What is wrong is printed as soon as it is known, all of it in one go.

    Raises:
        ConfigError: What was not printed yet, as far as anything is wrong.
    """
    told: list[str] = []
    try:
        settings = load(config, overrides)
        told += check_surroundings(settings)
        tell(told)
        told += tell_new(check_components(settings), told)
    except ConfigError as error:
        if not error.raw:
            raise
        told += error.problems
        tell(told)
        told += tell_new(check_parts(error.raw), told)
    from workbench.display import quiet
    from workbench.study import Study

    quiet()
    try:
        return Study(config, overrides)
    except ConfigError as error:
        raise ConfigError([problem for problem in error.problems if problem not in told]) from error


def tell_new(problems: Iterable[str], told: list[str]) -> list[str]:
    """Prints and returns what was not told before."""
    new = [problem for problem in problems if problem not in told]
    tell(new)
    return new


def tell(problems: Iterable[str]) -> None:
    """Prints what is wrong."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr, flush=True)


def show(folder: Path, comparisons: list[Comparison]) -> None:
    """Prints each comparison of strategies with what it cannot tell, what they cost, and where the results are."""
    from workbench.report import terminal

    for comparison in comparisons:
        for table in terminal.tables(comparison, output().width):
            output().print(table)
        for sentence in terminal.sentences(comparison):
            output().print(f"! {sentence}", markup=False, highlight=False)
    for table in terminal.sweep_tables(comparisons):
        output().print(table)
    for line in terminal.settings_lines(comparisons):
        output().print(line, markup=False, highlight=False)
    files = "summary.csv, table.tex, references.bib, figures/; " if any(one.runs for one in comparisons) else ""
    print(f"Results: {folder}  (report.html; {files}per run scores.csv, nll.csv, train.csv, predictions/, model/)")


def output() -> Console:
    """A console; on a pipe wide enough that no column of a table is cut."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def first_line(documented: object) -> str:
    """The first sentence of a docstring."""
    return (documented.__doc__ or "").strip().partition("\n")[0]


def guarded(command: Callable[[], None]) -> int:
    """Runs the program; what a user can mend is told in one message, without a traceback.

    Returns:
        The exit status: 2 for wrong input, 1 for a run that failed, 130 for an interrupt, 143 where terminated.
    """
    try:
        command()
    except ConfigError as error:
        tell(error.problems)
        return WRONG_INPUT
    except (OSError, SafetensorError) as error:
        tell([str(error)])
        return FAILED
    except SystemExit as error:  # typer ends so, whatever happened
        return error.code if isinstance(error.code, int) else 0
    return 0


def main() -> None:
    """The entry point of `lightning`, `workbench` and `python -m workbench`."""
    gc.disable()  # until the engine is there: importing is a fifth faster without
    sys.exit(guarded(app))
