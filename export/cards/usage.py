"""The snippets of a package's card in Python, and the commands: complete programs, run by the tests as they stand. Torch-free.

The programs know nothing of kdzoo: NumPy, Pillow and onnxruntime (or OpenVINO) are enough to use a package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..package import GOLDEN_EXPECTED, GOLDEN_INPUTS, LABELS, PREPROCESS, Artifact
from ..parity import EXACT, tolerance
from .markdown import code
from .programs import GOLDEN_IMAGES, cpp_section, engine_section, normalising

PROVED = 1e-4  # what float32 files are held to where they kept it when they were measured
# Verbs that take the folder.
COMMANDS = ("kdzoo verify .", "kdzoo bench .", "kdzoo serve .", "kdzoo pull ORG/NAME  # once it is published")
PREDICT = "kdzoo predict . picture.jpg"  # runs an ONNX file

CLASSIFY = """
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

labels = Path("{labels}").read_text(encoding="utf-8").splitlines()
wanted = json.loads(Path("{preprocess}").read_text())
size = (wanted["width"], wanted["height"])
picture = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
{resize}
images = np.asarray(picture, np.uint8)[None]  # N H W C
{prepare}session = onnxruntime.InferenceSession({path}, providers=["CPUExecutionProvider"])
{run}
chances = np.exp(logits[0] - logits[0].max())
chances /= chances.sum()
for k in chances.argsort()[::-1][:5]:
    print(f"{{chances[k]:.4f}} {{labels[k]}}")
