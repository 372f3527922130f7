"""What every method of the registry promises: its losses, where their gradients go, what it exports, and that its runs resume.

A new file in `zoo/methods` is covered without a line here. Students are in `test_student`, backbones in `test_registry`.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdzoo.export.engine_sidecar import read_header
from kdzoo.export.onnx_file import OnnxRunner, check_onnx
from kdzoo.export.onnx_graph import export_onnx
from kdzoo.export.parity import compare, tolerance
from kdzoo.export.tensorrt_build import EngineRequest, build_engine
from kdzoo.tests.small_engines import needs_rtx
from kdzoo.tests.small_methods import small_method, small_settings
from kdzoo.tests.small_runs import SignalAt, assert_same_state, log_of, recipe_for, train, write_colours
from kdzoo.train import run_folder
from kdzoo.train.loop import Training, train_step
from kdzoo.train.optim import make_optimizer
from kdzoo.train.recipe import Optimizer, Recipe
from kdzoo.zoo.backbone import Backbone
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.losses import sum_of
from kdzoo.zoo.method import METHODS, Method, Progress
from kdzoo.zoo.network import MultiBranch, Outputs
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.student import select, target_logits
from kdzoo.zoo.target import Target
from kdzoo.zoo.teacher import Teacher

MakeNetwork = Callable[..., MultiBranch]
MakeTeachers = Callable[[Method, str], tuple[Teacher, ...]]
NUM_CLASSES, BATCH, SIZE = 5, 6, 16
every_method = pytest.mark.parametrize("name", METHODS.names())


@pytest.fixture
def training(name: str, tiny_backbone: Backbone, make_teachers: MakeTeachers) -> Training:
    """A fresh tiny network of the method, about to take its first step."""
    method = small_method(name)
    teachers = make_teachers(method, "tiny")
    torch.manual_seed(1)  # another than that of the teachers, one of which may be a twin
    network = method.build(tiny_backbone, NUM_CLASSES)
    method.adopt(network, teachers)
    recipe = Recipe(name, "tiny", "colours", epochs=10, batch_size=BATCH, optimizer=Optimizer(weight_decay=0.0))
    optimizer = make_optimizer(network, recipe.optimizer)
    return Training(network.train(), method, optimizer, recipe, teachers=tuple(t.train() for t in teachers))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(BATCH) % NUM_CLASSES


def outputs_of(training: Training, images: Tensor) -> Outputs:
    return replace(training.network(images), teachers=tuple(teacher(images) for teacher in training.teachers))


# --- losses -------------------------------------------------------------------------------------------------------------


@every_method
def test_losses_have_the_same_names_and_are_finite_from_the_first_epoch_to_the_last(
    training: Training, images: Tensor, labels: Tensor
) -> None:
    outputs = outputs_of(training, images)
    found = [training.method.losses(outputs, labels, Progress(epoch, 300)) for epoch in (0, 1, 150, 299)]
    assert found[0] and all(type(name) is str for name in found[0])
    for losses in found:
        assert losses.keys() == found[0].keys(), "a curve needs a part in every epoch"
        for name, loss in losses.items():
            assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite(), name
    assert any(loss.requires_grad for loss in found[0].values())


@every_method
def test_probabilities_of_one_class_have_the_losses_of_its_number(training: Training, images: Tensor, labels: Tensor) -> None:
    outputs = outputs_of(training, images)
    hard = training.method.losses(outputs, labels, Progress(3, 10))
    one_hot = nn.functional.one_hot(labels, NUM_CLASSES).float()
    as_probabilities = training.method.losses(outputs, one_hot, Progress(3, 10))
    assert as_probabilities.keys() == hard.keys()
    for name, loss in hard.items():
        torch.testing.assert_close(as_probabilities[name], loss, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@every_method
def test_mixed_labels_are_learned_from(training: Training, images: Tensor, labels: Tensor) -> None:
    outputs = outputs_of(training, images)
    one_hot = nn.functional.one_hot(labels, NUM_CLASSES).float()
    mixed = 0.9 * (0.7 * one_hot + 0.3 * one_hot.flip(0)) + 0.1 / NUM_CLASSES
    losses = training.method.losses(outputs, mixed, Progress(3, 10))
    assert losses.keys() == training.method.losses(outputs, labels, Progress(3, 10)).keys()
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())


@torch.no_grad()
def scale_classifiers(training: Training, factor: float) -> None:
    """Make every logit, those of the teachers included, `factor` times as large."""
    for module in (training.network, *training.teachers):
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and layer.out_features == NUM_CLASSES:
                layer.weight.mul_(factor)
                layer.bias.mul_(factor)


@every_method
def test_huge_logits_give_no_nan_in_losses_or_gradients(training: Training, images: Tensor, labels: Tensor) -> None:
    scale_classifiers(training, 1e3)
    outputs = outputs_of(training, images)
    assert min(z.abs().max() for z in outputs.logits) > 100, "the test is void: the logits are small"
    losses = training.method.losses(outputs, labels, Progress(9, 10))
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum_of(losses.values()).backward()
    broken = [n for n, p in training.network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not broken, "gradients are not finite"


# --- gradients ----------------------------------------------------------------------------------------------------------


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


@every_method
def test_a_step_moves_what_learns_and_nothing_else(training: Training, images: Tensor, labels: Tensor) -> None:
    network, teachers = training.network, training.teachers
    before, before_teachers = copies(network), [copies(teacher) for teacher in teachers]
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    parts, _ = train_step(training, images, labels, Progress(0, 10))
    assert all(part.isfinite() for part in parts.values())

    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert gradients.keys() == learning, "the losses do not reach all that learns, or something that is frozen"
    assert not [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    moved = changed(network, before)
    assert not moved & ({name for name, _ in network.named_parameters()} - learning), "the step moved what is frozen"
    of_target = {name for name, _ in select(network, Target("target")).named_parameters()} & learning
    assert of_target and not of_target - moved, "parts of the deployed network do not learn"
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())

    for teacher, was in zip(teachers, before_teachers, strict=True):
        assert not teacher.student.training and not changed(teacher, was), "a teacher learned, or its BatchNorm did"
        assert not [name for name, p in teacher.named_parameters() if p.requires_grad or p.grad is not None]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@every_method
def test_a_step_on_a_gpu_is_that_of_the_processor(training: Training, images: Tensor, labels: Tensor) -> None:
    network = copy.deepcopy(training.network).cuda()
    teachers = tuple(copy.deepcopy(teacher).cuda() for teacher in training.teachers)
    optimizer = make_optimizer(network, training.recipe.optimizer)
    elsewhere = Training(network, training.method, optimizer, training.recipe, teachers=teachers)
    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
        there, _ = train_step(elsewhere, images.cuda(), labels.cuda(), Progress(3, 10))
    here, _ = train_step(training, images, labels, Progress(3, 10))
    for name, loss in here.items():
        torch.testing.assert_close(there[name].cpu(), loss, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    for name, parameter in training.network.named_parameters():
        moved = network.get_parameter(name).cpu()
        torch.testing.assert_close(moved, parameter, rtol=1e-2, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


# --- files --------------------------------------------------------------------------------------------------------------


class EveryTarget(nn.Module):
    """The logits of every target side by side, so that one file proves them all; `test_student` proves the parts."""

    def __init__(self, network: MultiBranch) -> None:
        super().__init__()
        several = ["1+2"] if len(network.branches) > 1 else []
        self.network, self.targets = network, [Target.parse(t) for t in (*network.targets(), *several)]

    def forward(self, image: Tensor) -> Tensor:
        outputs = self.network(image)
        return torch.cat([target_logits(outputs, target, self.network.target_branch) for target in self.targets], dim=1)


@pytest.fixture(scope="module")
def exported(
    make_network: MakeNetwork, preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[EveryTarget, Path]]:
    """The smallest network of a method and its ONNX file; exported once, also where several methods have the same network."""
    folder, files = tmp_path_factory.mktemp("onnx"), dict[object, Path]()

    @cache
    def make(name: str) -> tuple[EveryTarget, Path]:
        module = EveryTarget(make_network(name, "resnet8")).eval()
        network = (str(module), *module.targets, *module.network.inputs.items())
        if network not in files:
            files[network] = folder / f"{name}.onnx"
            export_onnx(module, files[network], mean=preprocess.mean, std=preprocess.std, height=SIZE, width=SIZE)
        return module, files[network]

    return make


@every_method
def test_the_onnx_file_of_every_target_gives_what_torch_gives(
    name: str, exported: Callable[[str], tuple[EveryTarget, Path]], preprocess: Preprocess
) -> None:
    module, path = exported(name)
    check_onnx(path)
    pixels = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)
    normal = (pixels / 255.0 - np.array(preprocess.mean)) / np.array(preprocess.std)
    with torch.no_grad():
        expected = module(torch.from_numpy(normal.transpose(0, 3, 1, 2)).float()).numpy()
    logits = OnnxRunner(path)(pixels)
    assert logits.shape == (9, NUM_CLASSES * len(module.targets))
    for n, target in enumerate(module.targets):
        own = slice(n * NUM_CLASSES, (n + 1) * NUM_CLASSES)
        parity = compare(logits[:, own], expected[:, own])
        assert parity.nan_count == 0 and parity.max_abs_diff <= tolerance("fp32", parity.largest_logit), f"{target}: {parity}"
        assert parity.agreement == 1.0, f"{target}: {parity}"


@pytest.fixture(scope="module")
def engine_of() -> Callable[[Path], bytes]:
    """The engine of an ONNX file; built once."""

    @cache
    def build(onnx: Path) -> bytes:
        request = EngineRequest(onnx, onnx.with_suffix(".engine"), "tensorrt_rtx", "8.6", (1, 8, 64))
        build_engine(request)
        return request.engine.read_bytes()

    return build


@needs_rtx
@every_method
def test_every_target_becomes_an_engine(
    name: str, exported: Callable[[str], tuple[EveryTarget, Path]], engine_of: Callable[[Path], bytes]
) -> None:
    assert read_header(engine_of(exported(name)[1]))["capabilities"] == ["8.6"]


# --- runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of all methods stand side by side: teachers are trained once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def few_colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("data") / "few.npz", 16, 8)


@every_method
def test_a_run_stopped_in_mid_epoch_and_resumed_ends_as_if_it_had_not_been(
    name: str, few_colours: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "draw_curve", lambda *_: False)
    recipe = recipe_for(name, backbone="resnet8", method_config=small_settings(name), batch_size=8, eval_every=2)
    whole = train(recipe, few_colours, runs / f"{name}-whole")
    assert whole.finished
    last = log_of(whole.folder)[-1]
    assert last["losses"] and all(np.isfinite(value) for value in last["losses"].values())
    assert set(last["metrics"]) == set(Checkpoint.open(whole.folder).network().targets())

    stopped = train(recipe, few_colours, runs / f"{name}-stopped", reporter=SignalAt(signal.SIGTERM, 1, 1))
    state = Checkpoint.open(stopped.folder).training_state().values
    assert not stopped.finished and (state["epoch"], state["step"]) == (1, 1)
    resumed = train(recipe, few_colours, runs / f"{name}-stopped", resume=True)
    assert resumed.finished and resumed.metrics == whole.metrics
    assert_same_state(whole.folder, resumed.folder)
    assert log_of(resumed.folder)[-1]["losses"] == last["losses"]
