"""What a repository says of itself is checked before it is used: a broken manifest is told, and is no crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdzoo.errors import IntegrityError
from kdzoo.export import pull
from kdzoo.export.package import Package
from kdzoo.zoo.files import write_json
from kdzoo.zoo.reference import Reference

Publish = Callable[[dict[str, Any]], Reference]


@pytest.fixture
def publish(package_copy: Package, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Gives a repository another manifest."""

    def fetch(name: str, facts: dict[str, Any] | None = None) -> Path:
        return package_copy.folder / name

    def change(manifest: dict[str, Any]) -> Reference:
        write_json(package_copy.folder / "manifest.json", manifest)
        return Reference.parse("org/name")

    revision = SimpleNamespace(folder=package_copy.folder, commit="a" * 40, fetch=fetch)
    monkeypatch.setattr(pull, "open_revision", lambda *words: revision)
    return change


def test_what_is_whole_is_described(publish: Publish, package_copy: Package) -> None:
    (found,) = pull.described(publish(package_copy.document)).values()
    assert found.document == package_copy.document


@pytest.mark.parametrize("targets", [{}, {"targets": None}, {"targets": ["1"]}])
def test_a_collection_that_names_no_packages_is_refused(publish: Publish, targets: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="does not say which packages it holds"):
        pull.described(publish({"schema_version": 1, "kind": "collection", "files": {}, **targets}))


def test_a_package_without_figures_is_refused(publish: Publish, package_copy: Package) -> None:
    files = {name: facts for name, facts in package_copy.document["files"].items() if name != "metrics.json"}
    with pytest.raises(IntegrityError, match=r"lists no metrics\.json"):
        pull.described(publish({**package_copy.document, "files": files}))
