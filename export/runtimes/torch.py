"""Torch on the processor, with the student of a package (`model.safetensors`): what all files are compared with.

Torch is imported when a student is opened.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...zoo.files import read_json
from ..engine_sidecar import missing_package
from ..package import CONFIG, PULLED, STUDENT, WEIGHTS, Artifact, Package
from ..runtime import RUNTIMES, RanOn, Runtime, Session
from ..threads import physical_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..runtime import Inputs


def student_of(package: Package) -> Artifact:
    """The student of a package, described as its files are.

    Raises:
        UsageError: it was not pulled, or torch is no fair comparison.
    """
    described, facts = package.described[0], package.document["files"][WEIGHTS]
    if package.document["target"] == "cascade":
        raise UsageError("torch computes every exit of a cascade", hint="measure its ONNX file")
    if not {WEIGHTS, CONFIG} <= set(package.here):
        pulled = read_json(package.folder / PULLED)
        raise UsageError(
            f"the student of {package.folder} was not pulled",
            hint=f"kdzoo pull {pulled.get('repository')}@{pulled.get('commit')} -b {package.document['target']} --format {STUDENT}",
        )
    return Artifact(
        WEIGHTS, STUDENT, "fp32", facts["sha256"], facts["bytes"], described.input, described.output,
        described.batch, "torch", "",
    )  # fmt: skip


class TorchSession(Session):
    def __init__(self, package: Package, kind: str, threads: int) -> None:
        import torch

        from ..deployed import Deployed
        from ..exporter import load_student

        preprocess, student = package.preprocess, load_student(package)
        self.deployed = Deployed(student, mean=preprocess.mean, std=preprocess.std, input=kind).eval()  # type: ignore[arg-type]
        self.names, self.threads, self.before = student.output_names(), threads, torch.get_num_threads()
        self.ran_on, self.inputs = RanOn("torch", torch.__version__, "cpu", threads), ("image",)

    def everything(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        import torch

        if torch.get_num_threads() != self.threads:  # one number for the whole process
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            found = self.deployed(torch.from_numpy(self.by_name(inputs)["image"]))
        outputs = found if isinstance(found, tuple) else (found,)
        return {name: logits.numpy() for name, logits in zip(self.names, outputs, strict=True)}

    def close(self) -> None:
        import torch

        torch.set_num_threads(self.before)


@RUNTIMES.register("torch")
class Torch(Runtime):
    name = "torch"
    own_formats = (STUDENT,)

    def refuses(self, artifact: Artifact) -> str:
        return "" if artifact.format == STUDENT else f"torch runs the student of a package, not {artifact.format}"

    def check(self, folder: Path, artifact: Artifact) -> None:
        if find_spec("torch") is None:
            raise missing_package("torch")

    def open(self, folder: Path, artifact: Artifact, threads: int | None = None, *, in_turns: bool = False) -> Session:
        kind = "float" if artifact.input.dtype == "float32" else "uint8"
        return TorchSession(Package.open(folder), kind, threads or physical_cores())
