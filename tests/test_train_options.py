"""Options of a recipe that change a step: parts of a batch, clipping, averages, smoothed and mixed labels, compilation."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdzoo.errors import EnvironmentProblem
from kdzoo.tests.small_methods import small_method, small_settings
from kdzoo.tests.small_runs import SignalAt, assert_same_state, log_of, recipe_for, train, write_colours
from kdzoo.train import run, run_folder
from kdzoo.train.events import EventReporter
from kdzoo.train.loop import StepReport, Training, train_step
from kdzoo.train.optim import make_optimizer
from kdzoo.train.recipe import Recipe
from kdzoo.train.reporter import Silent
from kdzoo.zoo.backbone import Backbone
from kdzoo.zoo.checkpoint import Checkpoint
from kdzoo.zoo.datasets import read_npz
from kdzoo.zoo.method import Progress
from kdzoo.zoo.teacher import Teacher

PLAIN_SGD = {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
NUM_CLASSES = 5


class NoNorm(Backbone):
    """Two convolutions without BatchNorm: the loss of an image does not depend on those beside it."""

    widths, depths = (4, 6), (1, 1)

    def stem(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU())

    def stage(self, index: int, depth: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, self.widths[index], 3), nn.ReLU())


def start(method: str = "baseline", teachers: tuple[Teacher, ...] = (), **changes: Any) -> Training:
    """The same fresh network of `NoNorm` at every call, about to take its first step."""
    torch.manual_seed(0)
    network = small_method(method).build(NoNorm(), NUM_CLASSES)
    document = {"method": method, "backbone": "none", "dataset": "none", "epochs": 10, "batch_size": 10, "optimizer": PLAIN_SGD}
    recipe = Recipe.from_mapping({**document, **changes})
    return Training(network.train(), small_method(method), make_optimizer(network, recipe.optimizer), recipe, teachers=teachers)


def batch(size: int = 10) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 12, 12, generator=draw), torch.arange(size) % NUM_CLASSES


def step(training: Training, size: int = 10) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loss parts and gradients of one step."""
    parts, correct = train_step(training, *batch(size), Progress(3, 10))
    gradients = {name: p.grad for name, p in training.network.named_parameters() if p.grad is not None}
    return {**parts, "correct": correct}, gradients


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# --- accumulation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["baseline", "dml"])
@pytest.mark.parametrize(("accumulate", "size"), [(2, 10), (3, 10), (4, 9), (5, 3)])
def test_a_batch_in_parts_has_the_losses_and_the_gradients_of_the_whole(method: str, accumulate: int, size: int) -> None:
    """Also where the parts are not of one size, and of a last batch that is too small for so many."""
    (whole, gradients), (parts, sums) = step(start(method), size), step(start(method, accumulate=accumulate), size)
    assert parts.keys() == whole.keys() and sums.keys() == gradients.keys()
    for ours, theirs in ((parts, whole), (sums, gradients)):
        for name, expected in theirs.items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("accumulate", "size", "sizes"), [(1, 7, [7]), (3, 7, [3, 2, 2]), (4, 9, [3, 2, 2, 2]), (5, 3, [3])])
def test_no_part_of_a_batch_is_a_single_image(accumulate: int, size: int, sizes: list[int]) -> None:
    """BatchNorm in training mode refuses those."""
    training, seen = start(accumulate=accumulate), []
    training.network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    step(training, size)
    assert seen == sizes


# --- clipping -----------------------------------------------------------------------------------------------------------


def norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.cat([g.double().flatten() for g in gradients.values()]).norm())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_that_is_applied_is_no_longer_than_clip_norm(accumulate: int) -> None:
    _, free = step(start(accumulate=accumulate))
    training = start(accumulate=accumulate, clip_norm=norm(free) / 4)
    before = weights(training.network)
    _, clipped = step(training)
    assert norm(clipped) == pytest.approx(norm(free) / 4, rel=1e-4)
    for name, parameter in training.network.named_parameters():
        torch.testing.assert_close(clipped[name], free[name] / 4, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(parameter.detach(), before[name] - PLAIN_SGD["lr"] * clipped[name], rtol=0, atol=1e-7)


def test_a_gradient_that_is_short_enough_is_not_changed() -> None:
    (_, free), (_, clipped) = step(start()), step(start(clip_norm=1e3))
    assert all(torch.equal(clipped[name], gradient) for name, gradient in free.items())


# --- labels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True])
def test_smoothed_labels_give_the_cross_entropy_of_the_formula(mixed: bool) -> None:
    """-sum_k q_k log p_k with q = (1 - e) y + e / K, in float64."""
    training, (images, y) = start(label_smoothing=0.2), batch()
    y_BK = torch.eye(NUM_CLASSES, dtype=torch.float64)[y]
    if mixed:
        y_BK = 0.7 * y_BK + 0.3 * y_BK.flip(0)
    with torch.no_grad():
        z = training.network(images).logits[0].double()
    log_p = z - z.exp().sum(dim=1, keepdim=True).log()
    expected = -((0.8 * y_BK + 0.2 / NUM_CLASSES) * log_p).sum(dim=1).mean()
    parts, correct = train_step(training, images, y_BK.float() if mixed else y, Progress(0, 10))
    assert float(parts["ce"]) == pytest.approx(float(expected), rel=1e-5)
    assert int(correct) == int((z.argmax(dim=1) == y).sum()), "the training accuracy counts the likeliest class"


# --- whole runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "draw_curve", lambda *_: False)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("data") / "few.npz", 20, 32)


def small(method: str = "baseline", **changes: Any) -> Recipe:
    """Two epochs of three steps, the last one with four images."""
    return recipe_for(method, **{"backbone": "resnet8", "method_config": small_settings(method), "batch_size": 8, **changes})


EVERYTHING: dict[str, Any] = {
    "augment": {"pad": 2, "mixup": 0.4, "cutmix": 1.0}, "label_smoothing": 0.1, "accumulate": 2, "clip_norm": 1.0,
    "ema_decay": 0.9, "schedule": {"kind": "cosine", "warmup_epochs": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("method", ["one", "simkd"])
def test_a_run_with_every_option_stops_and_resumes_exactly(method: str, npz: Path, tmp_path: Path) -> None:
    recipe = small(method, **EVERYTHING)
    whole = train(recipe, npz, tmp_path / "whole")
    assert whole.finished
    for record in log_of(whole.folder):
        assert all(np.isfinite(value) for value in record["losses"].values())
    stopped = train(recipe, npz, tmp_path / "stopped", reporter=SignalAt(signal.SIGTERM, 1, 1))
    assert not stopped.finished
    resumed = train(recipe, npz, tmp_path / "stopped", resume=True)
    assert_same_state(whole.folder, resumed.folder)
    assert resumed.metrics == whole.metrics and log_of(resumed.folder)[-1]["losses"] == log_of(whole.folder)[-1]["losses"]
    assert any(name.startswith("raw.") for name in Checkpoint.open(whole.folder).training_state().tensors)


@pytest.mark.parametrize("changes", [{"mixup": 0.4}, {"cutmix": 1.0}], ids=str)
def test_mixed_images_change_what_is_learned(changes: dict[str, float], npz: Path, tmp_path: Path) -> None:
    losses = []
    for augment in ({"pad": 0}, {"pad": 0, **changes}):
        result = train(small(epochs=1, augment=augment), npz, tmp_path / str(len(losses)))
        losses.append(log_of(result.folder)[0]["losses"]["ce"])
    assert np.isfinite(losses).all() and losses[0] != losses[1]


@pytest.fixture
def trajectory(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights of the network that is trained, before the first step of a run and after each."""
    seen: list[dict[str, Tensor]] = []
    real = run.train_epoch

    def watched(training: Training, *arguments: Any) -> Iterator[StepReport]:
        if not seen:
            seen.append(weights(training.network))
        for report in real(training, *arguments):
            seen.append(weights(training.network))
            yield report

    monkeypatch.setattr(run, "train_epoch", watched)
    return seen


def test_the_deployed_weights_are_the_moving_average(npz: Path, tmp_path: Path, trajectory: list[dict[str, Tensor]]) -> None:
    """w <- d w + (1 - d) now, with d = min(decay, (1 + n) / (10 + n)) at update n, in float64."""
    result = train(small(ema_decay=0.2), npz, tmp_path / "run")
    assert len(trajectory) == 1 + 6
    checkpoint = Checkpoint.open(result.folder)
    network, raw = checkpoint.network(), trajectory[-1]
    for name, deployed in network.state_dict().items():
        average = trajectory[0][name].double()
        for n, now in enumerate(trajectory[1:]):
            decay = min(0.2, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * now[name].double()
        if deployed.is_floating_point():
            torch.testing.assert_close(deployed.double(), average, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
            assert not torch.equal(deployed, raw[name]), f"{name} is not averaged"
        else:
            assert torch.equal(deployed, raw[name])
    saved = checkpoint.training_state().tensors
    assert all(torch.equal(saved[f"raw.{name}"], tensor) for name, tensor in raw.items()), "a resumed run would start elsewhere"

    data, hits = read_npz(npz, "test"), []
    x = (data.images / 255.0 - np.array(small().mean)) / np.array(small().std)
    images, labels = torch.from_numpy(x.transpose(0, 3, 1, 2)).float(), torch.from_numpy(data.labels)
    for tensors in (network.state_dict(), raw):
        network.load_state_dict(tensors)
        with torch.no_grad():
            hits.append(int((network(images).logits[0].argmax(dim=1) == labels).sum()))
    assert hits[0] != hits[1], "the test is void: both networks are equally good"
    assert result.metrics["target"]["top1"] == pytest.approx(100 * hits[0] / len(labels), abs=1e-3)


# --- compilation --------------------------------------------------------------------------------------------------------


def test_cuda_graphs_without_a_gpu_are_refused_before_anything_is_written(npz: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cuda_graphs needs a CUDA GPU"):
        train(small(cuda_graphs=True), npz, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_run_of_cuda_graphs_has_the_losses_of_a_plain_one(colours: Path, tmp_path: Path) -> None:
    recipe = small("one", precision="fp32", batch_size=16)
    losses = []
    for graphs in (False, True):
        folder = tmp_path / f"graphs {graphs}"
        assert train(replace(recipe, cuda_graphs=graphs), colours, folder, device="cuda").finished
        losses.append([record["losses"] for record in log_of(folder)])
    for plain, replayed in zip(*losses, strict=True):
        assert replayed == pytest.approx(plain, rel=0.05)


# --- events -------------------------------------------------------------------------------------------------------------


def test_tensorboard_events_hold_losses_and_accuracy_of_every_epoch(npz: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe, folder = small("tf_kd", eval_every=2), tmp_path / "run"
    reporter = EventReporter(Silent(), folder / "events")
    assert train(recipe, npz, folder, reporter=reporter).finished
    records = log_of(folder)
    read = reader.EventAccumulator(str(folder / "events" / "test-entry")).Reload()
    scalars = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert scalars.keys() == {"lr", "train_top1", "images_per_s", "loss/ce", "loss/kl", "top1/target"}
    for tag, values in (("lr", [r["lr"] for r in records]), ("loss/kl", [r["losses"]["kl"] for r in records])):
        assert scalars[tag] == [(n, pytest.approx(value, rel=1e-6)) for n, value in enumerate(values, start=1)]
    assert scalars["top1/target"] == [(2, pytest.approx(records[1]["metrics"]["target"]["top1"]))]
    assert (folder / "events" / "baseline-resnet8-colours").is_dir(), "the teacher has events of its own"
