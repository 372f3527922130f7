"""What goes into a file and what comes out. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of an input or output; a dynamic dimension is a string."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TensorSpec:
        """The inverse of `dataclasses.asdict`; -1, TensorRT's word for a dynamic dimension, becomes `N`."""
        return cls(fields["name"], fields["dtype"], tuple("N" if dim == -1 else dim for dim in fields["shape"]))
