"""The command line: reads arguments, calls one function, writes what it returns.

Heavy imports stand inside the commands: `--help` and a mistyped option need no PyTorch. Standard output carries
results, standard error everything else. Exit codes: 0 all well, 1 a record failed, 2 nothing usable, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ribonanzamamba import __version__
from ribonanzamamba.prediction import TASKS, check_tasks

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress, TaskID

    from ribonanzamamba.evaluation.submission import Target
    from ribonanzamamba.prediction.folder import PredictionFolder
    from ribonanzamamba.prediction.predict import Predictor
    from ribonanzamamba.rna.records import Prediction, Record

RECORD_FAILED = 1
NOTHING_USABLE = 2
INTERRUPTED = 130
DOTS_PER_INCH = 120
"""Of a picture of an RNA."""

app = typer.Typer(
    help="RNA sequences in; reactivity, base pairs with pseudoknots, and 3D coordinates out, each with a confidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PriorOption = Annotated[
    str, typer.Option(help="Pair probabilities as an input: auto (ViennaRNA if installed), vienna or none.")
]
WeightsOption = Annotated[
    str | None, typer.Option(metavar="PATH", help="Checkpoint folder or preset; the released weights otherwise.")
]

TemplatesOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="Known structures to copy in 3D: a coordinate table, an mmCIF or PDB file, or a folder of these; may be "
        "repeated. Needs the extra [templates].",
    ),
]


class Task(str, Enum):
    """What can be scored."""

    REACTIVITY = "reactivity"
    STRUCTURE = "structure"
    COORDINATES = "coordinates"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ribonanzamamba {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    # the callback above has done it: it runs before a command is looked for
    pass


@app.command()
def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="A sequence, FASTA (.gz), CSV/TSV/Parquet with a `sequence` column, or - for standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results.")],
    tasks: Annotated[str, typer.Option(help="What to predict, separated by commas.")] = ",".join(TASKS),
    models: Annotated[int, typer.Option(min=1, help="3D models of each RNA, best first.")] = 5,
    device: DeviceOption = "auto",
    prior: PriorOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run in DIR.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results in DIR.")] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Draw each RNA too, as pictures/ID.png. Needs the extra [plots].")
    ] = False,
    templates: TemplatesOption = None,
    weights: WeightsOption = None,
) -> None:
    """Predict RNAs: reactivity, base pairs and 3D coordinates, as files in DIR."""
    if resume and overwrite:
        _stop("--resume and --overwrite exclude each other")
    with _one_line_errors(ImportError):
        asked = check_tasks(tuple(task.strip() for task in tasks.split(",") if task.strip()))
        if pictures:
            # says how matplotlib is installed, before anything is predicted
            from ribonanzamamba import plots  # noqa: F401
        if templates and "coordinates" not in asked:
            raise ValueError("--templates are of use for the task coordinates alone")
    run = _Run(out, draws=pictures)
    with _interruptible(run):
        records = _read(inputs, run)
        if not records:
            _finish(run)
        _set_up_process()
        from ribonanzamamba.prediction.folder import Existing, FolderError, Origin, PredictionFolder
        from ribonanzamamba.prediction.predict import load

        with _one_line_errors(FolderError, ImportError):
            predictor = load(weights, device, prior, templates)
            for warning in predictor.warnings:
                run.warn(warning)
            # a number of models the network lacks is refused before a folder is made
            predictor.iterate([], asked, models)
            run.folder = PredictionFolder(
                out,
                asked,
                models,
                origin=Origin(
                    predictor.name,
                    predictor.weights_hash,
                    str(predictor.device),
                    tuple(inputs),
                    predictor.prior,
                    templates=str(predictor.templates or "none"),
                    template_paths=predictor.templates.paths if predictor.templates else (),
                ),
                existing=Existing.RESUME if resume else Existing.OVERWRITE if overwrite else Existing.REFUSE,
            )
        try:
            _predict_records(records, predictor, run.folder, run)
            run.folder.finish(run.order, warnings=run.warnings, problems=run.problems)
        except FolderError as error:
            _say(f"error: {error}")
            _say(run.progress())
            raise typer.Exit(RECORD_FAILED if run.done else NOTHING_USABLE) from None
    _finish(run)


@app.command()
def prepare(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Whose tables.")],
    out: Annotated[Path, typer.Option(metavar="STORE", help="Folder of the examples; `data.store` of a config.")],
    priors: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Add ViennaRNA's pair probabilities, kept in DIR; those missing are computed."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that compute them; 0: use what DIR has.")] = 1,
) -> None:
    """Read a config's tables once and write their examples to a folder that training reads in seconds."""
    with _interruptible(), _one_line_errors(ImportError):
        from ribonanzamamba.training.tables import prepare_store

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        prepared = prepare_store(config, out, priors, workers)
    typer.echo(prepared)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to train, on what, and how.")],
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Folder of the run; where it exists, the run resumes.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a value of the config.")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="PATH", help="Start from these weights: checkpoint folder, preset, or released."
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Do not train a part: trunk, or a module's name.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print parameters, expected peak memory and time a step; train nothing.")
    ] = False,
) -> None:
    """Train a network; the same command continues a run that was stopped. Several GPUs: start it with torchrun."""
    settings = list(overrides or ())
    if start_from is not None:
        settings.append(f"training.start_from={json.dumps(start_from)}")
    if freeze:
        settings.append(f"training.freeze={json.dumps(freeze)}")
    with _interruptible(), _one_line_errors(FloatingPointError):
        if plan:
            from ribonanzamamba.training.config import read_config
            from ribonanzamamba.training.plan import plan as plan_run

            processes = int(os.environ.get("WORLD_SIZE", "1"))
            typer.echo(plan_run(read_config(config, settings), processes).to_text())
            return
        from rich.console import Console

        from ribonanzamamba.training.display import Display, log_to
        from ribonanzamamba.training.loop import train as run_training

        first = int(os.environ.get("RANK", "0")) == 0
        console = Console(stderr=True)
        log_to(console)
        folder = run_training(config, out, settings, display=Display(console if first else None))
    if first:
        typer.echo(folder)


