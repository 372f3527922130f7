"""What is deployed is what was measured: the figures follow from the metrics, every file is one that its reader takes, and they all
start the same server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdzoo.cli.serve import command as serve
from kdzoo.errors import OutputError, UsageError
from kdzoo.export.package import Package
from kdzoo.serve.deploy import memory, resources
from kdzoo.serve.deploy.docker import NEEDS
from kdzoo.serve.deploy.files import KINDS, Deployment, write_deployment
from kdzoo.serve.deploy.kserve import service_name
from kdzoo.serve.deploy.resources import Resources, derive
from kdzoo.serve.deploy.systemd import quoted
from kdzoo.serve.settings import BODIES
from kdzoo.zoo.files import read_json, sha256, write_json

ROOT = Path(__file__).resolve().parent.parent
PEAK = 100 * 2**20
PackageOf = Callable[[str], Package]


@pytest.fixture
def known_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "peak_memory", lambda packages, threads, max_batch: PEAK)


def timed(package: Package, images_per_s: float, threads: int | None) -> Package:
    """The same package that says it was so fast."""
    folder = package.folder
    metrics, manifest = read_json(folder / "metrics.json"), read_json(folder / "manifest.json")
    for measured in metrics["artifacts"].values():
        measured["latency"] = [{**measured["latency"][0], "images_per_s": images_per_s, "threads": threads}]
    write_json(folder / "metrics.json", metrics)
    manifest["files"]["metrics.json"] = {
        "bytes": (folder / "metrics.json").stat().st_size,
        "sha256": sha256(folder / "metrics.json"),
    }
    write_json(folder / "manifest.json", manifest)
    return Package.open(folder)


@pytest.fixture
def second(package_of: PackageOf, tmp_path: Path) -> Package:
    """A package of another branch, as far as its manifest says."""
    folder = shutil.copytree(package_of("1").folder, tmp_path / "second")
    write_json(folder / "manifest.json", {**read_json(folder / "manifest.json"), "target": "2"})
    return Package.open(folder)


@pytest.fixture
def figures(package_copy: Package, known_memory: None) -> Resources:
    return derive([timed(package_copy, 1000.0, 2)], rate=1000.0, max_batch=16)


@pytest.fixture
def written(package_of: PackageOf, second: Package, figures: Resources, tmp_path: Path) -> Deployment:
    return write_deployment([package_of("1"), second], tmp_path / "out", KINDS, figures, image="registry/kdzoo:1")


def test_figures_follow_from_what_was_measured(figures: Resources) -> None:
    # 1,000 images/s with 2 threads are 500 of a core, of which a server leaves 0.8: 1,000 requests/s take 2.5 threads.
    assert (figures.threads, figures.requests_per_s, figures.concurrency) == (3, pytest.approx(1200), 60)
    # 8 bodies of 8 MiB, four times; one of JSON, 26 times; a picture of 16 million pixels for each of 3 threads.
    least = 1.5 * 100 + 8 * 8 * 4 + 8 * 26 + 3 * 16e6 * 6 / 2**20
    assert figures.memory_request == 128 and least < figures.memory_limit < least + 2 * 64
    assert any("0.8" in reason and "500 images/s of a core" in reason for reason in figures.reasons)


def test_the_slowest_package_counts(second: Package, package_copy: Package, known_memory: None) -> None:
    found = derive([second, timed(package_copy, 10.0, 1)], threads=4)
    assert (found.slowest.name, found.requests_per_s) == (package_copy.name, pytest.approx(32))
    assert found.concurrency == 8, "fewer than two for each thread leave threads idle"


def test_a_batch_of_large_images_fits_into_a_body(figures: Resources) -> None:
    large = replace(figures, files=(replace(figures.files[0], image_bytes=4 * 3 * 224 * 224),), max_batch=32)
    assert large.max_body * 2**20 > 32 * 4 * 3 * 224 * 224 and large.memory_limit > figures.memory_limit


def test_a_package_that_was_never_timed_is_told(package_copy: Package, known_memory: None) -> None:
    with pytest.raises(UsageError, match="was not timed on a processor"):
        derive([timed(package_copy, 10.0, None)])


def test_the_memory_of_a_server_is_measured_without_torch(package_of: PackageOf) -> None:
    peak = memory.peak_memory([package_of("1")], 2, 8)
    assert 30 * 2**20 < peak < 250 * 2**20, f"{peak / 2**20:.0f} MiB: does it load torch?"


def test_the_inference_service_is_what_kserve_takes(written: Deployment, figures: Resources) -> None:
    text = (written.folder / "kserve.yaml").read_text()
    assert all(f"# {reason}" in text for reason in figures.reasons), "where the figures come from"
    service = yaml.safe_load(text)
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])
    predictor = service["spec"]["predictor"]
    assert predictor["containerConcurrency"] == figures.concurrency >= predictor["scaleTarget"] > 0
    assert predictor["minReplicas"] <= predictor["maxReplicas"]
    (container,) = predictor["containers"]
    assert (container["name"], container["image"]) == ("kserve-container", "registry/kdzoo:1")
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
    options = parsed(container["args"])
    assert [port["containerPort"] for port in container["ports"]] == [8000], "Knative takes one port"
    assert container["resources"]["requests"] == {"cpu": "3", "memory": "128Mi"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8000}
    assert container["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": 8000}
    security = container["securityContext"]
    assert security["runAsNonRoot"] and security["runAsUser"] >= 10000 and security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"] and security["capabilities"] == {"drop": ["ALL"]}
    assert predictor["timeout"] >= options["grace"] + 10, "Knative gives a pod as long to end as a request may take"
    assert f"terminationGracePeriodSeconds: {options['grace'] + 15:.0f}" in text, "elsewhere Kubernetes kills after 30 seconds"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"tmp": "/tmp"} and "emptyDir" in predictor["volumes"][0], "the one place that the server writes to"
    size = int(predictor["volumes"][0]["emptyDir"]["sizeLimit"].removesuffix("Mi"))
    assert size > BODIES * options["max_body"], "files of forms lie there; a pod that needs more is evicted"
    assert options["per_client"] >= 10_000, "behind a proxy all clients have one address"


@pytest.mark.parametrize("entry", ["ahbf-resnet32-cifar100", "dbfskd-resnet18-x0.5-cifar100", "1st", "Über_x" + 60 * "y"])
def test_a_service_gets_a_name_of_dns(entry: str) -> None:
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", service_name(entry))


def instructions(text: str) -> list[tuple[str, str]]:
    """Of a Dockerfile, comments and continued lines undone."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", "")
    return [(words[0], words[1]) for line in lines.splitlines() if line.strip() and (words := line.split(None, 1))]


