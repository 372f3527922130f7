"""The bill of materials of a package: CycloneDX 1.6 in JSON, by `cyclonedx-python-lib`. Torch-free.

The package is one component of the type `machine-learning-model` with a model card (task, data set, what was measured), and every
file of it is a component with its sha256. The libraries that made or run the files are components with a version and a purl; what
is not needed to run anything is `excluded`, and the dependency graph says which file needs which runtime.

The same package gives the same bytes: no time of day, and a serial number made of the sha256 of the manifest. The library has no
model cards, so that part is added here; its validator has the last word.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from ..errors import EnvironmentProblem, IntegrityError
from ..zoo.files import sha256
from ..zoo.paths import DRIVER
from .cards.metadata import LICENSE, license_of
from .package import MANIFEST, METRICS, WEIGHTS, Package
from .schema import check_document

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/kdzoo")
Document = dict[str, Any]


def sbom(package: Package) -> Document:
    """The document, valid CycloneDX 1.6.

    Raises:
        EnvironmentProblem: `cyclonedx-python-lib` is not installed. IntegrityError: a file is not what the manifest describes.
    """
    check_document(package, MANIFEST, package.document)
    package.verify_files()
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import ComponentType
        from cyclonedx.model.license import DisjunctiveLicense
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError as error:
        raise _not_installed(error) from error

    document, metrics, facts = package.document, package.metrics, package.document["files"]
    check_document(package, METRICS, metrics)
    for made in (each for artifact in package.described for each in (artifact, *artifact.parts)):
        if made.path not in facts:
            raise IntegrityError(f"the manifest of {package.folder} lists {made.path} without its sha256", hint="export again")
    manifest = package.folder / MANIFEST
    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, sha256(manifest)))
    model = _component(package.name, ComponentType.MACHINE_LEARNING_MODEL, "model", sha256(manifest))
    if license_of(document["source"]) == LICENSE:
        model.licenses.add(DisjunctiveLicense(id="Apache-2.0"))
    bom.metadata.component = model
    files = {name: _component(name, ComponentType.FILE, f"file:{name}", facts[name]["sha256"]) for name in facts}
    needs: dict[str, list[tuple[str, str]]] = {WEIGHTS: [(n, v) for n, v in _versions(package) if n in ("kdzoo", "torch")]}
    for artifact in package.described:
        for made in (artifact, *artifact.parts):
            needs[made.path] = [(_distribution(made.runtime), made.runtime_version)]
    at_run_time = {library for some in needs.values() for library in some}
    libraries = {library: _library(*library, needed=library in at_run_time) for library in {*at_run_time, *_versions(package)}}
    for component in (*files.values(), *libraries.values()):
        bom.components.add(component)
    bom.register_dependency(model, files.values())
    for name, component in files.items():
        bom.register_dependency(component, [libraries[library] for library in needs.get(name, ())])
    for artifact in package.described:
        for made in (artifact, *artifact.parts):
            bom.register_dependency(files[made.path], [files[name] for name in made.companions if name in files])
        if artifact.parts and DRIVER in files:
            bom.register_dependency(files[artifact.path], [files[DRIVER]])
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    bill: Document = json.loads(text)
    bill["metadata"].pop("timestamp", None)
    bill["metadata"]["component"]["modelCard"] = model_card(package)
    bill["metadata"]["properties"] = list(_properties(package))
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill))
    assert problem is None, f"not valid CycloneDX 1.6: {problem}"
    return bill


def model_card(package: Package) -> Document:
    """What the model is and what was measured of it, as CycloneDX words it."""
    document, metrics = package.document, package.metrics
    first = package.described[0]
    parameters = {
        "approach": {"type": "supervised"},
        "task": "image classification",
        "architectureFamily": "convolutional neural network",
        "modelArchitecture": f"{document['backbone']}, trained with {document['method']}, target {document['target']}",
        "datasets": [{"type": "dataset", "name": document["dataset"], "description": f"{len(package.labels)} classes"}],
        "inputs": [{"format": _format(first.input)}],
        "outputs": [{"format": _format(first.output)}],
    }
    return {"modelParameters": parameters, "quantitativeAnalysis": {"performanceMetrics": list(_measured(metrics))}}


def _measured(metrics: Document) -> Iterator[Document]:
    """Accuracy of the checkpoint and of every file, its agreement with torch, its latency, parameters and multiply-adds."""
    for key in ("params", "macs"):
        yield {"type": key, "value": str(metrics["student"][key])}
    stated = {"checkpoint": {"accuracy": metrics["checkpoint"]}} if metrics["checkpoint"] else {}
    for name, found in {**stated, **metrics["artifacts"]}.items():
        accuracy, parity, latency = (found.get(key) for key in ("accuracy", "parity", "latency"))
        if accuracy:
            split = f"{name}, {accuracy['n']} images of the {accuracy['split']} split"
            yield {"type": "top-1 accuracy in percent", "value": f"{accuracy['top1']:.2f}", "slice": split}
        if parity:
            yield {"type": "agreement with torch", "value": f"{parity['agreement']:.6f}", "slice": f"{name}, {parity['n']} images"}
        for row in latency or ():
            where = f"{name}, batch {row['batch']}, {metrics['host']}"
            yield {"type": "latency p50 in ms", "value": f"{row['p50_ms']:.4f}", "slice": where}


def _properties(package: Package) -> Iterator[Document]:
    document = package.document
    for key, value in (
        ("source.weights_sha256", document["source"]["weights_sha256"]),
        ("provenance.command", document["provenance"]["command"]),
        ("provenance.git_commit", document["provenance"]["git_commit"]),
        ("provenance.python", document["provenance"]["versions"].get("python")),
    ):
        if value is not None:
            yield {"name": f"kdzoo:{key}", "value": str(value)}


def _format(spec: Any) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _distribution(module: str) -> str:
    return module.replace("_", "-")


def _versions(package: Package) -> list[tuple[str, str]]:
    """The libraries that made the files, with their versions."""
    versions = package.document["provenance"]["versions"]
    return [(_distribution(name), version) for name, version in sorted(versions.items()) if name != "python"]


def _component(name: str, kind: Any, ref: str, digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component

    return Component(name=name, type=kind, bom_ref=ref, hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)])


def _library(name: str, version: str, needed: bool) -> Any:
    """A package of PyPI; one that is not needed to run anything has the scope `excluded`."""
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    purl = PackageURL("pypi", name=name, version=version or None)
    scope = ComponentScope.REQUIRED if needed else ComponentScope.EXCLUDED
    return Component(
        name=name, version=version or None, type=ComponentType.LIBRARY, bom_ref=purl.to_string(), purl=purl, scope=scope
    )


def _not_installed(error: ImportError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"a bill of materials needs the package cyclonedx-python-lib: {error}", hint="pip install 'kdzoo[supply-chain]'"
    )
