"""The models that a server answers for, by name and by branch; a new one takes the place of an old one without a dropped request.
Torch-free."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import KdzooError, UsageError
from ..export.candidates import read_package
from ..export.machine import Machine, this_machine
from ..export.package import MANIFEST, Package
from ..export.select import FIGURES, Candidate, Limits, choose
from ..export.trials import open_packages
from ..zoo.files import sha256
from ..zoo.target import Target
from .choice import choose as choose_file
from .counters import Counters
from .model import Model, open_model
from .refusal import Reason, Refusal
from .settings import Batching, Wishes
from .tensors import bad

if TYPE_CHECKING:
    Say = Callable[[str], None]

LIMITS = {figure.option.removeprefix("--"): key for key, figure in FIGURES.items()}  # max-latency, min-top1, ...
OBJECTIVES = {"accuracy": "top1", "latency": "latency"}


@dataclass
class Served:
    """A model, and where it came from. `candidate`: its file with its figures, for those who prefer one branch to another."""

    source: str
    model: Model
    digest: str
    candidate: Candidate


class Repository:
    """Every package of `sources`, of the `branches` that are asked for, each under its name.

    Raises, when it is opened: KdzooError, a package cannot be had or does not run here.
    """

    def __init__(
        self, sources: Sequence[str], branches: Sequence[str], wishes: Wishes, batching: Batching, say: Say = lambda line: None
    ) -> None:
        self.wishes, self.batching, self.say = wishes, batching, say
        self.machine: Machine = this_machine()
        self.served: dict[str, Served] = {}
        self.swapping = asyncio.Lock()
        for source in sources:
            for package in open_packages([source], branches, say):
                if package.name in self.served:
                    raise UsageError(
                        f"{package.name} is in {self.served[package.name].source} and in {source}", hint="serve one of them"
                    )
                self.served[package.name] = self._open(source, package)
        self.counters = Counters([], 0)  # until it starts

    def start(self, counters: Counters) -> None:
        """Take requests, in the event loop that runs; `counters` have a row for every name."""
        self.counters = counters
        for each in self.served.values():
            self._start(each.model)

    @property
    def models(self) -> list[Model]:
        return [each.model for each in self.served.values()]

    @property
    def hung(self) -> list[str]:
        """Models with a call that does not come back."""
        return [model.name for model in self.models if model.is_hung]

    @property
    def max_batch(self) -> int:
        return max(model.batch[1] for model in self.models)

    def find(self, name: str, branch: str | None = None, prefer: str | None = None) -> Model:
        """The model of a name; for the name of an entry, that of a branch, or the one that is preferred.

        Args:
            prefer: `accuracy`, `latency`, or limits, as in `max-latency=2ms, min-top1=60`, within which accuracy counts.

        Raises:
            Refusal: there is none.
        """
        if name in self.served and branch is None and prefer is None:
            return self.served[name].model
        group = {key: each for key, each in self.served.items() if name in (key, each.model.package.document["entry"])}
        if not group:
            raise Refusal(Reason.UNKNOWN, f"Request for unknown model: '{name}' is not found; there is {', '.join(self.served)}")
        if branch is not None:
            entries = {each.model.package.document["entry"] for each in group.values()}
            group = {k: each for k, each in self.served.items() if each.model.package.document["entry"] in entries}
            group = {k: each for k, each in group.items() if each.model.package.document["target"] == _target(branch)}
            if not group:
                raise Refusal(Reason.UNKNOWN, f"no branch '{branch}' of '{name}' is served; there is {', '.join(self.served)}")
        if prefer is not None:
            return self._preferred(list(group.values()), prefer)
        return min(group.values(), key=_default).model

    async def load(self, name: str) -> bool:
        """Open the package of a name again, prove it, and let it answer from now on; the old one answers what it has taken.
        False where it is unchanged.

        Raises:
            Refusal: no such name. KdzooError: the new one is no good; the old one goes on.
        """
        if name not in self.served:
            raise Refusal(Reason.UNKNOWN, f"failed to load '{name}': this server was started with {', '.join(self.served)}")
        async with self.swapping:
            old = self.served[name]
            target = old.model.package.document["target"]
            new = await asyncio.to_thread(self._open_again, old, target)
            if new is None:
                return False
            self._start(new.model)
            self.served[name] = new
            self.say(f"{name}: replaced by {new.model.chosen.artifact.path} of {new.digest[:12]}")
        while old.model.users:
            await asyncio.sleep(0.01)
        await old.model.close()
        return True

    async def reload(self) -> None:
        """`load` every name; what is no good is told, and the old one goes on."""
        for name in list(self.served):
            try:
                await self.load(name)
            except KdzooError as error:
                self.say(f"{name}: not replaced: {error.what}")

    async def close(self) -> None:
        """Answer what waits, then give everything back."""
        await asyncio.gather(*(model.close() for model in self.models))

    def _open_again(self, old: Served, target: str) -> Served | None:
        (package,) = open_packages([old.source], [target], self.say)
        if package.name != old.model.name:
            raise UsageError(f"{old.source} holds {package.name} now, not {old.model.name}", hint="start the server again")
        if sha256(package.folder / MANIFEST) == old.digest and not old.model.failure:
            return None
        return self._open(old.source, package)

    def _open(self, source: str, package: Package) -> Served:
        chosen = choose_file(package, self.machine, self.wishes)
        model = open_model(package, chosen, self.batching)
        ran_on = model.sessions[0].ran_on
        self.say(
            f"{model.name}: {chosen.artifact.path} on {ran_on.runtime} {ran_on.version} ({ran_on.device}), "
            f"{len(model.sessions)} threads; {chosen.why}"
        )
        for path, why in chosen.passed_over.items():
            self.say(f"{model.name}: not {path}: {why}")
        candidates = read_package(package, model.batch[0], "p50")
        (candidate,) = [c for c, a in zip(candidates, package.artifacts, strict=True) if a.path == chosen.artifact.path]
        return Served(source, model, sha256(package.folder / MANIFEST), candidate)

    def _start(self, model: Model) -> None:
        model.start(self.counters.row(model.name), self.batching, lambda error: self._failed(model, error))

    def _failed(self, model: Model, error: Exception) -> None:
        """The runtime raised: the model is not ready until it was opened anew, which is tried at once."""
        if model.failure:
            return
        model.failure = "its runtime failed; the server's log says more"  # and may name what no client should know
        self.say(f"{model.name}: the runtime failed: {type(error).__name__}: {error}")
        self.recovery = asyncio.get_running_loop().create_task(self._recover(model.name))

    async def _recover(self, name: str) -> None:
        try:
            await self.load(name)
        except (KdzooError, Refusal) as error:
            self.say(f"{name}: it cannot be opened anew, and stays out of service: {error}")

    def _preferred(self, group: Sequence[Served], prefer: str) -> Model:
        objective, texts = "top1", dict[str, str | None]()
        for word in filter(None, re.split(r"[\s,]+", prefer.strip())):
            key, is_limit, value = word.partition("=")
            if is_limit and key in LIMITS:
                texts[LIMITS[key]] = value
            elif word in OBJECTIVES:
                objective = OBJECTIVES[word]
            else:
                known = ", ".join([*OBJECTIVES, *(f"{limit}=.." for limit in LIMITS)])
                raise bad(f"a preference is some of {known}; not {word!r:.80}")
        try:
            choice = choose([each.candidate for each in group], Limits.parse(**texts), objective)
        except UsageError as error:
            raise bad(error.what) from None
        if not choice.fitting:
            near = f"; the nearest is {choice.nearest.entry}-{choice.nearest.target}" if choice.nearest else ""
            raise bad(f"no branch that is served is within {prefer:.80}{near}")
        return next(each.model for each in group if each.candidate is choice.fitting[0])


def _target(branch: str) -> str:
    try:
        return str(Target.parse(branch))
    except UsageError as error:
        raise bad(error.what) from None


def _default(served: Served) -> tuple[bool, float]:
    """The target of the method first, then the most accurate."""
    return served.candidate.target != "target", -(served.candidate.top1 or 0.0)
