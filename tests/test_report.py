"""The report of a run: its page as a reader and as a real browser see it, and what it says where something is missing."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdzoo.cli import main
from kdzoo.errors import EnvironmentProblem, IntegrityError, OutputError, UsageError
from kdzoo.tests.browser import CHROMIUM, Browser
from kdzoo.tests.page import SECTIONS, check_page
from kdzoo.train.report import pictures
from kdzoo.train.report.build import Images, Report, build_report
from kdzoo.train.report.facts import read_run
from kdzoo.train.report.feature_sections import tsne_section
from kdzoo.train.report.gradcam import choose_images
from kdzoo.train.report.measures import choose_classes, embed
from kdzoo.train.report.observe import in_memory, observe
from kdzoo.zoo.backbone import BACKBONES
from kdzoo.zoo.checkpoint import SAMPLES, Checkpoint, save_checkpoint
from kdzoo.zoo.datasets import LabelledImages, read_npz
from kdzoo.zoo.files import read_json, write_json
from kdzoo.zoo.manifest import MANIFEST, Manifest
from kdzoo.zoo.method import METHODS
from kdzoo.zoo.preprocess import Preprocess

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CLASSES = ("apple & pear", "boat", "cat", "dog")
HOSTILE = "kdzoo train <script>alert(1)</script> --set 'name=\"x\"'"


@pytest.fixture(scope="module", autouse=True)
def coarse() -> Iterator[None]:
    """Pictures of few pixels, which are drawn faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "DOTS_PER_INCH", 60)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 test images of four classes."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    images = (60 * labels[:, None, None, None] + draw.integers(0, 70, (48, 32, 32, 3))).astype(np.uint8)
    path = tmp_path_factory.mktemp("report-data") / "toys.npz"
    np.savez(path, test_images=images, test_labels=labels, classes=np.array(CLASSES))
    return path


def write_run(folder: Path, data: Path, preprocess: Preprocess, method: str, *, samples: int = 64, **changes: Any) -> Checkpoint:
    """A run of an untrained network with a log of three epochs, two of them evaluated."""
    torch.manual_seed(0)
    configured = METHODS.get(method).from_mapping(changes)
    network = configured.build(BACKBONES.get("resnet8")(), len(CLASSES)).eval()
    records: list[dict[str, Any]] = []
    for epoch in (1, 2, 3):
        metrics = {t: {"top1": 40.0 + epoch + i, "n": 48, "split": "test"} for i, t in enumerate(network.targets())}
        apart = [[0.01 * epoch * abs(i - j) for j in range(len(network.branches))] for i in range(len(network.branches))]
        tested = {"metrics": metrics, "distances": apart if len(apart) > 1 else []} if epoch != 2 else {"metrics": {}}
        records.append({"epoch": epoch, "losses": {"ce": 2.0 / epoch, "kl": 0.01 * epoch}, **tested})
    manifest = Manifest(
        f"{method}-resnet8-toys", method, configured.settings(), "resnet8", "toys", CLASSES, preprocess,
        {"epochs": 4, "seed": 7, "method_config": changes}, 3, metrics=records[-1]["metrics"],
        provenance={"command": HOSTILE, "git_commit": "abc123", "host": "a host", "versions": {"torch": "2"}},
    )  # fmt: skip
    checkpoint = save_checkpoint(folder / "checkpoint", network, manifest, read_npz(data, "test").head(samples))
    (folder / "recipe.yaml").write_text("method: any\n")
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Checkpoint:
    folder = tmp_path_factory.mktemp("report") / "whole"
    return write_run(folder, data, Preprocess(32, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), "ahbf", num_branches=2, aux=1)


@pytest.fixture(scope="module")
def report(whole: Checkpoint, data: Path) -> Report:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    return build_report(whole, Images(read_npz(data, "test"), "the 48 test images of toys"), samples=2000)


def test_the_page_is_well_formed_and_needs_nothing_else(report: Report) -> None:
    page = check_page(report.html)
    assert report.sections == dict.fromkeys(SECTIONS, "drawn")
    dark = page.attributes("source")
    assert dark and all(source["media"] == "(prefers-color-scheme: dark)" for source in dark)
    words = page.words()
    assert HOSTILE in words, "what the user typed is not shown as it was typed"
    for fact in ("ahbf-resnet8-toys", "resnet8", "toys, 4 classes", "3 of 4", "abc123", "a host", "torch 2", "apple & pear"):
        assert fact in words, fact
    assert "target (= branch 1)" in words and "Left out" not in words


