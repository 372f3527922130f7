"""Top-1 and top-5 of every target against numpy, long tails, distances of branches, several processes, and the counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdzoo.train.evaluate import Evaluation, count_targets, evaluate
from kdzoo.zoo.backbone import Backbone
from kdzoo.zoo.datasets import LabelledImages, open_split
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.preprocess import Preprocess
from kdzoo.zoo.student import select
from kdzoo.zoo.target import Target

CPU = torch.device("cpu")
TARGETS = ("target", "1", "2", "3", "fused", "ensemble", "1+3")


def make(backbone: Backbone, num_classes: int) -> MultiBranch:
    torch.manual_seed(0)
    return METHODS.get("ahbf").from_mapping({"num_branches": 3, "aux": 1}).build(backbone, num_classes)


def images(num_classes: int, count: int = 37) -> LabelledImages:
    draw = np.random.default_rng(2)
    pixels = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return LabelledImages(pixels, draw.integers(0, num_classes, count), tuple(map(str, range(num_classes))), "noise")


@pytest.fixture(scope="module")
def network(tiny_backbone: Backbone) -> MultiBranch:
    return make(tiny_backbone, 9)


def numpy_accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> float:
    best = np.argsort(-logits, axis=1)[:, :k]
    return 100.0 * float(np.mean([label in row for label, row in zip(labels, best, strict=True)]))


def test_every_target_has_the_accuracy_that_numpy_counts_on_its_logits(network: MultiBranch, preprocess: Preprocess) -> None:
    data = images(9)
    found = evaluate(network, data, preprocess, TARGETS, device=CPU, split="test", batch_size=8).targets
    pixels = (data.images / 255.0 - np.array(preprocess.mean)) / np.array(preprocess.std)
    network.eval()
    with torch.no_grad():
        outputs = network(torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last))
    assert outputs.fused is not None
    one, two, three = (z.numpy() for z in outputs.logits)
    logits = {
        "target": one, "1": one, "2": two, "3": three, "fused": outputs.fused.numpy(),
        "ensemble": (one + two + three) / 3, "1+3": (one + three) / 2,
    }  # fmt: skip
    assert tuple(found) == TARGETS
    for target, z in logits.items():
        assert found[target]["top1"] == pytest.approx(numpy_accuracy(z, data.labels, 1), abs=1e-3), target
        assert found[target]["top5"] == pytest.approx(numpy_accuracy(z, data.labels, 5), abs=1e-3), target
        assert found[target]["n"] == 37 and found[target]["split"] == "test"


def test_five_classes_have_no_top5(tiny_backbone: Backbone, preprocess: Preprocess) -> None:
    found = evaluate(make(tiny_backbone, 5), images(5), preprocess, ("target",), device=CPU, split="test").targets
    assert set(found["target"]) == {"top1", "n", "split"}


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_mode_and_statistics_as_they_were(network: MultiBranch, preprocess: Preprocess, training: bool) -> None:
    network.train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    evaluate(network, images(9, 8), preprocess, ("target",), device=CPU, split="test")
    assert network.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def logits_of(network: MultiBranch, data: LabelledImages, preprocess: Preprocess) -> list[NDArray[np.float64]]:
    """Logits of every branch."""
    pixels = (data.images / 255.0 - np.array(preprocess.mean)) / np.array(preprocess.std)
    with torch.no_grad():
        outputs = network.eval()(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    return [z.double().numpy() for z in outputs.logits]


def test_distances_are_those_of_the_softmax_outputs_in_float64(network: MultiBranch, preprocess: Preprocess) -> None:
    data = images(9)
    found = evaluate(network, data, preprocess, ("target",), device=CPU, split="test", batch_size=8).distances
    exponentials = [np.exp(z) for z in logits_of(network, data, preprocess)]
    p = [e / e.sum(axis=1, keepdims=True) for e in exponentials]
    expected = [[np.sqrt(((a - b) ** 2).sum(axis=1)).mean() for b in p] for a in p]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    assert expected[0][1] > 1e-4 and found[0][0] == 0


def test_one_branch_has_no_distances(tiny_backbone: Backbone, preprocess: Preprocess) -> None:
    network = METHODS.get("baseline").from_mapping({}).build(tiny_backbone, 9)
    found = evaluate(network, images(9), preprocess, ("target",), device=CPU, split="test")
    assert found.distances == [] and isinstance(found, Evaluation)


def test_long_tails_are_scored_by_the_number_of_training_images(network: MultiBranch, preprocess: Preprocess) -> None:
    data, counts = images(9, 200), np.array([500, 101, 100, 21, 20, 19, 5, 1, 300])
    found = evaluate(network, data, preprocess, ("2", "target"), device=CPU, split="test", train_counts=counts).targets
    logits = logits_of(network, data, preprocess)
    for target, z in (("2", logits[1]), ("target", logits[0])):
        for name, classes in (("many", [0, 1, 8]), ("medium", [2, 3, 4]), ("few", [5, 6, 7])):
            own = np.isin(data.labels, classes)
            assert found[target][name] == pytest.approx(numpy_accuracy(z[own], data.labels[own], 1), abs=1e-3), (target, name)


def test_groups_are_left_out_where_they_are_empty_or_training_was_balanced(network: MultiBranch, preprocess: Preprocess) -> None:
    for counts, groups in (([500] * 9, set()), ([500] * 8 + [300], {"many"}), ([500] * 8 + [2], {"many", "few"}), (None, set())):
        found = evaluate(network, images(9), preprocess, ("1",), device=CPU, split="test", train_counts=counts).targets["1"]
        assert set(found) - {"top1", "top5", "n", "split"} == groups


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_are_decoded_on_the_way_give_the_same_result(
    network: MultiBranch, preprocess: Preprocess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("kdzoo.zoo.sets.images.DECODE_ALONE", 0)
    data = images(9)
    for number, (pixels, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = tmp_path / "test" / str(label) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    encoded, decoded = (open_split(tmp_path, "test", preprocess, lazy=lazy) for lazy in (True, False))
    settings = {"device": CPU, "split": "test", "batch_size": 8}
    found = evaluate(network, encoded, preprocess, TARGETS, workers=workers, **settings)  # type: ignore[arg-type]
    assert found == evaluate(network, decoded, preprocess, TARGETS, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [2, 40])
def test_every_process_evaluates_its_share_and_gets_the_whole_result(
    network: MultiBranch, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    """Of 40 processes three have no image. `all_reduce` is played by sums that are handed from one rank to the next."""
    data, counts = images(9), np.arange(10, 100, 10)
    so_far: list[Tensor] = []
    for rank in range(world):
        before, so_far = so_far, []

        def all_reduce(mine: Tensor, before: list[Tensor] = before, so_far: list[Tensor] = so_far) -> None:
            if before:
                mine += before.pop(0)
            so_far.append(mine.clone())

        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        found = evaluate(
            network, data, preprocess, TARGETS, device=CPU, split="test", batch_size=8, train_counts=counts, rank=rank, world=world
        )
    alone = evaluate(network, data, preprocess, TARGETS, device=CPU, split="test", batch_size=8, train_counts=counts)
    assert found.targets == alone.targets
    np.testing.assert_allclose(found.distances, alone.distances, rtol=1e-5, atol=1e-12)


def test_counts_are_those_of_the_student_of_each_target(network: MultiBranch, preprocess: Preprocess) -> None:
    counts = count_targets(network, TARGETS, preprocess)
    for target in TARGETS:
        student = select(network, Target.parse(target))
        assert counts[target]["params"] == sum(p.numel() for p in student.parameters()), target
    assert counts["1"] == counts["target"]
    assert counts["1"]["macs"] < counts["2"]["macs"] < counts["3"]["macs"] < counts["ensemble"]["macs"] < counts["fused"]["macs"]
    assert all(c["macs_dbfskd"] > c["macs"] > 0 for c in counts.values())
