"""Export a bundled entry, and keep on record what `kdzoo reproduce ENTRY` then compares with.

python tools/record.py ENTRY -b TARGET [-b TARGET ...] --data FOLDER      writes model_cards/<entry>/exports.json

Without -b, the targets that are on record. A cascade gets ONNX only; every other target ONNX and TensorRT-RTX engines.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from kdzoo.export.exporter import export
from kdzoo.export.format import ExportOptions
from kdzoo.export.recorded import EXPORTS, Recorded, recorded_exports
from kdzoo.export.source import resolve_checkpoint
from kdzoo.zoo.catalog import CARDS
from kdzoo.zoo.files import write_json
from kdzoo.zoo.target import Target

PRECISIONS = ("fp32", "fp16", "int8")


def record(
    entry: str, targets: list[str], precisions: tuple[str, ...], formats: tuple[str, ...], data: Path | None, output: Path
) -> None:
    """Write `exports.json` of an entry."""
    checkpoint = resolve_checkpoint(entry, print)
    documents = []
    for text in targets:
        target = Target.parse(text)
        options = ExportOptions(precisions=precisions)
        wanted = ("onnx",) if target.word == "cascade" else formats
        with tempfile.TemporaryDirectory() as scratch:
            package = export(
                checkpoint, target, formats=wanted, options=options, data=data, output=Path(scratch) / "package", say=print
            )
            documents.append(Recorded.of(package).to_dict())
    write_json(output, {"schema_version": 1, "kind": "exports", "entry": entry, "exports": documents})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry")
    parser.add_argument("-b", "--branch", action="append", default=[])
    parser.add_argument("-p", "--precision", action="append", default=[])
    parser.add_argument("-f", "--format", action="append", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="another file than exports.json of the entry")
    arguments = parser.parse_args()
    targets = arguments.branch or [found.target for found in recorded_exports(arguments.entry)]
    if not targets:
        parser.error("nothing is on record yet: name the targets with -b")
    precisions, formats = tuple(arguments.precision) or PRECISIONS, tuple(arguments.format) or ("onnx", "trt-rtx")
    record(arguments.entry, targets, precisions, formats, arguments.data, arguments.output or CARDS / arguments.entry / EXPORTS)


if __name__ == "__main__":
    main()
