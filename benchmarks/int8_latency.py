"""How much faster the eight-bit file of a package is than its float32 file, in onnxruntime on the processor.

    PYTHONPATH=.types python benchmarks/int8_latency.py PACKAGE [PACKAGE ...] --seconds 20

Both files take turns, ten calls in a row and in random order, with one thread; the sessions are made anew several times, because
where the memory of a session lies moves its time by a percent or so. `float32 again` is a second session of the same file: its
ratio is the noise. Printed is the time of float32 over that of int8, medians of all rounds, with the quartiles of the ratios round
by round.

A package: `kdzoo export SOURCE --branch 1 --precision fp32 --precision int8 --data FOLDER`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kdzoo.export.benchmark import conditions
from kdzoo.export.comparison import compare_times, interleave
from kdzoo.export.package import Package
from kdzoo.export.runtime import RUNTIMES
from kdzoo.export.trials import Trial

FILES = {"float32": "fp32", "int8": "int8", "float32 again": "fp32"}
BATCHES = (1, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each package and batch size")
    parser.add_argument("--repeats", type=int, default=5, help="how often the sessions are made anew")
    parser.add_argument("--runtime", default="onnxruntime-cpu")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the text")
    args = parser.parse_args()
    where = conditions(1, None)
    rows = [
        measure(Package.open(folder), batch, args.runtime, args.seconds, args.repeats)
        for folder in args.packages
        for batch in BATCHES
    ]
    print(json.dumps({**where, "results": rows}, indent=2) if args.json else describe(where, rows))


def measure(package: Package, batch: int, runtime: str, seconds: float, repeats: int) -> dict[str, Any]:
    """One package and batch size."""
    trials = {name: Trial(package, package.artifact("onnx", kind), RUNTIMES.get(runtime)()) for name, kind in FILES.items()}
    times: dict[str, list[float]] = {name: [] for name in trials}
    for repeat in range(repeats):
        sessions = {name: t.runtime.open(package.folder, t.artifact, 1, in_turns=True) for name, t in trials.items()}
        inputs = trials["int8"].calls(batch)[0]
        calls = {name: partial(session, inputs) for name, session in sessions.items()}
        found = interleave(calls, seconds=seconds / repeats, seed=repeat)
        for name, values in found.items():
            times[name] += values
        ran_on = sessions["int8"].ran_on
        for session in sessions.values():
            session.close()
    against_int8, against_float = (compare_times({n: times[n] for n in (first, *FILES)}) for first in ("int8", "float32"))
    return {
        "package": package.name,
        "runtime": f"{ran_on.runtime} {ran_on.version} on {ran_on.device}",
        "batch": batch,
        "median_ms": {row.name: row.median_ms for row in against_int8},
        "float32_to_int8": next(asdict(row) for row in against_int8 if row.name == "float32"),
        "noise": next(row.ratio for row in against_float if row.name == "float32 again"),
    }


def describe(where: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [f"{where['host']}; load average {where['load_average']}; 1 thread"]
    for row in rows:
        times = ", ".join(f"{name} {ms:.3f} ms" for name, ms in row["median_ms"].items())
        r = row["float32_to_int8"]
        lines.append(f"\n{row['package']}, batch {row['batch']}, {row['runtime']}, {r['rounds']} rounds: {times}")
        quartiles = f"quartiles {r['low_quartile']:.2f} to {r['high_quartile']:.2f}"
        lines.append(f"  float32 : int8 {r['ratio']:.2f} ({quartiles}), float32 again : float32 {row['noise']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
