"""`/openapi.json`: everything that `app` and `routes` answer, for the models that are served (OpenAPI 3.1). Torch-free."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from .. import __version__
from . import shapes
from .describe import VERSION
from .refusal import Reason
from .repository import LIMITS, OBJECTIVES
from .shapes import BYTES, named
from .tensors import DATATYPES

if TYPE_CHECKING:
    from .model import Model
    from .repository import Repository

ABOUT = (
    "Students of kdzoo over the Open Inference Protocol v2 (https://github.com/kserve/open-inference-protocol), with the "
    "extensions of Triton for binary tensors, classification, statistics and configuration, and with uploads of pictures. Bodies "
    "may be packed (Content-Encoding: gzip or deflate). A server that was started with a token asks for it everywhere but on the "
    "page and for health."
)
SENTENCES = {
    Reason.BAD: "The request is wrong; the sentence says how.",
    Reason.NO_TOKEN: "This server asks for a token.",
    Reason.UNKNOWN: "There is no such model, version or branch.",
    Reason.TOO_SLOW: "The body did not come in time.",
    Reason.TOO_LARGE: "The body is larger than this server reads, or the picture has more pixels than it decodes.",
    Reason.NO_IMAGE: "The body is of a kind that is not read here.",
    Reason.LONG_HEADERS: "The head of the request is longer than this server reads.",
    Reason.TOO_MANY: "This client has too many requests under way.",
    Reason.FAILED: "The runtime failed, or something that should not.",
    Reason.BUSY: "The queue is full, the model is out of service, or the server is about to stop.",
    Reason.LATE: "There was no answer in time.",
}
PICTURES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif", "application/octet-stream")
OPEN = (Reason.BAD, Reason.LONG_HEADERS, Reason.TOO_LARGE, Reason.FAILED)  # what any request may get
READS = (*OPEN, Reason.NO_TOKEN, Reason.BUSY)
POSTS = (*READS, Reason.TOO_MANY)
COMPUTES = (*POSTS, Reason.UNKNOWN, Reason.TOO_SLOW, Reason.NO_IMAGE, Reason.LATE)
MOST_NUMBERS = 4096  # of a picture that is written out as an example
Data = dict[str, Any]


def document(repository: Repository) -> Data:
    """The whole description."""
    models = repository.models
    names = [model.name for model in models]
    entries = list(dict.fromkeys(model.package.document["entry"] for model in models))
    targets = list(dict.fromkeys(model.package.document["target"] for model in models))
    either = [*names, *(entry for entry in entries if entry not in names)]
    inputs, outputs = {m.input.name for m in models}, {t.name for m in models for t in m.outputs}
    datatypes = {DATATYPES[m.input.dtype] for m in models}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kdzoo",
            "version": __version__,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"token": []}],
        "paths": _paths(models[0]),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "parameters": _parameters(names, either, targets),
            "responses": {reason.name: _refusal(reason) for reason in Reason},
            "schemas": {**shapes.answers(), **shapes.questions(inputs, datatypes, outputs, repository.max_batch)},
        },
    }


def _paths(example: Model) -> Data:
    paths = {
        "/": _get("page", "A page to look at, and to try pictures on.", "text/html", shapes.TEXT, refusals=OPEN, security=[]),
        "/v2": _get("server", "What this server is.", shape=named("Server")),
        "/v2/health/live": _get("live", "Whether it runs.", refusals=OPEN, security=[]),
        "/v2/health/ready": _get("ready", "Whether every model answers.", refusals=OPEN, security=[], later="Not every one does."),
        "/v2/models/stats": _get("all_statistics", "What was counted of all models.", shape=named("Statistics")),
        "/v2/kdzoo/models": _get("cards", "The figures of every file that is served.", shape=named("Cards")),
        "/metrics": _get("metrics", "What was counted, for Prometheus.", "text/plain", shapes.TEXT),
        "/openapi.json": _get("openapi", "This document.", shape={"type": "object"}),
        "/v2/repository/index": _post("index", "The models and their states.", named("Index"), POSTS),
        "/v2/repository/models/{name}/load": _post(
            "load", "Look whether the package of a model has changed; if so it takes the place of the old one.", {"type": "object"},
            (*POSTS, Reason.UNKNOWN), ["served"],
        ),
    }  # fmt: skip
    for version in ("", f"/versions/{'{version}'}"):
        one, of, end = (
            f"/v2/models/{'{name}'}{version}",
            ["name", *(["version"] if version else []), "branch"],
            "_version" * bool(version),
        )
        reads = (*READS, Reason.UNKNOWN)
        paths[one] = _get(f"metadata{end}", "Names, types and shapes of its tensors.", None, named("Metadata"), of, reads)
        paths[f"{one}/config"] = _get(f"config{end}", "As Triton would be told.", None, named("Config"), of, reads)
        paths[f"{one}/stats"] = _get(f"statistics{end}", "What was counted of it.", None, named("Statistics"), of, reads)
        paths[f"{one}/ready"] = _get(f"model_ready{end}", "Whether it answers.", None, None, of, reads, later="It does not.")
        paths[f"{one}/infer"] = _infer(f"infer{end}", [*of, "prefer", "timeout", "header_length"], example)
        paths[f"{one}/classify"] = _classify(f"classify{end}", [*of, "prefer", "timeout", "top"])
    return paths


def _get(
    name: str,
    summary: str,
    kind: str | None = None,
    shape: Data | None = None,
    parameters: list[str] | None = None,
    refusals: tuple[Reason, ...] = READS,
    *,
    security: list[Any] | None = None,
    later: str = "",
) -> Data:
    """A path that is read. Without `shape` the status is the answer; `later`: what 503 says there, without a body."""
    answer = {"content": {kind or "application/json": {"schema": shape}}} if shape is not None else {}
    found = _operation(name, summary, answer, refusals, parameters or [])
    if later:
        found["responses"]["503"] = {"description": later}
    return {"get": found if security is None else {**found, "security": security}}


def _post(name: str, summary: str, shape: Data, refusals: tuple[Reason, ...], parameters: list[str] | None = None) -> Data:
    answer = {"content": {"application/json": {"schema": shape}}}
    return {"post": _operation(name, summary, answer, refusals, parameters or [])}


def _infer(name: str, parameters: list[str], example: Model) -> Data:
    header = {"Inference-Header-Content-Length": {"description": "Where raw tensors follow the JSON.", "schema": shapes.COUNT}}
    answer = {
        "headers": header,
        "content": {"application/json": {"schema": named("InferAnswer")}, "application/octet-stream": {"schema": BYTES}},
    }
    content = {
        "application/json": {"schema": named("InferQuestion"), **_grey(example)},
        "application/octet-stream": {"schema": BYTES},
    }
    found = _operation(name, "Compute tensors.", answer, COMPUTES, parameters)
    body = {
        "required": True,
        "content": content,
        "description": "JSON, or JSON and behind it raw little-endian tensors; Inference-Header-Content-Length parts them.",
    }
    return {"post": {**found, "requestBody": body}}


def _classify(name: str, parameters: list[str]) -> Data:
    answer = {"content": {"application/json": {"schema": named("Predictions")}}}
    form = {"type": "object", "properties": {"image": shapes.several(BYTES, minItems=1)}, "required": ["image"]}
    content = {**{kind: {"schema": BYTES} for kind in PICTURES}, "multipart/form-data": {"schema": form}}
    found = _operation(
        name, "Classify a picture, or all files of a form, whatever their fields are called.", answer, COMPUTES, parameters
    )
    return {"post": {**found, "requestBody": {"required": True, "content": content}}}


def _operation(name: str, summary: str, answer: Data, refusals: tuple[Reason, ...], parameters: list[str]) -> Data:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [{"$ref": f"#/components/parameters/{each}"} for each in parameters],
        "responses": {
            "200": {"description": "Yes." if not answer else "Here it is.", **answer},
            **{str(r.status): {"$ref": f"#/components/responses/{r.name}"} for r in sorted(refusals, key=lambda r: r.status)},
        },
    }


def _refusal(reason: Reason) -> Data:
    headers = {"Retry-After": {"description": "Seconds.", "schema": shapes.COUNT}} if reason.later else {}
    headers |= {"WWW-Authenticate": {"schema": {"const": "Bearer"}}} if reason is Reason.NO_TOKEN else {}
    return {"description": SENTENCES[reason], "headers": headers, "content": {"application/json": {"schema": named("Error")}}}


def _parameters(names: list[str], either: list[str], targets: list[str]) -> Data:
    def parameter(name: str, place: str, schema: Data, about: str, **more: Any) -> Data:
        return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": about, **more}

    word = f"({'|'.join(OBJECTIVES)}|({'|'.join(LIMITS)})=[0-9.]+[a-zA-Z%]*)"
    branch = "The branch that is meant, where the name is an entry's or another branch's."
    prefer = "Let the server pick the branch: what counts, and limits within which accuracy counts."
    examples = {"fast": {"value": "latency"}, "limit": {"value": "max-latency=100ms"}}
    most = "Milliseconds until the answer is worth nothing."
    rules = {"type": "string", "pattern": f"^({word}([ ,]+{word})*)?$"}
    length = "Bytes of the JSON at the head of the body; 0: there is none, the body is the input."
    return {
        "name": parameter("name", "path", {"enum": either}, "A model; or an entry, whose target answers, or else its best."),
        "served": parameter("name", "path", {"enum": names}, "A model."),
        "version": parameter("version", "path", {"const": VERSION}, "There is one."),
        "branch": parameter("branch", "query", {"enum": targets}, branch),
        "top": parameter("top", "query", {"type": "integer", "minimum": 1, "default": 5}, "How many classes."),
        "prefer": parameter("Kdzoo-Prefer", "header", rules, prefer, examples=examples),
        "timeout": parameter("Kdzoo-Timeout-Ms", "header", {"type": "integer", "minimum": 1}, most),
        "header_length": parameter("Inference-Header-Content-Length", "header", shapes.COUNT, length),
    }  # fmt: skip


def _grey(model: Model) -> Data:
    """The smallest request of a model, as an example; none where it would be long."""
    shape = [model.batch[0], *(int(side) for side in model.input.shape[1:])]
    if prod(shape) > MOST_NUMBERS:
        return {}
    data = [127 if model.takes_pictures else 0.0] * prod(shape)
    value = {"inputs": [{"name": model.input.name, "datatype": DATATYPES[model.input.dtype], "shape": shape, "data": data}]}
    return {"examples": {"grey": {"summary": "one grey image", "value": value}}}
