"""What every test shares: shapes are checked while tests run, one thread, tiny data, tiny networks."""

from __future__ import annotations

from jaxtyping import install_import_hook

# Before anything of kdzoo is imported. Only the packages whose functions carry shapes: `kdzoo.export` has none. With the tower of
# PEP 484 an int is a float.
install_import_hook(["kdzoo.zoo", "kdzoo.train"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import gc  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from torch import nn  # noqa: E402

from kdzoo.cli import main  # noqa: E402
from kdzoo.export import onnx_graph  # noqa: E402
from kdzoo.export.exporter import export  # noqa: E402
from kdzoo.export.package import Package  # noqa: E402
from kdzoo.tests import small_counts, small_packages, small_traces  # noqa: E402
from kdzoo.tests.small_methods import small_settings  # noqa: E402
from kdzoo.zoo.backbone import BACKBONES, Backbone  # noqa: E402
from kdzoo.zoo.backbones.resnet_cifar import residual_stage  # noqa: E402
from kdzoo.zoo.checkpoint import Checkpoint  # noqa: E402
from kdzoo.zoo.datasets import LabelledImages, read_npz  # noqa: E402
from kdzoo.zoo.method import METHODS, Method  # noqa: E402
from kdzoo.zoo.network import MultiBranch  # noqa: E402
from kdzoo.zoo.preprocess import Preprocess  # noqa: E402
from kdzoo.zoo.student import select  # noqa: E402
from kdzoo.zoo.target import Target  # noqa: E402
from kdzoo.zoo.teacher import Teacher  # noqa: E402

torch.set_num_threads(1)  # tensors are tiny: a second thread only waits, three times longer on a busy machine
Once = Callable[[str, Callable[[Path], object]], Path]
TINY_CLASSES = ("red", "green", "blue", "grey")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through it, half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


class TinyBackbone(Backbone):
    """Three stages, few channels; not in the registry."""

    widths = (8, 12, 16)
    depths = (1, 2, 2)

    def stem(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    def stage(self, index: int, depth: int) -> nn.Module:
        return residual_stage((8, *self.widths)[index], self.widths[index], depth, stride=1 if index == 0 else 2)


@pytest.fixture(scope="session", autouse=True)
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run have in common; traced students lie there."""
    own = tmp_path_factory.getbasetemp()
    small_traces.folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return small_traces.folder


@pytest.fixture(scope="session")
def once(run_folder: Path) -> Once:
    """`once(name, make)`: a folder that `make` has filled, once for all workers. Leave it unchanged."""

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        place = run_folder / f"once-{name}"
        with FileLock(f"{place}.lock"):
            if not (place / "made").exists():
                shutil.rmtree(place, ignore_errors=True)  # of a worker that failed
                place.mkdir()
                make(place)
                (place / "made").touch()
        return place

    return folder


@pytest.fixture(scope="session")
def tiny_backbone() -> Backbone:
    return TinyBackbone()


@pytest.fixture(scope="session")
def make_network() -> Callable[..., MultiBranch]:
    """`make(method, backbone="tiny", **config)`: a network of 5 classes in evaluation mode with BatchNorm statistics that are not
    those of initialisation; what `config` does not say is as in `small_settings`. Every caller of the same arguments gets the same
    one: leave it unchanged."""

    @cache
    def make(method: str, backbone: str = "tiny", **config: object) -> MultiBranch:
        torch.manual_seed(0)
        recipe = TinyBackbone() if backbone == "tiny" else BACKBONES.get(backbone)()
        network = METHODS.get(method).from_mapping({**small_settings(method), **config}).build(recipe, 5)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(module.running_mean, 0.0, 0.2)
                for positive in (module.running_var, module.weight):
                    nn.init.uniform_(positive, 0.5, 1.5)
        return network.eval()

    return make


@pytest.fixture(scope="session")
def make_teachers(make_network: Callable[..., MultiBranch]) -> Callable[[Method, str], tuple[Teacher, ...]]:
    """`make(method, backbone)`: a frozen network of 5 classes for each backbone that the method wants to be taught by."""

    def make(method: Method, backbone: str) -> tuple[Teacher, ...]:
        names = method.teachers(backbone)
        return tuple(Teacher(select(make_network("baseline", name), Target("target")), name, name) for name in names)

    return make


@pytest.fixture(scope="session")
def preprocess() -> Preprocess:
    return Preprocess(32, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 12 test images of 32x32 pixels: noise around one colour per class."""
    draw = np.random.default_rng(0)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [120, 120, 120]])
    arrays: dict[str, object] = {"classes": np.array(TINY_CLASSES)}
    for split, count in (("train", 24), ("test", 12)):
        labels = np.arange(count) % 4
        arrays[f"{split}_labels"] = labels
        noise = draw.integers(-40, 40, (count, 32, 32, 3))
        arrays[f"{split}_images"] = (colours[labels][:, None, None] + noise).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="session")
def tiny_data(tiny_npz: Path) -> LabelledImages:
    """The test split of `tiny_npz`."""
    return read_npz(tiny_npz, "test")


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training and 32 test images of 16x16 pixels (`small_runs`)."""
    from kdzoo.tests.small_runs import write_colours

    return write_colours(tmp_path_factory.mktemp("data") / "colours.npz", 64, 32)


@pytest.fixture(scope="session")
def toys() -> LabelledImages:
    return small_packages.draw_toys()


@pytest.fixture(scope="session")
def toys_npz(toys: LabelledImages, once: Once) -> Path:
    arrays = {"test_images": toys.images, "test_labels": toys.labels, "classes": np.array(toys.classes)}
    return once("toys", lambda folder: np.savez(folder / "toy.npz", **arrays)) / "toy.npz"


@pytest.fixture(scope="session")
def toy_checkpoint(toys: LabelledImages, preprocess: Preprocess, once: Once) -> Checkpoint:
    def make(folder: Path) -> None:
        small_packages.save_toy_checkpoint(folder / "checkpoint", toys, preprocess)

    return Checkpoint.open(once("toy-run", make) / "checkpoint")


@pytest.fixture(scope="session")
def package_of(toy_checkpoint: Checkpoint, toys_npz: Path, once: Once) -> Callable[[str], Package]:
    """The package of a target, measured on all images; exported once for all workers."""

    @cache
    def make(target: str) -> Package:
        def export_it(folder: Path) -> None:
            with small_packages.quick_exports():
                export(toy_checkpoint, Target.parse(target), output=folder / target, data=toys_npz)

        return Package.open(once(f"package-{target}", export_it) / target)

    return make


@pytest.fixture
def package_copy(package_of: Callable[[str], Package], tmp_path: Path) -> Package:
    """A package of branch 1 to do harm to."""
    return Package.open(Path(shutil.copytree(package_of("1").folder, tmp_path / "copy")))


@pytest.fixture(scope="module")
def traced_once() -> Iterator[None]:
    """Where the graph is only needed: see `small_traces`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "_trace", small_traces.trace_once)
        yield


@pytest.fixture
def shapes_only() -> Iterator[None]:
    with small_counts.shapes_only():
        yield


@pytest.fixture
def quick() -> Iterator[None]:
    with small_packages.quick_exports():
        yield


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """`call(words...)` in an empty folder: stdout and stderr of a command that ends well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDZOO_DATA", raising=False)

    def run(*words: object) -> tuple[str, str]:
        capfd.readouterr()
        main([str(word) for word in words])
        return capfd.readouterr()

    return run