def test_the_container_is_small_and_runs_without_rights(written: Deployment) -> None:
    text = (written.folder / "Dockerfile").read_text()
    found = instructions(text)
    keys, last = [key for key, _ in found], dict(found)
    assert keys[0] == "FROM" and last["FROM"].endswith("-slim")
    assert int(last["USER"]) >= 10000 and keys.index("USER") > max(k for k, key in enumerate(keys) if key == "RUN")
    assert "--stop-timeout 45" in text, "docker stop kills after 10 seconds, and the grace is 30"
    assert last["STOPSIGNAL"] == "SIGTERM" and last["EXPOSE"].split() == ["8000", "8001"]
    health = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    assert health[:2] == ["python", "-c"], "a slim image has no curl"
    compile(health[2], "health", "exec")
    assert json.loads(last["ENTRYPOINT"]) == ["kdzoo"]
    installs = [line for key, line in found if key == "RUN" and "pip install" in line]
    assert len(installs) == 2 and "--no-deps" in installs[1], "kdzoo's own dependencies bring torch"
    assert "torch" not in (written.folder / "requirements.txt").read_text()
    for key, line in found:
        if key == "COPY":
            assert (written.folder / line.split()[0]).exists(), f"COPY {line}: not in the folder of the build"
            assert f"!{line.split()[0]}" in (written.folder / ".dockerignore").read_text().splitlines()


