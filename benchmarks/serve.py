"""What serving costs: `kdzoo serve` against onnxruntime without a server and against other servers, on loopback with a client in C.

    PYTHONPATH=.types python benchmarks/serve.py --setup /tmp/peers
    PYTHONPATH=.types python benchmarks/serve.py PACKAGE --peers /tmp/peers --seconds 5 --rounds 5

kdzoo       `kdzoo serve PACKAGE` as it comes, over the Open Inference Protocol with binary tensors
in process  the same file in onnxruntime, image by image: one caller with two threads (the bar), two callers with one each, one
peers       `serve_peers/with_*.py`, each set up as it is fastest; the same file, the same onnxruntime

In every round all of them take turns in random order; each server is started anew, so that no two run at a time, must give the
golden logits, and meets wrk with 32 connections and then with one. Ratios are of one round; the median over the rounds is what is
held against the acceptance, and the quartiles tell how far it wanders. Cold start: from `exec` of the command until the first 200
of its readiness, and until the first image is answered, with warm file caches. Memory: of all processes of a server after the load.
CPU: what a request at 32 connections takes of the processor; it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from serve_sides import PEERS, SCRIPTS, Failed, Running, Side, make_environments, ours, peers, started

from kdzoo.export.package import Package
from kdzoo.export.parity import EXACT, tolerance
from kdzoo.zoo.manifest import host_description

CLIENTS = 32
WARM_UP_S = 1
IN_PROCESS = "in process"
AT_LEAST = {"pytriton": 1.3, "litserve": 2.0, "mlserver": 2.0}
OF_RAW, OVERHEAD_MS, COLD_S, MEMORY_MB = 0.80, 0.6, 1.0, 150.0
DONE = """
function done(summary, latency, requests)
  local e, answered = summary.errors, summary.requests - summary.errors.status
  io.write(string.format('RESULT {"requests": %d, "requests_s": %.1f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d}\\n',
    answered, answered / (summary.duration / 1e6), latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    e.status + e.read + e.write + e.connect + e.timeout))
