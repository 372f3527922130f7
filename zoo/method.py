"""What a method is: the network that it trains, and the losses that train it. One paper per file in `zoo.methods`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from ..errors import UnknownName, UsageError
from .backbone import Backbone
from .network import MultiBranch, Outputs
from .registry import Registry

METHODS: Registry[type[Method]] = Registry("method", "kdzoo.zoo.methods")


@dataclass(frozen=True)
class Progress:
    """Where training stands. `epoch` counts from 0."""

    epoch: int
    num_epochs: int


class Method(ABC):
    """A configured method. Subclasses define a frozen dataclass `Config` with the paper's defaults, one for every field."""

    Config: ClassVar[type[Any]]

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Method:
        """A method with the given fields of its `Config`; raises `UnknownName` for others, `UsageError` for a wrong type."""
        known = {f.name: f for f in fields(cls.Config)}
        for name, value in values.items():
            if name not in known:
                raise UnknownName("method setting", name, list(known))
            default = known[name].default
            wanted = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool):
                hint = f"it takes a {type(default).__name__}, as in {name}={default}"
                raise UsageError(f"method setting '{name}' is {value!r}", hint=hint)
        return cls(cls.Config(**values))

    def settings(self) -> dict[str, Any]:
        """The configuration as plain data; `from_mapping` reads it back."""
        return asdict(self.config)

    @abstractmethod
    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        """The whole training network, freshly initialised from the global random state."""

    @abstractmethod
    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; the loop sums them. `y` holds `B` class numbers."""
