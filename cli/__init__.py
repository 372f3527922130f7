"""The command line: a thin shell over the Python API. Importing it costs click only; a verb is loaded when it is used."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from .. import __version__

SECTIONS: dict[str, dict[str, str]] = {
    "Find": {
        "ls": "List the entries of the zoo.",
        "info": "Describe an entry, a run, a checkpoint or a package.",
        "select": "Choose the best measured file within a budget.",
    },
    "Make": {
        "train": "Train an entry (kdzoo ls), or a recipe file that ends in .yaml.",
        "export": "Cut a branch out of a checkpoint and write it as measured files.",
        "family": "Write every target of a checkpoint in every precision, measured, with a Pareto table.",
        "card": "Print the model card of a package or a checkpoint.",
    },
    "Prove": {
        "eval": "Measure top-1 and top-5 of every target, or of every file.",
        "verify": "Check a package: checksums, golden images, accuracy, signature.",
        "bench": "Measure the latency of files, in one runtime or in several, side by side.",
        "reproduce": "Export a package again from its checkpoint, and compare files and figures.",
        "predict": "Classify images.",
        "report": "Draw what a run learnt on one HTML page.",
    },
    "Serve": {
        "serve": "Answer for packages over HTTP and gRPC, and with a page to look at.",
        "deploy": "Write what a bigger engine or a service manager needs to serve a package.",
    },
    "Share": {
        "push": "Publish a package, a folder of packages or a checkpoint.",
        "pull": "Fetch what is published, checked, and pin its commit.",
        "sbom": "Write the bill of materials of a package (CycloneDX).",
        "sign": "Sign a package with a private key.",
    },
    "Machine": {
        "doctor": "Say what this machine can train, export and run, and whether it can run a package.",
    },
}


class LazyGroup(click.Group):
    """Knows the verbs by name; imports `kdzoo.cli.<verb>` when one is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verbs in SECTIONS.values() for verb in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f".{cmd_name}_" if cmd_name == "eval" else f".{cmd_name}", __name__)
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        from ..errors import UnknownName

        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise UnknownName("command", args[0], self.list_commands(ctx), hint="kdzoo --help lists them")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(list(verbs.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kdzoo")
def group() -> None:
    """Train one multi-branch network, deploy any of its branches as a measured file.

    \b
    kdzoo export --branch 3 --format trt
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code of the design (`kdzoo.errors`)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        # Outside standalone mode click gives the code of an `Exit` back instead of raising it.
        code = group.main(arguments or ["--help"], prog_name="kdzoo", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        from .messages import report

        sys.exit(report(error, as_json="--json" in arguments, verbose="-v" in arguments or "--verbose" in arguments))
    if code:
        sys.exit(code)
