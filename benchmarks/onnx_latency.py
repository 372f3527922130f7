"""Latency of our exported branch against a ResNet-32 written by hand and exported as everybody does, in onnxruntime on the CPU.

    PYTHONPATH=.types python benchmarks/onnx_latency.py --seconds 20

ours   branch 1 of AHBF ResNet-32 through `export_onnx`: `float` (normalised N C H W in), `uint8` (raw N H W C, the default)
plain  the ResNet-32 of `plain_resnet.py` with the very weights of that branch, `torch.onnx.export(dynamo=True)`, dynamic batch,
       all else default: `float`, and `uint8` with the normalisation in front, written in the obvious way

Like for like are ours float : plain float and ours uint8 : plain uint8. All sessions have the same options and take turns in
random order; they are made anew several times, because where the memory of a session lies moves its time by a percent or so.
`plain float again` is a second session of the same file: its ratio shows the noise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
import torch
from plain_resnet import FromPixels, PlainResNet32
from torch import Tensor, nn

from kdzoo.export.onnx_graph import export_onnx
from kdzoo.export.outputs import as_input, torch_logits
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.manifest import host_description
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.student import Student, select
from kdzoo.zoo.target import Target

CARD = Path(__file__).resolve().parent.parent / "model_cards" / "ahbf-resnet32-cifar100"
CIFAR = Preprocess(32, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
AGAIN = "plain float again"
PAIRS = (("ours float", "plain float"), ("ours uint8", "plain uint8"), ("ours uint8", "plain float"), (AGAIN, "plain float"))


@dataclass
class Variant:
    """One file and what it is fed."""

    path: Path
    images: np.ndarray[Any, Any]

    def session(self, threads: int) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # The threads of one session must not spin into the turn of the next one.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])

    def facts(self, reference: np.ndarray[Any, Any]) -> dict[str, Any]:
        logits = self.session(0).run(None, {"image": self.images})[0]
        files = [file for file in self.path.parent.iterdir() if file.name.startswith(self.path.name)]
        return {
            "nodes": len(onnx.load(self.path, load_external_data=False).graph.node),
            "bytes": sum(file.stat().st_size for file in files),
            "max_logit_difference": float(np.abs(logits - reference).max()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each batch size and number of threads")
    parser.add_argument("--repeats", type=int, default=5, help="how often the sessions are made anew")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the text")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.seconds, args.repeats)
    print(json.dumps(result, indent=2) if args.json else describe(result))


def our_branch() -> tuple[Student, Preprocess, str]:
    """Branch 1 with the bundled weights, else with random ones."""
    if (CARD / "manifest.json").is_file():
        checkpoint = Checkpoint.open(CARD)
        return select(checkpoint.network(), Target.parse("1")), checkpoint.manifest.preprocess, "bundled"
    torch.manual_seed(0)
    network = METHODS.get("ahbf")().build(BACKBONES.get("resnet32")(), 100)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in ((layer.running_mean, -0.2, 0.2), (layer.running_var, 0.5, 2.0), (layer.weight, 0.5, 1.5)):
                nn.init.uniform_(tensor, low, high)  # type: ignore[arg-type]
    return select(network, Target.parse("1")), CIFAR, "random"


def with_weights_of(student: Student) -> PlainResNet32:
    """Both declare the same layers in the same order."""
    plain = PlainResNet32(student[student.outputs[0]][-1].out_features)  # type: ignore[index, union-attr]
    names = [name for name in plain.state_dict() if not name.endswith("num_batches_tracked")]
    plain.load_state_dict(dict(zip(names, student.state_dict().values(), strict=True)), strict=False)
    return plain.eval()


def export_plainly(module: nn.Module, image: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: Any = {"input_names": ["image"], "output_names": ["logits"]}
        dynamic = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(module.eval(), (image,), str(path), dynamo=True, dynamic_shapes=dynamic, verbose=False, **names)


def variants(folder: Path, student: Student, preprocess: Preprocess, pixels: np.ndarray[Any, Any]) -> dict[str, Variant]:
    size = {"mean": preprocess.mean, "std": preprocess.std, "height": preprocess.height, "width": preprocess.width}
    normalised, made = as_input(pixels, preprocess, "float"), {}
    plain = with_weights_of(student)
    raw = FromPixels(plain, preprocess.mean, preprocess.std)
    for kind, images, module in (("float", normalised, plain), ("uint8", pixels, raw)):
        own, theirs = folder / f"ours-{kind}.onnx", folder / f"plain-{kind}.onnx"
        export_onnx(student, own, input=kind, **size)  # type: ignore[arg-type]
        export_plainly(module, torch.from_numpy(images[:2]), theirs)
        made |= {f"ours {kind}": Variant(own, images), f"plain {kind}": Variant(theirs, images)}
    return {**made, AGAIN: made["plain float"]}


def measure(folder: Path, seconds: float, repeats: int) -> dict[str, Any]:
    student, preprocess, weights = our_branch()
    pixels = np.random.default_rng(0).integers(0, 256, (32, preprocess.height, preprocess.width, 3), np.uint8)
    if weights == "bundled":
        pixels = Checkpoint.open(CARD).samples().images[:32]
    made, reference = variants(folder, student, preprocess, pixels), torch_logits(student, preprocess, pixels)
    facts = {name: variant.facts(reference) for name, variant in made.items()}
    timings = []
    for threads in (1, 0):
        for batch in (1, 32):
            times = interleaved(made, threads, batch, seconds, repeats)
            medians = {name: round(1000 * statistics.median(t), 4) for name, t in times.items()}
            ratios = {f"{a} : {b}": ratio(times[a], times[b]) for a, b in PAIRS}
            rounds = len(times[AGAIN])
            timings.append({"threads": threads, "batch": batch, "rounds": rounds, "median_ms": medians, "ratios": ratios})
    versions = {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__}
    about = {"host": host_description(), "load_average": os.getloadavg()[0], "weights": weights, "versions": versions}
    return {**about, "files": facts, "timings": timings}


def interleaved(made: dict[str, Variant], threads: int, batch: int, seconds: float, repeats: int) -> dict[str, list[float]]:
    """Seconds of every call; each round has one call of every variant, in random order."""
    times: dict[str, list[float]] = {name: [] for name in made}
    order, rng = list(made), random.Random(0)
    for _ in range(repeats):
        rng.shuffle(order)
        sessions = {name: made[name].session(threads) for name in order}
        feeds = {name: {"image": np.ascontiguousarray(made[name].images[:batch])} for name in order}
        for name in order * 3:
            sessions[name].run(None, feeds[name])
        until, rounds = time.perf_counter() + seconds / repeats, 0
        while rounds < 5 or time.perf_counter() < until:
            rng.shuffle(order)
            for name in order:
                began = time.perf_counter()
                sessions[name].run(None, feeds[name])
                times[name].append(time.perf_counter() - began)
            rounds += 1
    return times


def ratio(first: list[float], second: list[float]) -> dict[str, float]:
    """Ratio of the medians, and the quartiles of the ratios round by round."""
    low, _, high = statistics.quantiles([a / b for a, b in zip(first, second, strict=True)], n=4, method="inclusive")
    of_medians = statistics.median(first) / statistics.median(second)
    return {"of_medians": round(of_medians, 4), "low_quartile": round(low, 4), "high_quartile": round(high, 4)}


def describe(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"{result['host']}; load average {result['load_average']:.1f}; {versions}; {result['weights']} weights"]
    lines += [f"{'':18} nodes    bytes  max |logit difference| to torch"]
    for name, facts in result["files"].items():
        lines.append(f"{name:18} {facts['nodes']:5} {facts['bytes']:8}  {facts['max_logit_difference']:.2e}")
    for row in result["timings"]:
        threads = "1 thread" if row["threads"] == 1 else "default threads"
        lines.append(f"\nbatch {row['batch']}, {threads}, {row['rounds']} rounds: median ms")
        lines.append("   ".join(f"{name} {ms:.3f}" for name, ms in row["median_ms"].items()))
        for pair, r in row["ratios"].items():
            lines.append(f"  {pair:32} {r['of_medians']:.3f}  (quartiles {r['low_quartile']:.3f} to {r['high_quartile']:.3f})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
