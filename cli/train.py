from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .console import Console, verb


@verb(
    click.argument("recipe"),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe. Repeats."),
    click.option("--teacher", "teachers", multiple=True, metavar="SOURCE",
                 help="A trained network to learn from: a run, checkpoint or package folder, or a bundled entry. Repeats."),
    click.option("--seed", type=int, help="Short for --set seed=N."),
    options.data,
    click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder of the run. [runs/<entry>]"),
    click.option("--resume", is_flag=True, help="Go on with the run; RECIPE may be its folder."),
    click.option("--compile", is_flag=True, help="Short for --set compile=true: torch.compile the network."),
    click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events, into <run>/events."),
    options.device,
)  # fmt: skip
def train(
    console: Console,
    recipe: str,
    overrides: tuple[str, ...],
    teachers: tuple[str, ...],
    seed: int | None,
    data: Path | None,
    output: Path | None,
    resume: bool,
    compile: bool,
    tensorboard: bool,
    device: str,
) -> None:
    """Train an entry (kdzoo ls), or a recipe file that ends in .yaml.

    Several processes or GPUs: torchrun --nproc-per-node N -m kdzoo train RECIPE ...
    """
    from ..train.recipe_file import open_recipe, open_run

    changes = [*overrides, *([] if seed is None else [f"seed={seed}"]), *(["compile=true"] if compile else [])]
    if Path(recipe).is_dir() and resume:
        output = output or Path(recipe)
        written = open_run(Path(recipe), changes)
    else:
        written = open_recipe(recipe, changes)

    from ..train.distributed import launched
    from ..train.recipe_check import checked
    from ..train.reporter import Reporter
    from ..train.run import run_training
    from ..train.teachers import TeacherMisfit, open_source

    sources = [open_source(name) for name in teachers]
    taught, entry = checked(written.recipe, written.origin, sources, data, resume=resume), written.entry
    if taught != written.recipe and not entry.endswith("-modified"):
        entry += "-modified"  # another teacher than that of the entry
    folder = output or Path("runs") / entry
    first = launched().first
    with reporter_for(console) if first else LineReporter(console) as lines:
        reporter: Reporter = lines
        if tensorboard and first:
            from ..train.events import EventReporter
            from ..train.run_folder import EVENTS

            reporter = EventReporter(lines, folder / EVENTS)
        try:
            result = run_training(
                entry, taught, data=data, output=folder, resume=resume, device=options.pick_device(device), teachers=sources,
                reporter=reporter, say=console.say if first else lambda line: None,
            )  # fmt: skip
        except TeacherMisfit as error:
            written.origin.name_place(error, error.key)
            raise
    if not first:
        raise click.exceptions.Exit(0 if result.finished else 130)
    document = {"run": str(result.folder), "checkpoint": str(result.checkpoint), "epochs": result.epochs,
                "finished": result.finished, "metrics": result.metrics}  # fmt: skip
    if not result.finished:
        console.result(document, lambda: f"stopped in epoch {result.epochs + 1}; everything is saved in {result.folder}")
        console.hint(f"kdzoo train {result.folder} --resume")
        raise click.exceptions.Exit(130)
    from .info import target_table

    curve = result.folder / "curve.png"
    picture = f"curve: {curve}" if curve.exists() else "no curve was drawn: pip install matplotlib"
    console.result(document, lambda: f"{target_table(result.metrics)}\n\n{picture}")
    console.hint(f"kdzoo export {result.folder} --branch target --format onnx")


class LineReporter:
    """One line of talk per epoch, where nobody watches a terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.entry, self.num_epochs = console, "", 0

    def __enter__(self) -> LineReporter:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def begin(self, entry: str, epoch: int, num_epochs: int) -> None:
        self.entry, self.num_epochs = entry, num_epochs

    def step(self, report: Any) -> None:
        return None

    def epoch(self, record: dict[str, Any]) -> None:
        losses = " ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
        accuracy = " ".join(f"{target} {m['top1']:.2f}" for target, m in record["metrics"].items())
        tested = f"test top-1 {accuracy}; " if accuracy else ""
        self.console.say(
            f"epoch {record['epoch']}/{self.num_epochs}: {losses}; train {record['train_top1']:.2f} %; "
            f"{tested}{record['images_per_s']:.0f} images/s"
        )


class BarReporter(LineReporter):
    """A progress bar over the whole run with loss parts, accuracy, images/s and the time left."""

    def __enter__(self) -> BarReporter:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[words]}"))
        self.progress = Progress(*columns, console=RichConsole(stderr=True))
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def begin(self, entry: str, epoch: int, num_epochs: int) -> None:
        super().begin(entry, epoch, num_epochs)
        self.words = ""
        for task in self.progress.task_ids:
            self.progress.remove_task(task)  # that of a teacher, which is done
        self.task: Any = None

    def step(self, report: Any) -> None:
        if report.means:
            self.words = " ".join(f"{name} {value:.2f}" for name, value in report.means.items())
        done = report.epoch * report.num_steps + report.step
        if self.task is None:
            # What an earlier session did counts as done, not as progress: the time left is guessed from this one.
            self.task = self.progress.add_task("", total=self.num_epochs * report.num_steps, completed=done - 1, words="")
        self.progress.update(
            self.task,
            description=f"{self.entry} {report.epoch + 1}/{self.num_epochs}",
            completed=done,
            words=f"{report.images_per_s:.0f} images/s {self.words}",
        )


def reporter_for(console: Console) -> LineReporter:
    return (BarReporter if console.interactive else LineReporter)(console)


command = train
