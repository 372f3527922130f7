"""What a method is: the network that it trains, and the losses that train it. One paper per file in `zoo.methods`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..errors import UnknownName, UsageError
from .backbone import Backbone
from .network import MultiBranch, Outputs
from .registry import Registry

if TYPE_CHECKING:
    from .teacher import Teacher

METHODS: Registry[type[Method]] = Registry("method", "kdzoo.zoo.methods")
LARGEST = {int: 1000, float: 1e9}  # by the type of a setting


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
            if not _fits(value, known[name].default):
                takes = {"tuple": "list"}.get(kind := type(known[name].default).__name__, kind)
                raise UsageError(
                    f"method setting '{name}' is {value!r}", hint=f"it takes a {takes}, as in {name}={known[name].default}"
                )
            largest = LARGEST.get(type(known[name].default))
            if largest is not None and not abs(value) <= largest:
                raise UsageError(
                    f"method setting '{name}' is {value}", hint=f"it takes a number between -{largest:g} and {largest:g}"
                )
            if name.endswith("temperature") and not isinstance(value, bool) and not value > 0:
                raise UsageError(f"method setting '{name}' is {value}", hint="it takes a number above 0")
            if name.startswith(("ramp_", "warmup_")) and value < 0:
                raise UsageError(f"method setting '{name}' is {value}", hint="it takes a number of epochs from 0 on")
        return cls(cls.Config(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}))

    def settings(self) -> dict[str, Any]:
        """The configuration as plain data; `from_mapping` reads it back."""
        return asdict(self.config)

    def teachers(self, backbone: str) -> tuple[str, ...]:
        """Backbones of the pre-trained, frozen networks whose outputs the losses read, in the order of `Outputs.teachers`.

        `backbone` is the name of the student's. None by default.

        Raises:
            UsageError: the configuration has to name one and does not.
        """
        return ()

    @abstractmethod
    def build(self, backbone: Backbone, num_classes: int) -> MultiBranch:
        """The whole training network, freshly initialised from the global random state."""

    def adopt(self, network: MultiBranch, teachers: Sequence[Teacher]) -> None:  # noqa: B027  optional
        """Copy into the fresh `network` what it takes over from its teachers (SimKD: the classifier). Nothing by default."""

    @abstractmethod
    def losses(self, outputs: Outputs, y: Tensor, progress: Progress) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; the loop sums them.

        `y` holds `B` class numbers or, with mixed images or smoothed labels, the probabilities `B K` of the classes.
        """


def require_teacher(method: str, backbone: str) -> tuple[str]:
    """The setting `teacher` of a method that cannot do without; raises `UsageError` where it is empty."""
    if not backbone:
        raise UsageError(
            f"method {method} needs a teacher, and its setting 'teacher' names no backbone",
            hint="give trained weights with --teacher SOURCE, or method_config: {teacher: BACKBONE}, which is trained first",
        )
    return (backbone,)


def _fits(value: Any, default: Any) -> bool:
    """Whether `value` is of the kind of `default`; a whole number is good for a number with a fraction, a list for a tuple."""
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    wanted = (int, float) if isinstance(default, float) else type(default)
    return isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool)
