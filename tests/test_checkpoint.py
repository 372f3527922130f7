"""A checkpoint is whole or absent, is read back bit for bit, and every damage to it is noticed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdzoo.errors import EnvironmentProblem, IntegrityError, UsageError
from kdzoo.tests.small_packages import names
from kdzoo.zoo.checkpoint import SAMPLES, TRAINING_TENSORS, WEIGHTS, Checkpoint, TrainingState, load_weights, save_checkpoint
from kdzoo.zoo.datasets import LabelledImages
from kdzoo.zoo.files import read_json, write_bytes, write_json
from kdzoo.zoo.manifest import MANIFEST, SCHEMA_VERSION, Manifest
from kdzoo.zoo.network import MultiBranch
from kdzoo.zoo.preprocess import Preprocess

MakeNetwork = Callable[..., MultiBranch]
SETTINGS = {"aux": 1, "num_branches": 2}


@pytest.fixture(scope="module")
def network(make_network: MakeNetwork) -> MultiBranch:
    return make_network("ahbf", "resnet20", **SETTINGS)


@pytest.fixture(scope="module")
def manifest(preprocess: Preprocess) -> Manifest:
    return Manifest(
        entry="ahbf-resnet20-tiny",
        method="ahbf",
        method_config=SETTINGS,
        backbone="resnet20",
        dataset="tiny",
        classes=("a", "b", "c", "d", "ë"),
        preprocess=preprocess,
        recipe={"seed": 3, "optimizer": {"lr": 0.1}},
        epochs=2,
        metrics={"target": {"top1": 12.5, "n": 8, "split": "test"}},
        provenance={"command": "kdzoo train"},
    )


Save = Callable[..., Checkpoint]


@pytest.fixture
def save(tmp_path: Path, network: MultiBranch, manifest: Manifest, tiny_data: LabelledImages) -> Save:
    """Saves the network in `tmp_path/c`."""

    def save(training: TrainingState | None = None, **changes: Any) -> Checkpoint:
        return save_checkpoint(tmp_path / "c", network, replace(manifest, **changes), tiny_data, training)

    return save


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_network_is_read_back(dtype: str, save: Save, network: MultiBranch, tmp_path: Path) -> None:
    size = (save(weights_dtype=dtype).folder / WEIGHTS).stat().st_size
    assert size < 4.2 * sum(p.numel() for p in network.parameters()) * (0.6 if dtype == "float16" else 1) + 50_000
    again = Checkpoint.open(tmp_path / "c").network()

    def stored(tensor: Tensor) -> Tensor:
        return tensor.half().float() if dtype == "float16" and tensor.ndim >= 2 else tensor

    expected, found = network.state_dict(), again.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], stored(tensor)), name
    assert not any(m.training for m in again.modules()) and all(p.requires_grad for p in again.parameters())
    if dtype == "float32":
        image = torch.randn(2, 3, 16, 16)
        assert torch.equal(torch.stack(again(image).logits), torch.stack(network(image).logits))
    assert names(tmp_path) == ["c"], "something was left beside the checkpoint"


def test_a_manifest_is_read_back(save: Save, manifest: Manifest, tmp_path: Path) -> None:
    save()
    found = Checkpoint.open(tmp_path / "c").manifest
    assert replace(found, files={}) == manifest
    assert sorted(found.files) == sorted(set(names(tmp_path / "c")) - {MANIFEST})
    assert Preprocess.from_dict(json.loads(json.dumps(manifest.preprocess.to_dict()))) == manifest.preprocess


def test_samples_and_the_training_state_are_read_back(save: Save, tiny_data: LabelledImages, manifest: Manifest) -> None:
    tensors = {"momentum.0": torch.randn(3, 2), "rng": torch.get_rng_state()}
    checkpoint = save(TrainingState(tensors, {"epoch": 2, "step": 7}))
    samples, state = checkpoint.samples(), checkpoint.training_state()
    assert np.array_equal(samples.images, tiny_data.images) and np.array_equal(samples.labels, tiny_data.labels)
    assert samples.classes == manifest.classes
    assert state.values == {"epoch": 2, "step": 7}
    assert all(torch.equal(state.tensors[n], t) for n, t in tensors.items())


def test_a_run_is_as_good_as_its_checkpoint(save: Save, tmp_path: Path) -> None:
    save()
    (tmp_path / "run").mkdir()
    (tmp_path / "c").rename(tmp_path / "run" / "checkpoint")
    assert Checkpoint.open(tmp_path / "run").folder == tmp_path / "run" / "checkpoint"
    with pytest.raises(UsageError, match="no training state"):
        Checkpoint.open(tmp_path / "run").training_state()


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="holds no checkpoint"):
            Checkpoint.open(folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "what"), [(truncate, "bytes"), (flip, "sha256"), (Path.unlink, "missing")])
@pytest.mark.parametrize(
    ("file", "use"),
    [
        (WEIGHTS, Checkpoint.network),
        (WEIGHTS, Checkpoint.verify),
        (SAMPLES, Checkpoint.samples),
        (TRAINING_TENSORS, Checkpoint.training_state),
    ],
)
def test_a_damaged_file_is_noticed_before_it_is_used(
    file: str, use: Callable[[Checkpoint], object], damage: Callable[[Path], object], what: str, save: Save
) -> None:
    checkpoint = save(TrainingState({"t": torch.zeros(99)}, {}))
    damage(checkpoint.folder / file)
    with pytest.raises(IntegrityError, match=what):
        use(checkpoint)


@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b"\xff" * 64), lambda path: path.write_bytes(b"")])
def test_weights_without_a_manifest_are_checked_too(damage: Callable[[Path], object], save: Save) -> None:
    """`load_weights` alone, as for a file whose sha256 is what a wrong manifest says."""
    checkpoint = save()
    network = checkpoint.network()
    damage(checkpoint.folder / WEIGHTS)
    with pytest.raises(IntegrityError, match="does not hold the weights"):
        load_weights(network, checkpoint.folder / WEIGHTS)
    with pytest.raises(IntegrityError, match="does not hold the weights"):
        load_weights(nn.Linear(2, 2), save().folder / WEIGHTS)


def test_a_manifest_that_is_newer_asks_for_a_newer_kdzoo(save: Save, tmp_path: Path) -> None:
    path = save().folder / MANIFEST
    path.write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1, "kind": "checkpoint"}))
    with pytest.raises(EnvironmentProblem, match="schema version") as caught:
        Checkpoint.open(tmp_path / "c")
    assert "upgrade" in caught.value.hint


GARBAGE: list[bytes | dict[str, Any]] = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b'{"schema_version": "1"}',
    b'{"schema_version": 1, "kind": "checkpoint"}',
    {"kind": "package"},
    {"classes": 5},
    {"classes": None},
    {"files": []},
    {"method": None},
    {"method_config": "aux"},
    {"preprocess": {}},
    {"preprocess": {"height": 32, "width": 32, "mean": [0, 0, 0], "std": [1, 1, 0]}},
    {"preprocess": {"height": 32, "width": 32, "mean": [0, 0], "std": [1, 1, 1]}},
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_a_corrupt_manifest_is_refused(garbage: bytes | dict[str, Any], save: Save, tmp_path: Path) -> None:
    path = save().folder / MANIFEST
    path.write_bytes(garbage if isinstance(garbage, bytes) else json.dumps({**read_json(path), **garbage}).encode())
    with pytest.raises(IntegrityError):
        Checkpoint.open(tmp_path / "c")


def test_weights_that_the_manifest_does_not_name_are_refused(save: Save, tmp_path: Path) -> None:
    path = save().folder / MANIFEST
    write_json(path, {**read_json(path), "files": {}})
    for use in (Checkpoint.network, Checkpoint.samples):
        with pytest.raises(IntegrityError, match="missing in its manifest"):
            use(Checkpoint.open(tmp_path / "c"))


def test_a_checkpoint_is_found_after_a_kill_between_the_renames(save: Save, tmp_path: Path) -> None:
    save().folder.rename(tmp_path / ".c.old")
    Checkpoint.open(tmp_path / "c").verify()


@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize(("module", "name"), [(Path, "write_bytes"), (np, "savez_compressed"), (os, "fsync")])
def test_a_full_disk_leaves_nothing_behind(
    module: Any, name: str, previous: bool, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if previous:
        save()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(EnvironmentProblem, match="disk is full"):
            save(epochs=3)
        with pytest.raises(EnvironmentProblem, match="disk is full"):
            write_bytes(tmp_path / "single", b"x") if name != "savez_compressed" else save(epochs=3)
    assert names(tmp_path) == (["c"] if previous else [])
    if previous:
        checkpoint = Checkpoint.open(tmp_path / "c")
        checkpoint.verify()
        assert checkpoint.manifest.epochs == 2