"""

SHORT_SIDE = """
short = min(picture.size)
picture = picture.resize([wanted["resize"] * side // short for side in picture.size], Image.Resampling.BILINEAR)
left, top = (round((whole - part) / 2) for whole, part in zip(picture.size, size))
picture = picture.crop((left, top, left + size[0], top + size[1]))
"""

PROVE = """
{imports}import numpy as np
import onnxruntime

images = np.load("{inputs}")["image"]
expected = np.load("{expected}")[{key}]
{prepare}session = onnxruntime.InferenceSession({path}, providers=["CPUExecutionProvider"])
{run}
worst = np.abs(logits - expected).max()
print(f"largest difference {{worst:.2e}}")
assert worst <= {allowed:.3g}
"""

PARTS = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
from cascade_driver import run_cascade  # beside this card


class Part:
    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, arrays):
        return dict(zip(self.outputs, self.session.run(self.outputs, arrays)))


listed = json.loads(Path({path}).read_text())
images = np.load("{inputs}")["image"]
{prepare}logits, exits = run_cascade([Part(part["path"]) for part in listed["parts"]], listed["thresholds"], images)
print(logits.argmax(axis=1), exits)
"""

OPENVINO = """
import numpy as np
import openvino

images = np.load("{inputs}")["image"][:{count}]
{prepare}model = openvino.Core().compile_model({path}, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
print(model({{"image": images}})["logits"].argmax(axis=1))
"""


def usage(artifacts: Sequence[Artifact], metrics: Mapping[str, Any], preprocess: Mapping[str, Any]) -> str:
    """The whole section *Use it*."""
    found = metrics["artifacts"]
    runnable = [a for a in artifacts if a.format == "onnx" and a.runtime == "onnxruntime" and a.precision != "bf16"]
    parts = []
    if runnable:
        chosen, exact = most_accurate(runnable, found), most_exact(runnable)
        parts += [
            "### Python, onnxruntime",
            f"`pip install onnxruntime pillow`, then `python classify.py picture.jpg` in this folder. {_takes(chosen)}",
            code("python", classify(chosen, preprocess)),
            f"Does this machine compute what was measured? `golden/` holds raw images and the logits that belong to them; this "
            f"needs nothing but NumPy, onnxruntime and `{exact.path}`:",
            code("python", prove(exact, found.get(exact.path, {}), preprocess)),
            "### C++, onnxruntime",
            cpp_section(chosen, preprocess),
        ]
    else:
        parts.append("No file of this package is for onnxruntime on a CPU; `kdzoo export` with `--precision fp32` writes one.")
    if parts_file := next((a for a in artifacts if a.format == "parts" and a.runtime == "onnxruntime"), None):
        parts += ["### Python, exit by exit", code("python", run_parts(parts_file, preprocess))]
    if openvino := next((a for a in artifacts if a.format == "openvino"), None):
        parts += ["### Python, OpenVINO", code("python", run_openvino(openvino, preprocess))]
    verbs = [*([PREDICT] if runnable else []), *COMMANDS]
    parts += ["### TensorRT", engine_section(artifacts, preprocess), "### Command line", code("sh", "\n".join(verbs))]
    return "\n\n".join(filter(None, parts))


def most_accurate(artifacts: Sequence[Artifact], found: Mapping[str, Any]) -> Artifact:
    """The most accurate file, of equals the fastest; the first one where nothing was measured."""

    def rank(artifact: Artifact) -> tuple[float, float]:
        measured = found.get(artifact.path, {})
        latency = measured.get("latency")
        return measured.get("accuracy", {}).get("top1", 0.0), -latency[0]["p50_ms"] if latency else 0.0

    return max(artifacts, key=rank)


def most_exact(artifacts: Sequence[Artifact]) -> Artifact:
    """The file with the widest numbers."""
    return min(artifacts, key=lambda a: ("fp32", "fp16", "int8").index(a.precision))


def _takes(artifact: Artifact) -> str:
    what = "raw pictures, uint8 `N H W C`" if artifact.input.dtype == "uint8" else "normalised pictures, float32 `N C H W`"
    smallest, _, largest = artifact.batch
    batch = f"in batches of {smallest} only" if smallest == largest else f"in batches of {smallest} to {largest}"
    others = [name for name in artifact.details.get("outputs", []) if name != "logits"]
    further = f"; it also gives {', '.join(f'`{name}`' for name in others)}" if others else ""
    shape = " ".join(map(str, artifact.output.shape))
    return f"`{artifact.path}` takes {what}, {batch}, and gives `logits`, float32 `{shape}`{further}."


def classify(artifact: Artifact, preprocess: Mapping[str, Any]) -> str:
    """One picture to the five best classes."""
    geometry = SHORT_SIDE if preprocess.get("resize") else "picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)"
    prepare = normalising(artifact, 'wanted["mean"]', 'wanted["std"]')
    if artifact.batch[0] > 1:
        prepare += f"images = images.repeat({artifact.batch[0]}, axis=0)  # the smallest batch that the file takes\n"
    if "exit" in artifact.details.get("outputs", []):
        run = 'logits, exits = session.run(["logits", "exit"], {"image": images})\nprint(f"left at exit {exits[0]}")'
    else:
        run = '(logits,) = session.run(["logits"], {"image": images})'
    return CLASSIFY.format(
        labels=LABELS, preprocess=PREPROCESS, resize=geometry.strip(), prepare=prepare, path=json.dumps(artifact.path), run=run
    )


def prove(artifact: Artifact, measured: Mapping[str, Any], preprocess: Mapping[str, Any]) -> str:
    """The golden images through the file. Eight bits are held to what the file itself gave, anything else to torch."""
    smallest, _, largest = artifact.batch
    if smallest <= GOLDEN_IMAGES <= largest:
        run = '(logits,) = session.run(["logits"], {"image": images})'
    else:  # np.resize repeats rows until a batch is full
        size = largest if largest < GOLDEN_IMAGES else smallest
        run = (
            f"chunks = [np.resize(images[k : k + {size}], ({size}, *images.shape[1:])) for k in range(0, len(images), {size})]\n"
            'logits = np.concatenate([session.run(["logits"], {"image": chunk})[0] for chunk in chunks])[: len(images)]'
        )
    floats = artifact.input.dtype == "float32"
    head = f'wanted = json.loads(Path("{PREPROCESS}").read_text())\n' if floats else ""
    return PROVE.format(
        imports="import json\nfrom pathlib import Path\n\n" if floats else "",
        inputs=GOLDEN_INPUTS,
        expected=GOLDEN_EXPECTED,
        key='"logits"' if artifact.precision in EXACT else json.dumps(artifact.path),
        prepare=head + normalising(artifact, 'wanted["mean"]', 'wanted["std"]'),
        path=json.dumps(artifact.path),
        run=run,
        allowed=allowed_difference(artifact, measured),
    )


def allowed_difference(artifact: Artifact, measured: Mapping[str, Any]) -> float:
    """How far logits may be from the golden ones on another machine."""
    parity = measured.get("parity") or {}
    if artifact.precision == "fp32" and (parity.get("max_abs_diff") or 0.0) <= PROVED:
        return PROVED
    return tolerance(artifact.precision, parity.get("largest_logit", 0.0))


def run_parts(artifact: Artifact, preprocess: Mapping[str, Any]) -> str:
    """The golden images through the parts of a cascade."""
    prepare = normalising(artifact, str(preprocess["mean"]), str(preprocess["std"]))
    return PARTS.format(path=json.dumps(artifact.path), inputs=GOLDEN_INPUTS, prepare=prepare)


def run_openvino(artifact: Artifact, preprocess: Mapping[str, Any]) -> str:
    """The golden images through OpenVINO."""
    prepare = normalising(artifact, str(preprocess["mean"]), str(preprocess["std"]))
    smallest, _, largest = artifact.batch
    if smallest > GOLDEN_IMAGES:
        prepare += f"images = np.resize(images, ({smallest}, *images.shape[1:]))\n"
    count = min(largest, GOLDEN_IMAGES)
    return OPENVINO.format(inputs=GOLDEN_INPUTS, count=count, prepare=prepare, path=json.dumps(artifact.path))
