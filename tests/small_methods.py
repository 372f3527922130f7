"""Every method of the registry as small as its settings allow. Import it as `kdzoo.tests.small_methods`.

Nothing here knows a method by its name: a new one is made small by the names of its settings.
"""

from __future__ import annotations

from typing import Any

from kdzoo.zoo.method import METHODS, Method

TEACHER = "resnet8"
SMALL: dict[str, Any] = {"teacher": TEACHER, "aux": 1}
# Settings that make another network, of every method that has them all.
OTHER_NETWORKS: list[dict[str, Any]] = [
    {"compress": True, "num_branches": 3},
    {"attention_reduction": 0, "expansion": 1.2},
    {"num_aux": 0, "use_fused": False, "num_branches": 2},
    {"rescale_gradient": False, "num_branches": 2},
    {"peers": ("resnet8", "resnet14")},
]


def small_settings(name: str) -> dict[str, Any]:
    """What has to be set to get the smallest network of a method, a teacher where it cannot do without."""
    known = METHODS.get(name)().settings()
    return {setting: value for setting, value in SMALL.items() if setting in known}


def all_settings(name: str) -> list[dict[str, Any]]:
    """The smallest settings, then those of `OTHER_NETWORKS`."""
    small, known = small_settings(name), METHODS.get(name)().settings().keys()
    return [small, *({**small, **other} for other in OTHER_NETWORKS if other.keys() <= known)]


def small_method(name: str) -> Method:
    return METHODS.get(name).from_mapping(small_settings(name))
