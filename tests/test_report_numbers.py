"""The numbers behind the pictures of a report, against mathematics written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdzoo.train.evaluate import evaluate
from kdzoo.train.report.gradcam import choose_images, columns, explain, heat
from kdzoo.train.report.measures import channel_correlation, choose_classes, embed, mean_strength, spread
from kdzoo.train.report.observe import in_memory, observe
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.datasets import LabelledImages, open_split
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.network import IMAGE, MultiBranch
from kdzoo.zoo.preprocess import Preprocess

MakeNetwork = Callable[..., MultiBranch]
CPU = torch.device("cpu")


@pytest.mark.parametrize("pooled", [True, False])
def test_grad_cam_is_the_papers_sum_where_the_gradient_is_known(pooled: bool) -> None:
    """A linear classifier: the gradient of a logit is a row of its weights, for pooled maps divided by the number of places."""
    torch.manual_seed(0)
    network = MultiBranch()
    features = network.add("body", nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4)), IMAGE)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)] if pooled else [nn.Flatten(), nn.Linear(4 * 2 * 3, 5)]
    network.add_branch(features, nn.Sequential(*head))
    images = torch.randn(3, 3, 8, 12)
    (found,) = explain(network.eval().requires_grad_(False), images, columns(network, ["1"]))

    map_BChw = network["body"](images).numpy().astype(np.float64)
    weight, bias = (p.numpy().astype(np.float64) for p in head[-1].parameters())
    values = map_BChw.mean(axis=(2, 3)) if pooled else map_BChw.reshape(3, -1)
    logits = values @ weight.T + bias
    assert found.predicted == logits.argmax(axis=1).tolist()
    for image, predicted in enumerate(found.predicted):
        row = weight[predicted]
        alpha = row / 6 if pooled else row.reshape(4, 2, 3).mean(axis=(1, 2))
        expected = np.maximum(sum(alpha[k] * map_BChw[image, k] for k in range(4)), 0)
        np.testing.assert_allclose(found.cam[image].numpy(), expected, rtol=1e-4, atol=1e-6)
        exponentials = np.exp(logits[image] - logits[image].max())
        assert math.isclose(found.confidence[image], exponentials[predicted] / exponentials.sum(), rel_tol=1e-5)


def test_heat_is_scaled_by_image_and_an_empty_map_stays_empty() -> None:
    cam = torch.tensor([[[0.0, 2.0], [1.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1e-3], [0.0, 0.0]]])
    hot = heat(cam, 4, 4)
    assert hot.shape == (3, 4, 4) and hot.isfinite().all()
    assert hot[0].max() == hot[2].max() == 1 and hot[0, 3, 3] == 1 and not hot[1].any()
    assert torch.allclose(hot[0, 0], torch.tensor([0.0, 0.125, 0.375, 0.5])), "not bilinear between the centres of the points"


@pytest.mark.parametrize(
    ("method", "config", "expected"),
    [
        ("baseline", {}, ["branch a"]),
        ("ahbf", {"num_branches": 2}, ["branch a", "branch b"]),  # its fused logits are mixed by a gate
        ("ffl", {}, ["branch a", "branch b", "fused"]),  # fuses maps
        ("dbfskd", {}, ["branch a", "branch b", "branch c", "branch d"]),  # the fused classifier is branch d
    ],
)
def test_every_classifier_that_has_a_map_gets_one_column(
    make_network: MakeNetwork, method: str, config: dict[str, Any], expected: list[str]
) -> None:
    network = make_network(method, **config)
    wanted = columns(network, list("abcd")[: len(network.branches)])
    assert [column.name for column in wanted] == expected
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = explain(network, torch.randn(2, 3, 32, 32), wanted)
    assert [e.name for e in found] == expected and all(e.cam.shape == (2, 8, 8) and (e.cam >= 0).all() for e in found)
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_images_to_explain_are_chosen_by_rule() -> None:
    labels = [0, 1, 2, 3, 4, 5]
    first, second = [0, 1, 9, 9, 4, 5], [0, 9, 9, 9, 4, 9]  # right by both: 0, 4; by one: 1, 5; by none: 2, 3
    assert choose_images([first, second], labels, 3) == [0, 1, 2]
    assert choose_images([first, second], labels, 5) == [0, 1, 2, 4, 5]
    assert choose_images([first, second], labels, 50) == labels
    assert choose_images([labels], labels, 2) == [0, 1]


def test_channel_correlation_is_pearsons_formula() -> None:
    draw = np.random.default_rng(0)
    pooled = draw.normal(size=(50, 4)).astype(np.float32)
    pooled[:, 1] = -3 * pooled[:, 0] + 1
    pooled[:, 3] = 0.25  # a channel that never changes
    found = channel_correlation(pooled)
    x = pooled.astype(np.float64) - pooled.astype(np.float64).mean(axis=0)
    for i in range(3):
        for j in range(3):
            expected = (x[:, i] * x[:, j]).sum() / math.sqrt((x[:, i] ** 2).sum() * (x[:, j] ** 2).sum())
            assert math.isclose(found[i, j], expected, abs_tol=1e-12)
    assert found[0, 1] == pytest.approx(-1, abs=1e-6)
    assert np.isnan(found[3]).all() and np.isnan(found[:, 3]).all()
    assert mean_strength(found) == pytest.approx((abs(found[0, 1]) + abs(found[0, 2]) + abs(found[1, 2])) / 3)
    assert mean_strength(found[3:, 3:]) is None


def test_distances_between_branches_are_those_of_the_log(tiny_data: LabelledImages, preprocess: Preprocess) -> None:
    torch.manual_seed(0)
    network = METHODS.get("ahbf").from_mapping({"num_branches": 3}).build(BACKBONES.get("resnet8")(), 4).eval()
    found = observe(network, tiny_data, preprocess, CPU, batch_size=5)
    expected = [
        [sum(math.dist(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)) / len(tiny_data) for q in found.probabilities]
        for p in found.probabilities
    ]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found.distances(), expected, rtol=1e-5, atol=1e-7)
    logged = evaluate(network, tiny_data, preprocess, ["target"], device=CPU, split="test").distances
    np.testing.assert_allclose(found.distances(), logged, rtol=1e-5, atol=1e-7)


def test_images_are_spread_over_a_split_that_is_sorted_by_class() -> None:
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(3, 5).tolist() == [0, 1, 2] and spread(0, 5).tolist() == []


def test_classes_for_t_sne_are_taken_evenly_and_poor_ones_left_out() -> None:
    rich = choose_classes(np.repeat(np.arange(40), 6), num_classes=4, per_class=5, at_least=3)
    assert rich.classes == (0, 10, 20, 30)
    assert rich.images.tolist()[:6] == [0, 1, 2, 3, 4, 60] and rich.groups.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    poor = choose_classes(np.array([0] * 3 + [1] * 12 + [2] * 9 + [3] * 11), num_classes=3, per_class=50, at_least=10)
    assert poor.classes == (1, 3) and len(poor.images) == 23
    assert choose_classes(np.arange(64)).classes == () and len(choose_classes(np.arange(64)).images) == 0


def test_t_sne_keeps_neighbours_together_and_repeats_itself() -> None:
    pytest.importorskip("sklearn", reason="t-SNE needs scikit-learn: pip install scikit-learn")
    draw = np.random.default_rng(0)
    cloud = np.concatenate([draw.normal(size=(20, 8)), draw.normal(size=(20, 8)) + 20]).astype(np.float32)
    points = embed(cloud, seed=0)
    assert np.array_equal(points, embed(cloud, seed=0))
    nearest = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(40)
    assert (nearest.argmin(axis=1) // 20).tolist() == [0] * 20 + [1] * 20


def test_labels_of_points_do_not_cover_each_other() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from kdzoo.train.report.pictures import label_points

    figure = Figure(figsize=(3.4, 2.9), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points = [(1.0, 50.0), (1.01, 50.02), (1.0, 50.05), (2.0, 60.0)]
    axes.plot(*zip(*points, strict=True), "o")
    label_points(figure, axes, points, ["ensemble", "fused", "3 (target)", "4"])
    figure.draw_without_rendering()
    assert [text.get_text() for text in axes.texts] == ["ensemble", "fused", "3 (target)", "4"]
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the point
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :]), axes.texts[i].get_text()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_pictures_that_stay_encoded_are_decoded_when_they_are_looked_at(tmp_path: Path, preprocess: Preprocess) -> None:
    for number in range(4):
        folder = tmp_path / "test" / "ab"[number // 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (60 * number, 0, 0)).save(folder / f"{number}.png")
    taken = in_memory(open_split(tmp_path, "test", preprocess, lazy=True), np.array([1, 3]))
    assert taken.images[:, 0, 0, 0].tolist() == [60, 180] and taken.labels.tolist() == [0, 1]