def test_the_packages_in_the_container_are_whole(written: Deployment) -> None:
    found = [Package.open(folder) for folder in sorted((written.folder / "packages").iterdir())]
    assert [package.document["target"] for package in found] == ["1", "2"]
    assert all(package.verify_files() and not package.unnamed for package in found)


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of `kdzoo serve`; a usage error where it has none of that name."""
    assert words[0] == "serve"
    return serve.make_context("serve", list(words[1:])).params


def test_all_of_them_start_the_same_server(written: Deployment, figures: Resources) -> None:
    container = json.loads(dict(instructions((written.folder / "Dockerfile").read_text()))["CMD"])
    service = yaml.safe_load((written.folder / "kserve.yaml").read_text())["spec"]["predictor"]["containers"][0]["args"]
    unit = shlex.split(unit_of(written)["ExecStart"])
    assert unit[:3] == [sys.executable, "-m", "kdzoo"]
    found = [parsed(words) for words in (container, service, unit[3:])]
    assert found[0]["sources"] == found[1]["sources"]
    for key in ("host", "port", "grpc_port", "threads", "max_batch", "grace", "bound", "max_body", "max_pixels"):
        assert len({each[key] for each in found}) == 1, key
    assert found[0]["per_client"] == found[2]["per_client"] < found[1]["per_client"], "a proxy has one address"
    assert (found[0]["host"], found[0]["threads"], found[0]["max_batch"], found[0]["grace"]) == ("0.0.0.0", 3, 16, 30)


def test_nobody_is_told_of_what_is_served(written: Deployment) -> None:
    for name in ("Dockerfile", "kserve.yaml", "kdzoo.service"):
        assert re.search(r"ORT_DISABLE_TELEMETRY(=|\s+value: ')1", (written.folder / name).read_text()), name


def unit_of(written: Deployment) -> dict[str, str]:
    """The settings of the service, each once."""
    text = (written.folder / "kdzoo.service").read_text().partition("[Service]")[2].partition("[Install]")[0]
    pairs = [line.partition("=")[::2] for line in text.splitlines() if line]
    assert len(dict(pairs)) == len(pairs), "a setting is there twice"
    return dict(pairs)


def test_the_unit_has_no_rights_and_stops_after_the_grace(written: Deployment, figures: Resources) -> None:
    service = unit_of(written)
    assert int(service["TimeoutStopSec"]) >= 30 + 10, "systemd would kill a server that still answers"
    wanted = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "PrivateTmp": "yes", "DynamicUser": "yes"}
    assert wanted.items() <= service.items()
    assert (service["Restart"], service["ExecReload"]) == ("on-failure", "/bin/kill -HUP $MAINPID")
    assert service["MemoryMax"] == f"{figures.memory_limit}M"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_takes_the_unit(written: Deployment) -> None:
    command = ["systemd-analyze", "verify", "--recursive-errors=no", written.folder / "kdzoo.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "kdzoo.service" not in done.stderr, done.stderr


def test_signs_that_systemd_expands_are_quoted() -> None:
    assert [quoted(word) for word in ("/a/b", "a b", "50%", "$x", 'a"b')] == ["/a/b", '"a b"', "50%%", "$$x", '"a\\"b"']


def test_what_the_container_installs_is_what_the_server_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    served = {re.split(r"[<>=\[]", each)[0] for each in extras["serve"]}
    assert served <= set(NEEDS), "pyproject.toml has more in its extra `serve`; serve/deploy/docker.py should, too"


def test_what_runs_the_served_file_is_installed_too(package_of: PackageOf, figures: Resources, tmp_path: Path) -> None:
    other = replace(figures, files=(replace(figures.files[0], runtime="openvino"),))
    written = write_deployment([package_of("1")], tmp_path / "openvino", ["docker"], other)
    assert "openvino" in (written.folder / "requirements.txt").read_text()


def test_a_wheel_goes_into_the_container(package_of: PackageOf, figures: Resources, tmp_path: Path) -> None:
    wheel = tmp_path / "kdzoo-9.9-py3-none-any.whl"
    wheel.write_bytes(b"PK")
    written = write_deployment([package_of("1")], tmp_path / "with", ["docker"], figures, wheel=wheel)
    assert set(written.files) >= {"Dockerfile", wheel.name} and "kserve.yaml" not in written.files
    found = instructions((written.folder / "Dockerfile").read_text())
    assert ("COPY", f"{wheel.name} /tmp/") in found and not [line for key, line in found if key == "ARG"]
    with pytest.raises(UsageError, match="is no wheel"):
        write_deployment([package_of("1")], tmp_path / "without", ["docker"], figures, wheel=tmp_path)


def test_what_stands_there_is_kept(package_of: PackageOf, figures: Resources, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(OutputError, match="not empty"):
        write_deployment([package_of("1")], tmp_path / "mine", KINDS, figures)
    with pytest.raises(UsageError, match="one name"):
        write_deployment([package_of("1"), package_of("1")], tmp_path / "twice", KINDS, figures)
    assert not (tmp_path / "twice").exists()


def test_the_command_line_writes_what_it_is_asked_for(
    call: Callable[..., tuple[str, str]],
    package_of: PackageOf,
    known_memory: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    document = json.loads(call("deploy", package_of("1").folder, "--kserve", "--triton", "models", "--threads", 5, "--json")[0])
    assert document["files"] == ["kserve.yaml"] and (tmp_path / "deploy" / "kserve.yaml").is_file()
    assert document["resources"]["threads"] == 5 and document["resources"]["reasons"]
    assert (tmp_path / "models" / package_of("1").name / "config.pbtxt").is_file()
    for words, told in (([], "--kserve"), (["--triton", "same", "--docker", "-o", "same"], "cannot be both")):
        with pytest.raises(SystemExit) as ending:
            call("deploy", package_of("1").folder, *words)
        assert ending.value.code == 2 and told in capfd.readouterr().err
    assert not (tmp_path / "same").exists()