@app.command()
def battle(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Who fights, how long, and on what.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs, their results and the report.")],
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:BUDGET[:SEED]]", help="Train these runs only; may be repeated."),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="0,1,...", help="Train on these GPUs side by side, a run each; logs in DIR/logs."),
    ] = None,
    report: Annotated[
        bool | None,
        typer.Option(
            "--report/--no-report", help="Train nothing, write the report of what is there; or train, and write none."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a value of every contestant's config."),
    ] = None,
) -> None:
    """Train several networks on the same batches with the same budget, and report who is better.

    The same command continues a battle that was stopped.
    """
    with _interruptible(), _one_line_errors(FloatingPointError, ImportError):
        from rich.console import Console

        from ribonanzamamba.training.battle import fight, fight_side_by_side, read_battle
        from ribonanzamamba.training.display import Display, log_to

        console = Console(stderr=True)
        log_to(console)
        battle_read = read_battle(config, overrides or ())
        failed: list[str] = []
        if not report and devices is not None:
            places = [place.strip() for place in devices.split(",")]
            if not all(places):
                raise ValueError(f"--devices {devices!r}: expected GPUs apart by commas")
            command = [sys.executable, "-m", "ribonanzamamba", "battle", str(config), "--out", str(out), "--no-report"]
            command += [part for text in overrides or () for part in ("--set", text)]
            for event in fight_side_by_side(battle_read, out, command, places, only or ()):
                if event.code is None:
                    _say(f"GPU {event.device}: {event.name} ({event.log})")
                elif event.code:
                    _say(f"GPU {event.device}: {event.name} failed with exit code {event.code}: see {event.log}")
                    failed.append(event.name)
                else:
                    _say(f"finished: {event.name}")
        elif not report:
            for key in fight(battle_read, out, only or (), lambda: Display(console)):
                _say(f"finished: {key.folder}")
        if report is not False:
            # after the training: a machine that only trains needs no matplotlib, and another writes the report
            # first what says how matplotlib is installed
            from ribonanzamamba import plots  # noqa: F401
            from ribonanzamamba.training.battle_report import write_report

            typer.echo(write_report(battle_read, out))
    if failed:
        raise typer.Exit(RECORD_FAILED)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, drawn over each other.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture; .png, .svg or .pdf.")] = Path("curves.png"),
) -> None:
    """Draw the curves of training runs: losses, learning rate, gradient norm, held-out scores, throughput."""
    with _interruptible(), _one_line_errors(ImportError):
        from ribonanzamamba.plots.curves import draw_runs, panel_names
        from ribonanzamamba.training.metrics import read_metrics, series

        curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for run in runs:
            rows = read_metrics(run / "metrics.jsonl")
            keys = sorted({key for row in rows for key, value in row.items() if isinstance(value, (int, float))})
            # two runs may have one name in different folders
            name = run.resolve().name if len({each.resolve().name for each in runs}) == len(runs) else str(run)
            curves[name] = {key: series(rows, key) for key in keys if key not in ("step", "seconds")}
        names = panel_names(curves)
        if not names:
            raise ValueError(f"{', '.join(map(str, runs))}: nothing was logged yet")
        # after `plots`, which says how matplotlib is installed
        from matplotlib.figure import Figure

        columns = min(3, len(names))
        figure = Figure(figsize=(4.6 * columns, 3.0 * -(-len(names) // columns)), layout="constrained")
        axes = figure.subplots(-(-len(names) // columns), columns, squeeze=False).ravel()
        draw_runs(list(axes), curves)
        figure.savefig(out, dpi=150)
    typer.echo(out)


@app.command()
def score(
    task: Annotated[Task, typer.Argument(help="What to compare.")],
    truth: Annotated[Path, typer.Option(metavar="FILE", help="What was measured.")],
    predicted: Annotated[Path, typer.Option(metavar="FILE", help="What was predicted, as `predict` writes it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Only these rows of the truth.")] = None,
) -> None:
    """Compare predictions with measurements."""
    with _interruptible(), _one_line_errors():
        from ribonanzamamba.evaluation import report

        scorers = {
            Task.REACTIVITY: report.score_reactivity,
            Task.STRUCTURE: report.score_structure,
            Task.COORDINATES: report.score_coordinates,
        }
        result = scorers[task](truth, predicted, split=split)
    typer.echo(json.dumps(result.to_json(), indent=2, allow_nan=False) if as_json else result.to_text())


class Contest(str, Enum):
    """Kaggle's contests."""

    RIBONANZA = "ribonanza"
    FOLDING = "folding"


kaggle = typer.Typer(help="Write and check submissions to Kaggle's RNA contests.", no_args_is_help=True)
app.add_typer(kaggle, name="kaggle")

ContestArgument = Annotated[Contest, typer.Argument(help="Ribonanza (reactivity) or RNA 3D Folding.")]


@kaggle.command("write")
def kaggle_write(
    contest: ContestArgument,
    test: Annotated[Path, typer.Argument(metavar="TEST", help="The contest's test_sequences.csv.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The submission: .csv, .csv.gz, Ribonanza also .parquet.")],
    predicted: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take the predictions that `predict TEST --out DIR` has written.")
    ] = None,
    device: DeviceOption = "auto",
    prior: PriorOption = "auto",
    templates: TemplatesOption = None,
    weights: WeightsOption = None,
) -> None:
    """Predict a contest's test sequences and write the submission; it has its name once it was checked.

    RNAs that cannot be predicted are rows of zeros, named at the end; the exit code is 1 then.
    """
    from ribonanzamamba.evaluation.submission import check_ending, read_targets, write_submission

    problems: list[str] = []
    with _interruptible(), _one_line_errors(ImportError):
        check_ending(out, contest.value)
        if templates and (contest is not Contest.FOLDING or predicted is not None):
            raise ValueError("--templates are of use where folding is predicted alone")
        targets = read_targets(test, contest.value)
        with _progress_bar(sum(target.length for target in targets)) as (progress, bar):

            def failed(record: Record, message: str) -> None:
                problems.append(f"{_place(record)}: {message}")

            if predicted is not None:
                from ribonanzamamba.prediction.submission import answers_of_folder

                answers = answers_of_folder(predicted, contest.value, targets, failed)
            else:
                _set_up_process()
                from ribonanzamamba.prediction.predict import load
                from ribonanzamamba.prediction.submission import predicted_answers

                predictor = load(weights, device, prior, templates)
                for warning in predictor.warnings:
                    _say(f"warning: {warning}")
                answers = predicted_answers(predictor, contest.value, targets, failed)
            write_submission(out, contest.value, targets, _advancing(answers, targets, progress, bar))
    for problem in problems:
        _say(f"problem: {problem}")
    typer.echo(f"{len(targets)} RNAs in {out}" + (f", {len(problems)} of them zeros" if problems else ""))
    raise typer.Exit(RECORD_FAILED if problems else 0)


@kaggle.command("check")
def kaggle_check(
    contest: ContestArgument,
    submission: Annotated[Path, typer.Argument(metavar="SUBMISSION", help="The file to hand in.")],
    test: Annotated[Path, typer.Option(metavar="TEST", help="The contest's test_sequences.csv.")],
    truth: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measurements to score it by, as `score` reads them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Check that a submission is what the contest asks for, and with --truth score it by the contest's metric."""
    with _interruptible(), _one_line_errors():
        from ribonanzamamba.evaluation.report import score_coordinates
        from ribonanzamamba.evaluation.submission import check_submission, read_targets, score_ribonanza

        targets = read_targets(test, contest.value)
        for sentence in check_submission(submission, contest.value, targets):
            _say(f"warning: {sentence}")
        _say(f"{submission}: a valid submission of {len(targets)} RNAs, {sum(each.length for each in targets):,} rows")
        if truth is None:
            return
        if contest is Contest.RIBONANZA:
            result = score_ribonanza(submission, targets, truth)
        else:
            result = score_coordinates(truth, submission)
    typer.echo(json.dumps(result.to_json(), indent=2, allow_nan=False) if as_json else result.to_text())


class TableFormat(str, Enum):
    """How a table is printed."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"


@app.command()
def shapes(
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="A released network, ribonanzanet, or a checkpoint folder.")
    ] = "ribonanzamamba-2",
    length: Annotated[int, typer.Option(min=1, help="Nucleotides of each RNA.")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="RNAs at once.")] = 1,
    params: Annotated[bool, typer.Option("--params", help="Explain each parameter.")] = False,
    table_format: Annotated[TableFormat, typer.Option("--format", help="How to print it.")] = TableFormat.TEXT,
) -> None:
    """Show every module of a network: what goes in, what comes out, parameters, memory, meaning."""
    with _interruptible(), _one_line_errors():
        from ribonanzamamba.model.preset import preset_shapes

        table = preset_shapes(preset, batch=batch, length=length)
    printers = {
        TableFormat.TEXT: table.to_text,
        TableFormat.MARKDOWN: table.to_markdown,
        TableFormat.JSON: table.to_json,
    }
    typer.echo(printers[table_format](parameters=params))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Examine this machine: versions, devices, which scan runs and whether it is right; exit code 1 with problems."""
    with _interruptible():
        from ribonanzamamba.layers.doctor import examine

        examination = examine()
    typer.echo(examination.to_json() if as_json else examination.to_text())
    raise typer.Exit(0 if examination.healthy else 1)


@dataclass
class _Run:
    """What `predict` has done so far."""

    out: Path
    draws: bool = False
    """Whether each RNA is drawn."""
    folder: PredictionFolder | None = None
    order: list[str] = field(default_factory=list)
    """Ids in the order of the input."""
    done: int = 0
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        _say(f"warning: {message}")

    def fail(self, message: str, progress: Progress | None = None) -> None:
        self.problems.append(message)
        _say(f"problem: {message}", progress)

    def progress(self) -> str:
        return f"{self.done} of {len(self.order)} RNAs are in {self.out}; the same command with --resume does the rest"


def _read(inputs: Sequence[str], run: _Run) -> tuple[Record, ...]:
    """The usable records of all inputs; what is wrong with the others goes into `run`."""
    from ribonanzamamba.rna.formats import read_inputs

    result = read_inputs(inputs)
    for warning in result.warnings:
        run.warn(warning)
    for problem in result.problems:
        run.fail(_one_line(problem))
    run.order = [record.id for record in result.records]
    return result.records


def _set_up_process() -> None:
    """Settings of a process that predicts on a CPU, unless the user has others; to be made before PyTorch is imported.

    Both are read on Linux only, the one when PyTorch first allocates, the other when it is loaded.
    """
    # fresh pages cost a third of the time at 1,000 nt otherwise
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # How often a thread looks whether the others are done before it lets its core go. With OpenMP's 300,000 a machine
    # that does something else too takes 23 times as long at 100 and 400 nt, with this 4 to 6 times; an idle one 4 %
    # longer (docs/experiments.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _predict_records(records: Sequence[Record], predictor: Predictor, folder: PredictionFolder, run: _Run) -> None:
    """Predict the records that are not in the folder yet and write each as it is done, with a progress bar."""
    from ribonanzamamba.prediction.folder import IdTaken
    from ribonanzamamba.prediction.predict import PredictionProblem

    waiting = []
    for record in records:
        try:
            if folder.is_complete(record):
                run.done += 1
            else:
                waiting.append(record)
        except IdTaken as error:
            run.fail(str(error))
    with _progress_bar(sum(record.length for record in waiting)) as (progress, bar):
        for result in predictor.iterate(waiting, folder.tasks, folder.models):
            if isinstance(result, PredictionProblem):
                run.fail(f"{_place(result.record)}: {result.message}", progress)
            else:
                try:
                    folder.write(result)
                    run.done += 1
                    if run.draws:
                        _draw(result, folder)
                except IdTaken as error:
                    run.fail(str(error), progress)
            progress.update(bar, advance=result.record.length, description=result.record.id)


@contextmanager
def _progress_bar(nucleotides: int) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on a terminal, in nucleotides, with the id of the last RNA."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task("", total=nucleotides)


def _advancing(
    answers: Iterator[np.ndarray | None], targets: Sequence[Target], progress: Progress, bar: TaskID
) -> Iterator[np.ndarray | None]:
    """The answers, each moving the bar by the length of its target."""
    for target, answer in zip(targets, answers, strict=True):
        progress.update(bar, advance=target.length, description=target.record.id)
        yield answer


def _draw(prediction: Prediction, folder: PredictionFolder) -> None:
    """Draw one RNA into its folder."""
    from matplotlib.figure import Figure

    from ribonanzamamba.plots import draw_overview

    with folder.picture(prediction) as path:
        figure = draw_overview(Figure(layout="constrained"), prediction)
        figure.savefig(path, format="png", dpi=DOTS_PER_INCH)


def _finish(run: _Run) -> NoReturn:
    """Say what came of it, and leave with the exit code."""
    if run.problems:
        _say(f"{len(run.problems)} problem{'s' if len(run.problems) > 1 else ''}:")
        for problem in run.problems:
            _say(f"  {problem}")
    if not run.done:
        _say("nothing was predicted")
        raise typer.Exit(NOTHING_USABLE)
    typer.echo(f"{run.done} RNA{'s' if run.done > 1 else ''} in {run.out}")
    raise typer.Exit(RECORD_FAILED if run.problems else 0)


def _place(record: Record) -> str:
    """Where a record came from, in the words of `FormatError`."""
    where = f"{record.source}, line {record.line}, " if record.source else ""
    return f"{where}record {record.id!r}"


@contextmanager
def _one_line_errors(*more: type[Exception]) -> Iterator[None]:
    """Turns the errors a user can cause into one line and exit code 2."""
    try:
        yield
    except (OSError, ValueError, *more) as error:
        _stop(_one_line(error))


@contextmanager
def _interruptible(run: _Run | None = None) -> Iterator[None]:
    """Turns Ctrl-C into a word on what is done, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        _say("interrupted")
        if run is not None and run.folder is not None:
            # the tables are left to --resume: a user who pressed the keys wants the end now
            _say(run.progress())
        raise typer.Exit(INTERRUPTED) from None


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _say(message: str, progress: Progress | None = None) -> None:
    """One line to standard error, above the progress bar where there is one."""
    if progress is not None and not progress.disable:
        progress.console.print(message, markup=False, highlight=False, soft_wrap=True)
    else:
        typer.echo(message, err=True)


def _stop(message: str) -> NoReturn:
    _say(f"error: {message}")
    raise typer.Exit(NOTHING_USABLE)