def test_every_picture_says_its_numbers_in_words(report: Report, whole: Checkpoint) -> None:
    alts = " | ".join(image["alt"] for image in check_page(report.html).attributes("img"))
    counts = read_run(whole, whole.network()).targets
    assert f"1 (target): {counts['1']['params'] / 1e3:.3g} thousands, 44.00 %" in alts  # the second target, after epoch 3
    assert "At the last epoch ce: 0.667; kl: 0.03." in alts
    assert "one line per pair. At the last evaluation 1-2: 0.030." in alts
    assert "t-SNE of branch 2: 48 images of 4 classes, apple & pear, boat, cat, dog." in alts
    assert "Correlation matrix of the 64 channels of branch 1 (target)" in alts


def test_grad_cam_names_the_class_and_whether_it_is_right(report: Report, whole: Checkpoint, data: Path) -> None:
    split = read_npz(data, "test")
    seen = observe(whole.network(), split, whole.manifest.preprocess, CPU).predicted()
    chosen = choose_images(seen, split.labels.tolist(), 6)
    page = check_page(report.html)
    alts = [image["alt"] for image in page.attributes("img") if "Grad-CAM" in image["alt"]]
    assert len(alts) == 2 * len(chosen) == 12
    for number, image in enumerate(chosen):
        truth = CLASSES[split.labels[image]]
        for branch, alt in enumerate(alts[2 * number : 2 * number + 2]):
            said = CLASSES[seen[branch][image]]
            mark = "right" if said == truth else "wrong"
            assert alt.endswith(f"test image {image}: predicts {said}, {mark}; the class is {truth}")
    words = page.words()
    assert words.count("✓ right") + words.count("✗ wrong") == 12
    assert "mixes logits of the branches" in words


