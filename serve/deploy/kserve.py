"""An InferenceService of KServe (serving.kserve.io/v1beta1) that runs our container. Torch-free.

A predictor of our own container, which is asked over the Open Inference Protocol v2; it carries its packages, so nothing is fetched
when a replica starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..settings import BODIES
from .command import ENVIRONMENT, HTTP, Command
from .docker import PACKAGES, ROOT, USER
from .resources import Resources

MANIFEST = "kserve.yaml"
SPARE_TMP = 64  # MiB in /tmp, beyond the files of forms that are being read
TIMEOUT = 60  # seconds of a request; the server's own is shorter
TARGET_SHARE = 0.7  # of the requests that a replica takes at once, before another one starts


def service_name(entry: str) -> str:
    """A name of DNS: small letters, digits, hyphens, at most 50 signs, for KServe adds some of its own."""
    name = re.sub(r"[^a-z0-9]+", "-", entry.lower()).strip("-")[:50].rstrip("-")
    return name if name[:1].isalpha() else f"m-{name}".rstrip("-")


def inference_service(name: str, image: str, names: Sequence[str], command: Command, resources: Resources) -> dict[str, Any]:
    """`names`: of the packages in the image."""
    container = {
        "name": "kserve-container",  # the name by which KServe knows it
        "image": image,
        "args": command.arguments([f"{ROOT}/{PACKAGES}/{each}" for each in names]),
        # PROTOCOL is where a container of one's own says its protocolVersion.
        "env": [{"name": key, "value": value} for key, value in {"PROTOCOL": "v2", **ENVIRONMENT}.items()],
        "ports": [{"name": "http1", "containerPort": HTTP, "protocol": "TCP"}],  # Knative takes one port
        "resources": {
            "requests": {"cpu": str(resources.threads), "memory": f"{resources.memory_request}Mi"},
            "limits": {"memory": f"{resources.memory_limit}Mi"},
        },
        "readinessProbe": _probe("ready", period=5, failures=2),
        "livenessProbe": _probe("live", period=10, failures=6),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "kdzoo"}},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "maxReplicas": 4,
                "scaleMetric": "concurrency",
                "scaleTarget": max(1, round(TARGET_SHARE * resources.concurrency)),
                "containerConcurrency": resources.concurrency,
                "timeout": max(TIMEOUT, command.stop_seconds),  # Knative lets a pod end for as long as it lets a request take
                "automountServiceAccountToken": False,
                "containers": [container],
                "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": f"{SPARE_TMP + BODIES * resources.max_body}Mi"}}],
            }
        },
    }


def to_yaml(service: dict[str, Any], command: Command, resources: Resources) -> str:
    import yaml

    comments = [
        "kubectl apply -f this file, once the image of the Dockerfile is in a registry that the cluster reads.",
        *resources.reasons,
        "No limit of the processor: a throttled server answers late. For gRPC name the port h2c and give it 8001.",
        "For KServe on Knative. Its Standard mode scales by cpu only: leave scaleMetric, scaleTarget and containerConcurrency out,",
        f"and put terminationGracePeriodSeconds: {command.stop_seconds} beside containers, which Knative forbids.",
    ]
    return "".join(f"# {line}\n" for line in comments) + yaml.safe_dump(service, sort_keys=False, width=120)


def _probe(what: str, period: int, failures: int) -> dict[str, Any]:
    ask = {"path": f"/v2/health/{what}", "port": HTTP}
    return {"httpGet": ask, "periodSeconds": period, "timeoutSeconds": 2, "failureThreshold": failures}
