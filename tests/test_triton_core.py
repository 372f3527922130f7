"""The repository in the real core of Triton, with its Python backend: `tritonclient` gets the golden logits, over HTTP and gRPC.

The core comes with the wheel nvidia-pytriton. It goes into an environment of its own, which KDZOO_TRITON names:

    python -m venv DIR && DIR/bin/pip install nvidia-pytriton onnxruntime && KDZOO_TRITON=DIR pytest tests/test_triton_core.py
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdzoo.export.exporter import export
from kdzoo.export.format import Batch, ExportOptions
from kdzoo.export.gates import Gates
from kdzoo.export.package import Package
from kdzoo.export.triton import TritonOptions, TritonRepository, write_triton
from kdzoo.tests.small_packages import quick_exports
from kdzoo.tests.small_runs import recipe_for, train
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.target import Target

ENVIRONMENT = os.environ.get("KDZOO_TRITON")
PATIENCE = 120  # seconds until it is ready
pytestmark = pytest.mark.skipif(not ENVIRONMENT, reason="KDZOO_TRITON names no environment with nvidia-pytriton and onnxruntime")


class Core:
    """`tritonserver` on a repository, as an installation has it: the backend and its stub in one folder."""

    def __init__(self, environment: Path, repository: Path, scratch: Path) -> None:
        (site,) = environment.glob("lib/python3.*/site-packages")
        own, version = site / "pytriton" / "tritonserver", site.parent.name.removeprefix("python")
        backend = scratch / "backends" / "python"
        shutil.copytree(own / "backends" / "python", backend)
        shutil.copy(own / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            self.ports = {"http": one.getsockname()[1], "grpc": other.getsockname()[1]}
        command = [
            own / "bin" / "tritonserver", f"--model-repository={repository}", f"--backend-directory={backend.parent}",
            f"--http-port={self.ports['http']}", f"--grpc-port={self.ports['grpc']}", "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1", "--allow-metrics=false", "--disable-auto-complete-config", "--exit-timeout-secs=5",
        ]  # fmt: skip
        self.log = scratch / "log"
        variables = {
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(environment),
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        }  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)

    def client(self, protocol: str) -> Any:
        module = module_of(protocol)
        return module.InferenceServerClient(f"127.0.0.1:{self.ports[protocol]}")

    def wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with self.client("http") as client:
                    if client.is_server_ready():
                        return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"Triton is not ready:\n{self.log.read_text(errors='replace')[-4000:]}")

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def module_of(protocol: str) -> Any:
    return pytest.importorskip(f"tritonclient.{protocol}", reason="pip install 'tritonclient[http,grpc]'")


@pytest.fixture(scope="module")
def cascade(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A cascade in one file and in parts."""
    folder = tmp_path_factory.mktemp("cascade")
    torch.manual_seed(0)
    with quick_exports():
        trained = train(recipe_for(method="dbfskd", backbone="resnet8", epochs=1, holdout=16), colours, folder / "run")
        return export(
            Checkpoint.open(trained.folder), Target.parse("cascade"), formats=("onnx", "parts"),
            options=ExportOptions(("fp32",), Batch(1, 4, 8)), gates=Gates.of(100.0, 0.0), output=folder / "package", data=colours,
            cascade_loss=100.0,
        )  # fmt: skip


@pytest.fixture(scope="module")
def repository(
    package_of: Callable[[str], Package], cascade: Package, tmp_path_factory: pytest.TempPathFactory
) -> TritonRepository:
    packages = [package_of("1"), package_of("all"), cascade]
    return write_triton(packages, tmp_path_factory.mktemp("triton") / "models", TritonOptions("python", instances=2))


@pytest.fixture(scope="module")
def core(repository: TritonRepository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    assert ENVIRONMENT is not None
    core = Core(Path(ENVIRONMENT), repository.folder, tmp_path_factory.mktemp("core"))
    try:
        core.wait()
        yield core
    finally:
        code = core.stop()
    assert code == 0, f"a model kept the core from its end:\n{core.log.read_text(errors='replace')[-2000:]}"


def ask(core: Core, protocol: str, name: str, images: np.ndarray[Any, Any], **options: Any) -> Any:
    module = module_of(protocol)
    given = module.InferInput("image", list(images.shape), "UINT8")
    given.set_data_from_numpy(images)
    with core.client(protocol) as client:
        return client.infer(name, [given], **options)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_every_model_gives_the_golden_logits(protocol: str, core: Core, repository: TritonRepository) -> None:
    assert len(repository.models) == 4, "the cascade is there twice: in one file, and in parts"
    for model in repository.models:
        images, logits = model.package.golden(model.artifact)
        found = ask(core, protocol, model.name, images)
        np.testing.assert_allclose(found.as_numpy("logits"), logits, atol=1e-3, err_msg=model.name)
        one = ask(core, protocol, model.name, images[2:3])
        np.testing.assert_allclose(one.as_numpy("logits"), logits[2:3], atol=1e-3, err_msg=f"{model.name}, one image")


def test_both_forms_of_a_cascade_leave_at_the_same_exits(core: Core, repository: TritonRepository, cascade: Package) -> None:
    images, _ = cascade.golden()
    models = [model for model in repository.models if model.package is cascade]
    exits = [ask(core, "http", model.name, images).as_numpy("exit") for model in models]
    assert exits[0].shape == (len(images), 1) and exits[0].min() >= 1
    np.testing.assert_array_equal(*exits)


def test_labels_and_metadata_are_those_of_the_package(core: Core, package_of: Callable[[str], Package]) -> None:
    package, module = package_of("1"), module_of("http")
    images, logits = package.golden()
    wanted = [module.InferRequestedOutput("logits", class_count=1)]
    told = ask(core, "http", package.name, images[:1], outputs=wanted).as_numpy("logits").ravel()[0].decode()
    best = int(logits[0].argmax())
    assert told.split(":")[1:] == [str(best), package.labels[best]]
    with core.client("http") as client:
        metadata = client.get_model_metadata(package.name)
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]


def test_a_wrong_shape_is_refused_with_a_sentence(core: Core, package_of: Callable[[str], Package]) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="shape"):
        ask(core, "http", package_of("1").name, np.zeros((1, 31, 32, 3), np.uint8))
