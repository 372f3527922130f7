"""Images that a run never trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdzoo.errors import DataError
from kdzoo.tests.small_runs import recipe_for, train
from kdzoo.zoo.datasets import held_out, read_npz


def test_every_class_gives_its_share_and_no_image_is_on_both_sides(colours: Path) -> None:
    data = read_npz(colours, "train")
    rest, held = held_out(data, 16)
    assert len(held) == 16 and len(rest) == len(data) - 16
    assert np.bincount(held.labels).tolist() == [2] * len(data.classes)
    images = [image.tobytes() for image in np.concatenate([rest.images, held.images])]
    assert sorted(images) == sorted(image.tobytes() for image in data.images)


def test_a_run_learns_only_from_the_other_images(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def make_batches(data, *arguments, **options):  # type: ignore[no-untyped-def]
        seen.append(data)
        return real(data, *arguments, **options)

    import kdzoo.train.run as module

    real = module.make_batches
    monkeypatch.setattr(module, "make_batches", make_batches)
    result = train(recipe_for(method="baseline", epochs=1, holdout=16), colours, tmp_path / "run")
    rest, held = held_out(read_npz(colours, "train"), 16)
    assert result.finished and np.array_equal(seen[0].images, rest.images) and len(held) == 16


def test_nothing_left_to_train_on_is_an_error(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be held out"):
        train(recipe_for(method="baseline", holdout=10**6), colours, tmp_path / "run")
