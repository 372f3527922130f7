from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .console import Console, verb


@verb(
    click.argument("recipe"),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe. Repeats."),
    click.option("--seed", type=int, help="Short for --set seed=N."),
    options.data,
    click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder of the run. [runs/<entry>]"),
    click.option("--resume", is_flag=True, help="Go on with the run; RECIPE may be its folder."),
    options.device,
)
def train(
    console: Console,
    recipe: str,
    overrides: tuple[str, ...],
    seed: int | None,
    data: Path | None,
    output: Path | None,
    resume: bool,
    device: str,
) -> None:
    """Train an entry (kdzoo ls), or a recipe file that ends in .yaml."""
    from ..train.recipe import load_recipe

    changes = [*overrides, *([] if seed is None else [f"seed={seed}"])]
    if Path(recipe).is_dir() and resume:
        from ..zoo.checkpoint import Checkpoint

        output = output or Path(recipe)
        entry = Checkpoint.open(output).manifest.entry
        _, settings = load_recipe(str(Path(recipe) / "recipe.yaml"), changes)
    else:
        entry, settings = load_recipe(recipe, changes)
    folder = output or Path("runs") / entry

    from ..train.run import run_training

    with reporter_for(console, settings.epochs) as reporter:
        result = run_training(
            entry, settings, data=data, output=folder, resume=resume, device=options.pick_device(device), reporter=reporter
        )
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

    def __init__(self, console: Console, num_epochs: int) -> None:
        self.console, self.num_epochs = console, num_epochs

    def __enter__(self) -> LineReporter:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

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
        self.task = self.progress.add_task("epoch 1", total=None, words="")
        self.words = ""
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def step(self, report: Any) -> None:
        if report.means:
            self.words = " ".join(f"{name} {value:.2f}" for name, value in report.means.items())
        self.progress.update(
            self.task,
            description=f"epoch {report.epoch + 1}/{self.num_epochs}",
            total=self.num_epochs * report.num_steps,
            completed=report.epoch * report.num_steps + report.step,
            words=f"{report.images_per_s:.0f} images/s {self.words}",
        )


def reporter_for(console: Console, num_epochs: int) -> LineReporter:
    return (BarReporter if console.interactive else LineReporter)(console, num_epochs)


command = train