end
"""
COLUMNS = (  # of the table: heading, and where it stands in what was measured
    (f"{CLIENTS}: req/s", "many", "requests_s"), ("p50 ms", "many", "p50_ms"), ("p99 ms", "many", "p99_ms"),
    ("CPU ms", "many", "cpu_ms"), ("1: req/s", "alone", "requests_s"), ("p50 ms", "alone", "p50_ms"), ("p99 ms", "alone", "p99_ms"),
    ("ready s", "start", "ready_s"), ("answer s", "start", "answered_s"),
    ("PSS MB", "memory", "pss_mb"), ("RSS MB", "memory", "rss_mb"),
)  # fmt: skip

Values = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, metavar="PACKAGE")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--peers", type=Path, metavar="DIR", help=f"holds the virtual environments {', '.join(PEERS)}, or some")
    parser.add_argument("--setup", type=Path, metavar="DIR", help="make these environments from PyPI, and nothing else")
    parser.add_argument("--all-ways", action="store_true", help="each peer in all the ways that were tried, to find the best")
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="the JSON document alone, without the table")
    args = parser.parse_args()
    if args.setup:
        make_environments(args.setup, onnxruntime.__version__)
        return
    if args.package is None or shutil.which("wrk") is None:
        parser.error("PACKAGE is missing" if args.package is None else "wrk is missing: apt-get install wrk")
    result = measure(args)
    if not args.json:
        print(describe(result), end="\n\n")
    print(json.dumps(result, indent=2 if args.json else None))


def measure(args: argparse.Namespace) -> Values:
    package = Package.open(args.package)
    artifact = package.artifact("onnx", args.precision)
    images, expected = package.golden(artifact)
    allowed = tolerance(artifact.precision if artifact.precision in EXACT else "fp16", float(np.abs(expected).max()))
    golden = (images, expected, allowed)
    model = (package.folder / artifact.path).resolve()
    found = [name for name in PEERS if args.peers and (args.peers / name).is_dir()]
    theirs = [side for name in found for side in peers(name, args.peers.resolve(), model)]
    sides = [ours(package, artifact), *(side for side in theirs if args.all_ways or not side.is_other_way)]
    load, rounds, failures = os.getloadavg(), [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.rounds):
            order: list[Side | None] = [*sides, None]
            random.Random(number).shuffle(order)
            values: Values = {}
            for side in order:
                name = side.name if side else IN_PROCESS
                print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr)
                if side is None:
                    values[name] = in_process(model, args.seconds)
                else:
                    try:
                        values[name] = serve(side, golden, args.seconds, Path(scratch))
                    except Failed as error:
                        if side.is_ours:
                            raise
                        failures.append(f"round {number + 1}, {error}")
            rounds.append(values)
    return {
        "host": host_description(), "load_average": [round(each, 2) for each in load], "package": package.name,
        "file": artifact.path, "seconds": args.seconds, "clients": CLIENTS, "onnxruntime": onnxruntime.__version__,
        "peers": {name: PEERS[name] for name in found}, "failures": failures,
        "sides": {side.name: side.about for side in sides if any(side.name in values for values in rounds)},
        "criteria": criteria(rounds), "rounds": rounds,
    }  # fmt: skip


def in_process(model: Path, seconds: int) -> Values:
    command = [sys.executable, str(SCRIPTS / "in_process.py"), str(model), str(seconds)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def serve(side: Side, golden: tuple[Any, Any, float], seconds: int, scratch: Path) -> Values:
    """A server from its start to its end."""
    images, expected, allowed = golden
    script = scratch / f"{side.name}.lua"
    script.write_text(lua(*side.encode(images[:1])), encoding="ascii")
    with started(side, images[:1]) as running:
        must_answer(running, images, expected, allowed)
        wrk(running, script, CLIENTS, WARM_UP_S)
        before = running.cpu_seconds()
        many = wrk(running, script, CLIENTS, seconds)
        many["cpu_ms"] = round(1000 * (running.cpu_seconds() - before) / many["requests"], 4)
        alone = wrk(running, script, 1, seconds)
        must_answer(running, images, expected, allowed)
        times = {"ready_s": round(running.ready_s, 3), "answered_s": round(running.answered_s, 3)}
        return {"many": many, "alone": alone, "start": times, "memory": running.memory()}


def must_answer(running: Running, images: NDArray[np.uint8], expected: NDArray[np.float32], allowed: float) -> None:
    """Raises where the golden images get other logits."""
    found = np.concatenate([running.ask(image[None]) for image in images])
    worst = float(np.abs(found - expected).max())
    if not worst <= allowed:
        raise Failed(f"the golden logits are {worst:.3g} off, {allowed:.3g} is allowed")


def lua(body: bytes, headers: dict[str, str]) -> str:
    """What wrk sends."""
    text = "".join(f"\\{byte:03d}" for byte in body)
    lines = ['wrk.method = "POST"', f'wrk.body = "{text}"']
    return "\n".join([*lines, *(f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items()), DONE])


def wrk(running: Running, script: Path, clients: int, seconds: int) -> Values:
    url = f"http://127.0.0.1:{running.port}{running.side.infer}"
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (.*)", text)
    values: Values = json.loads(found[1]) if found else {}
    if not values.get("requests"):
        raise Failed(f"nothing was answered to {clients} clients: {text[-500:]}")
    return values


def criteria(rounds: list[Values]) -> list[Values]:
    """What the acceptance asks for, and (without a limit) what is told besides."""
    rates, rows = [values["kdzoo"]["many"]["requests_s"] for values in rounds], []
    what = f"requests/s at {CLIENTS} clients : "
    for label, least in (("two_threads", OF_RAW), ("two_callers", None)):
        shares = [rate / values[IN_PROCESS][label]["images_s"] for rate, values in zip(rates, rounds, strict=True)]
        rows.append(row(f"{what}{IN_PROCESS}, {label.replace('_', ' ')}", shares, least=least))
    for name in dict.fromkeys(name for values in rounds for name in values if name not in ("kdzoo", IN_PROCESS)):
        found = [rate / values[name]["many"]["requests_s"] for rate, values in zip(rates, rounds, strict=True) if name in values]
        rows.append(row(what + name, found, least=AT_LEAST.get(name.split()[0])))
    errors = [float(values["kdzoo"][load]["errors"]) for values in rounds for load in ("many", "alone")]
    rows.append(row("failed requests, most of a load", [max(errors)], most=0.0))
    alone = [values["kdzoo"]["alone"]["p50_ms"] for values in rounds]
    for label, limit in (("one_thread", OVERHEAD_MS), ("two_threads", None)):
        over = [ms - values[IN_PROCESS][label]["p50_ms"] for ms, values in zip(alone, rounds, strict=True)]
        rows.append(row(f"p50 at one client - in process, {label.replace('_', ' ')}, ms", over, most=limit))
    rows.append(row("start to ready, s", [values["kdzoo"]["start"]["ready_s"] for values in rounds], most=COLD_S))
    rows.append(row("start to the first answer, s", [values["kdzoo"]["start"]["answered_s"] for values in rounds], most=COLD_S))
    rows.append(row("memory (PSS), MB", [values["kdzoo"]["memory"]["pss_mb"] for values in rounds], most=MEMORY_MB))
    rows.append(row("memory (RSS), MB", [values["kdzoo"]["memory"]["rss_mb"] for values in rounds]))
    return rows


def row(what: str, values: list[float], least: float | None = None, most: float | None = None) -> Values:
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    middle = median(values)
    holds = middle >= least if least is not None else middle <= most if most is not None else None
    return {
        "what": what, "median": round(middle, 3), "low_quartile": round(low, 3), "high_quartile": round(high, 3),
        "least": least, "most": most, "holds": holds,
    }  # fmt: skip


def describe(result: Values) -> str:
    rounds = result["rounds"]
    load = " ".join(f"{each:.1f}" for each in result["load_average"])
    lines = [f"{result['host']}; load average {load}; onnxruntime {result['onnxruntime']}; {result['package']}, {result['file']}"]
    lines.append(f"{len(rounds)} rounds of {result['seconds']} s, medians")
    width = max(len(name) for name in result["sides"]) + 1
    lines.append("\n" + " " * width + "".join(f"{heading:>11}" for heading, *_ in COLUMNS))
    for name, about in result["sides"].items():
        values = [each[name] for each in rounds if name in each]
        numbers = [median(value[part][key] for value in values) for _, part, key in COLUMNS]
        errors = sum(value[part]["errors"] for value in values for part in ("many", "alone"))
        figures = "".join(f"{number:11.{0 if number >= 1000 else 1 if number >= 100 else 2}f}" for number in numbers)
        lines.append(f"{name:{width}}{figures}   {about}{f'; {errors} ERRORS' if errors else ''}")
    for label in ("two_threads", "two_callers", "one_thread"):
        rate, ms, cpu = (median(each[IN_PROCESS][label][key] for each in rounds) for key in ("images_s", "p50_ms", "cpu_ms"))
        lines.append(f"{IN_PROCESS}, {label.replace('_', ' '):12} {rate:8.0f}/s, p50 {ms:.3f} ms, CPU {cpu:.3f} ms")
    lines += [f"not measured: {failure}" for failure in result["failures"]]
    lines.append("")
    for each in result["criteria"]:
        bar = f">= {each['least']}" if each["least"] is not None else f"<= {each['most']}" if each["most"] is not None else ""
        verdict = {True: f"holds ({bar})", False: f"DOES NOT HOLD ({bar})", None: ""}[each["holds"]]
        figures = f"{each['median']:9.3f}  (quartiles {each['low_quartile']:.3f} to {each['high_quartile']:.3f})"
        lines.append(f"{each['what']:58}{figures:42} {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
