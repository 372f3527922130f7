"""What is deployed: `target`, `1`..`N`, `fused`, `ensemble`, `1+2+3`, `cascade`, `all`. Torch-free; `zoo.student` cuts the network.

`target` is the network that the user named (the branch with the unmodified backbone); `ensemble` is the mean of the logits of all
branches, `1+2+3` of those branches. `cascade` asks the branches one after the other until one is sure; `all` is one network with
the logits of every branch. `all-targets` stands for every target of the method, one student each; whoever selects expands it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UnknownName, UsageError

WORDS = ("target", "fused", "ensemble", "cascade", "all", "all-targets")
SEVERAL = ("cascade", "all")  # targets whose students have the logits of several branches


@dataclass(frozen=True)
class Target:
    """A parsed target: a word, or the numbers (1-based) of the branches whose mean it is."""

    word: str | None = None
    branches: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises `UnknownName` for anything but a word of the list above or numbers joined by `+`."""
        text = text.strip().lower()
        if text in WORDS:
            return cls(word=text)
        if re.fullmatch(r"[1-9]\d*(\+[1-9]\d*)*", text):
            numbers = [int(n) for n in text.split("+")]
            if len(set(numbers)) < len(numbers):
                raise UsageError(f"target '{text}' names a branch twice", hint="name each branch once, as in 1+2+3")
            return cls(branches=tuple(sorted(numbers)))
        raise UnknownName("target", text, [*WORDS, "1", "2", "1+2+3"])

    def __str__(self) -> str:
        return self.word or "+".join(map(str, self.branches))

    def numbers(self, num_branches: int, target_branch: int, fused: bool) -> tuple[int, ...]:
        """Branch numbers that this target averages, or whose logits it gives one by one; empty for `fused`.

        Raises:
            UnknownName: the network has no such branch, or no fused classifier.
        """
        known = [*map(str, range(1, num_branches + 1)), "target", "ensemble", *(["fused"] if fused else []), *SEVERAL]
        if self.word == "target":
            return (target_branch,)
        if self.word in ("ensemble", "all"):
            return tuple(range(1, num_branches + 1))
        if self.word == "cascade" and num_branches > 1:
            # Early exits end at the network itself; branches beside it are asked in their order.
            return tuple(range(1, (target_branch if target_branch > 1 else num_branches) + 1))
        if self.word == "fused" and fused:
            return ()
        if self.word is not None or max(self.branches) > num_branches:
            hint = "all-targets is expanded before a student is selected" if self.word == "all-targets" else ""
            if self.word == "cascade":
                known, hint = ["target"], "a cascade needs a method with several branches, as dbfskd"
            raise UnknownName("target", str(self), known, hint=hint)
        return self.branches