def test_the_command_writes_the_same_page_again(
    report: Report, whole: Checkpoint, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also: where the page goes, what `--json` says, and that a page is not overwritten unasked."""
    run = whole.folder.parent
    main(["report", str(run), "--data", str(data), "--json", "--device", "cpu"])
    document = json.loads(capfd.readouterr().out)
    page = run / "report.html"
    assert page.read_text() == report.html, "the same run gives another page"
    assert document["report"] == str(page) and document["bytes"] == page.stat().st_size
    assert document["sections"] == report.sections and document["images"] == "the 48 test images of toys"
    with pytest.raises(SystemExit) as refused:
        main(["report", str(run), "--data", str(data)])
    assert refused.value.code == OutputError.exit_code and "--force" in capfd.readouterr().err
    page.unlink()
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint", "log.jsonl", "recipe.yaml"]


def test_a_single_branch_without_the_data_set_is_drawn_from_the_images_that_travel_with_it(
    tmp_path: Path, data: Path, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "run", data, preprocess, "baseline", samples=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDZOO_DATA", raising=False)
    page = tmp_path / "page.html"
    page.write_text("an older page")
    main(["report", "run", "--output", "page.html", "--force", "--json"])
    states = json.loads(capfd.readouterr().out)["sections"]
    words = check_page(page.read_text()).words()
    assert {key for key, state in states.items() if state != "drawn"} == {"distance", "tsne"}
    assert "Left out: this network has one branch" in words
    assert "there are only the 8 test images that travel with the checkpoint" in words
    assert "With 8 images an |r| below 0.71" in words
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_run_without_log_images_and_metrics_says_what_is_missing(tmp_path: Path, data: Path, preprocess: Preprocess) -> None:
    write_run(tmp_path, data, preprocess, "ahbf", num_branches=2, aux=1)
    (tmp_path / "log.jsonl").unlink()
    folder = tmp_path / "checkpoint"
    manifest = read_json(folder / MANIFEST)
    manifest["metrics"] = {}
    write_json(folder / MANIFEST, manifest)
    found = build_report(Checkpoint.open(tmp_path), Images(None, "no images at hand"))
    page = check_page(found.html)
    assert "drawn" not in found.sections.values() and page.attributes("img") == []
    words = page.words()
    assert words.count("Left out:") == 6 and words.count("no images at hand") >= 4
    assert "not been evaluated yet" in words and "(log.jsonl)" in words


def test_a_log_without_distances_gives_the_matrix_of_the_checkpoint_and_says_so(
    tmp_path: Path, data: Path, preprocess: Preprocess
) -> None:
    pytest.importorskip("matplotlib")
    checkpoint = write_run(tmp_path, data, preprocess, "ahbf", num_branches=2, aux=1)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    old = [{k: v for k, v in record.items() if k != "distances"} for record in records]
    ahead = {**old[-1], "epoch": 4, "losses": {"ce": 99.0}}  # written by a process that died before its checkpoint
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (*old, ahead)))
    split = read_npz(data, "test").head(12)
    page = check_page(build_report(checkpoint, Images(split, "the 12 images")).html)
    apart = observe(checkpoint.network(), split, preprocess, CPU).distances()[0, 1]
    alts = " ".join(image["alt"] for image in page.attributes("img"))
    assert f"mean distance between every two branches. 1-2: {apart:.3f}." in alts and "one line per pair" not in alts
    assert "holds no distances" in page.words() and "99" not in alts
    (tmp_path / "log.jsonl").write_text('{"epoch": 1\n')
    with pytest.raises(IntegrityError, match="not the log of a run"):
        build_report(checkpoint, Images(None, "none"))


def test_images_of_other_classes_are_refused(whole: Checkpoint, tiny_data: LabelledImages) -> None:
    with pytest.raises(UsageError, match="not the 4 of the network"):
        build_report(whole, Images(tiny_data, "other images"))


def test_a_checkpoint_without_travelling_images_still_gets_a_page(
    tmp_path: Path, data: Path, preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path, data, preprocess, "baseline")
    manifest = read_json(tmp_path / "checkpoint" / MANIFEST)
    del manifest["files"][SAMPLES]
    write_json(tmp_path / "checkpoint" / MANIFEST, manifest)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDZOO_DATA", raising=False)
    main(["report", str(tmp_path), "--json"])
    states = json.loads(capfd.readouterr().out)["sections"]
    assert states["accuracy"] == states["curves"] == "drawn" and "none travel with this checkpoint" in states["gradcam"]


def hide(patch: pytest.MonkeyPatch, library: str) -> None:
    """Let every import of `library` fail."""
    for name in [library, *(n for n in sys.modules if n.startswith(f"{library}."))]:
        patch.setitem(sys.modules, name, None)


def test_a_page_without_matplotlib_is_refused_with_the_line_that_installs_it(
    whole: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "matplotlib")
    with pytest.raises(EnvironmentProblem, match="need matplotlib") as missing:
        build_report(whole, Images(None, "no images"))
    assert missing.value.hint.startswith("pip install matplotlib")


def test_without_scikit_learn_only_t_sne_is_left_out(whole: Checkpoint, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "sklearn")
    with pytest.raises(EnvironmentProblem) as missing:
        embed(np.zeros((9, 2), np.float32), 0)
    assert missing.value.hint == "pip install scikit-learn"
    network, split = whole.network(), read_npz(data, "test")
    choice = choose_classes(split.labels)
    seen = observe(network, in_memory(split, choice.images), whole.manifest.preprocess, CPU)
    section = tsne_section(read_run(whole, network), seen, choice, "the images", seed=0)
    assert "pip install scikit-learn" in section.missing and not section.pictures


def test_no_module_of_the_report_imports_a_drawing_library_at_its_top() -> None:
    folder = Path(__file__).parent.parent / "train" / "report"
    modules = list(folder.glob("*.py"))
    assert modules, f"there are no modules in {folder}"
    for path in modules:
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not {n.split(".")[0] for n in names} & {"matplotlib", "sklearn", "PIL"}, path.name


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
@pytest.mark.parametrize(("width", "dark"), [(700, False), (700, True), (380, False)])
def test_a_real_browser_shows_every_picture_and_asks_for_nothing(report: Report, tmp_path: Path, width: int, dark: bool) -> None:
    path = tmp_path / "report.html"
    path.write_text(report.html)
    with Browser() as browser:
        browser.open(path, width=width, dark=dark)
        assert browser.value("Promise.all([...document.images].map(i => i.decode())).then(() => document.images.length)") > 20
        assert browser.value("[...document.images].filter(i => !(i.naturalWidth > 0)).map(i => i.alt)") == []
        problems = browser.seen("Log.entryAdded", "Network.loadingFailed", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        assert problems == []
        asked = {event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")}
        assert {url for url in asked if not url.startswith("data:")} == {path.resolve().as_uri()}
        assert browser.value("document.documentElement.scrollWidth") == width, "the page is wider than the screen"
        dark_ones = "[...document.querySelectorAll('picture')].filter(p => p.children[1].currentSrc == p.children[0].srcset).length"
        assert browser.value(dark_ones) == (browser.value("document.querySelectorAll('picture').length") if dark else 0)
        paper = browser.value("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(28, 32, 38)" if dark else "rgb(255, 255, 255)")
