"""Top-1 and top-5 of every target against numpy, and the counts that go with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdzoo.train.evaluate import count_targets, evaluate
from kdzoo.zoo.backbone import Backbone
from kdzoo.zoo.datasets import LabelledImages
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
    found = evaluate(network, data, preprocess, TARGETS, device=CPU, split="test", batch_size=8)
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
    found = evaluate(make(tiny_backbone, 5), images(5), preprocess, ("target",), device=CPU, split="test")
    assert set(found["target"]) == {"top1", "n", "split"}


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_mode_and_statistics_as_they_were(network: MultiBranch, preprocess: Preprocess, training: bool) -> None:
    network.train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    evaluate(network, images(9, 8), preprocess, ("target",), device=CPU, split="test")
    assert network.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_counts_are_those_of_the_student_of_each_target(network: MultiBranch, preprocess: Preprocess) -> None:
    counts = count_targets(network, TARGETS, preprocess)
    for target in TARGETS:
        student = select(network, Target.parse(target))
        assert counts[target]["params"] == sum(p.numel() for p in student.parameters()), target
    assert counts["1"] == counts["target"]
    assert counts["1"]["macs"] < counts["2"]["macs"] < counts["3"]["macs"] < counts["ensemble"]["macs"] < counts["fused"]["macs"]
    assert all(c["macs_dbfskd"] > c["macs"] > 0 for c in counts.values())
