"""What a client says to a server, without any network: every method yields the requests that it needs answered, all of which may go
at the same time, gets their answers in that order, and gives its result. The blocking and the asynchronous client share all of it.

Shapes: `N` images, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ...errors import HubError, KdzooError, UnknownName, UsageError
from ..tensors import datatype_of
from ..wire import MOST_CLASSES
from .answers import (
    Answer,
    Prediction,
    ServedModel,
    error_of,
    from_logits,
    logits_of,
    read_json,
    read_labels,
    read_predictions,
    read_tensors,
)
from .images import as_file, each_of, name_of
from .requests import Input, Request, Wish

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .images import Images

T = TypeVar("T")
Steps: TypeAlias = Generator[Sequence[Request], list[Answer], T]
Plan: TypeAlias = list[tuple[Sequence[int], Request, Callable[[Answer], list[Prediction]]]]  # of which images, what, how it is read


class Talk:
    """Remembers what it has learnt of the server. `model`: None is the only one, or the only entry."""

    def __init__(self, model: str | None) -> None:
        self.model = model
        self.inputs: dict[Wish, Input] = {}
        self.labels: dict[Wish, list[str]] = {}

    def models(self) -> Steps[list[ServedModel]]:
        """Of kdzoo's own server with their cards; of Triton by name."""
        (answer,) = yield [Request("GET", "/v2/kdzoo/models")]
        if answer.is_good:
            cards = read_json(answer, list)
            return [ServedModel(c["name"], bool(c.get("ready")), c.get("entry"), c.get("target"), c) for c in cards]
        if answer.status not in (400, 404, 405):
            raise error_of(answer)
        (answer,) = yield [Request("POST", "/v2/repository/index", lambda: b"{}")]
        if not answer.is_good:
            raise UsageError(
                "the server does not tell which models it has", hint="name one: Client(url, model=NAME), or --model NAME"
            )
        return [ServedModel(each["name"], each.get("state") == "READY") for each in read_json(answer, list)]

    def ready(self, model: str | None) -> Steps[bool]:
        """Of the whole server, or of a model; False where nobody answers."""
        path = "/v2/health/ready" if model is None else Wish(model).path("/ready")
        (answer,) = yield [Request("GET", path, lenient=True)]
        if answer.status in (401, 403):
            raise error_of(answer)
        return answer.is_good

    def metadata(self, model: str | None, branch: str | None) -> Steps[dict[str, Any]]:
        wish = yield from self.wish(branch, None, model)
        (answer,) = yield [wish.get()]
        found: dict[str, Any] = read_json((yield from self._good(answer, wish)), dict)
        return found

    def infer(self, images: Any, branch: str | None, prefer: str | None) -> Steps[NDArray[np.float32]]:
        """The logits `N K` of an array as the model takes it; without the axis of the images it is one image."""
        import numpy as np

        wish = yield from self.wish(branch, prefer)
        taken = yield from self.input(wish)
        array = np.asarray(images)
        array = array[None] if array.ndim == len(taken.sides) else array
        has_type = array.dtype.kind in "biuf" and datatype_of(array) == taken.datatype
        if not has_type or not len(array) or not taken.fits(array.shape[1:]):
            wanted = f"{taken.datatype} of shape N {' '.join(map(str, taken.sides))}"
            raise UsageError(
                f"{wish.name} takes {wanted}, not {array.dtype} of shape {array.shape}", hint="classify takes any picture"
            )
        answers = yield [wish.infer(taken, array[k : k + taken.chunk]) for k in range(0, len(array), taken.chunk)]
        pieces = []
        for answer in answers:
            _, outputs = read_tensors((yield from self._good(answer, wish)))
            pieces.append(logits_of(outputs))
        logits: NDArray[np.float32] = np.concatenate(pieces)
        _as_many(len(logits), len(array))
        return logits

    def classify(self, images: Images, branch: str | None, prefer: str | None, top: int) -> Steps[list[Prediction]]:
        """Pictures are uploaded; pixels of the model's own size go as they are."""
        import numpy as np

        if top < 1:
            raise UsageError(f"top must be a number of classes, at least 1, not {top}")
        given = each_of(images)
        if not given:
            return []
        wish = yield from self.wish(branch, prefer)
        plan: Plan = []
        if any(isinstance(image, np.ndarray) for image in given):
            plan = yield from self._pixels(given, wish, top)
        planned = {k for places, _, _ in plan for k in places}
        for k, image in enumerate(given):
            if k not in planned:
                plan.append(([k], wish.classify(as_file(image), top, name_of(image, k + 1)), read_predictions))
        answers = yield [request for _, request, _ in plan]
        found: dict[int, Prediction] = {}
        for (places, request, read), answer in zip(plan, answers, strict=True):
            predictions = read((yield from self._good(answer, wish, request.about)))
            _as_many(len(predictions), len(places))
            found.update(zip(places, predictions, strict=True))
        return [found[k] for k in range(len(given))]

    def wish(self, branch: str | None = None, prefer: str | None = None, model: str | None = None) -> Steps[Wish]:
        """Raises `UsageError` where there are several models, and none is named."""
        if model is None and self.model is None:
            served = yield from self.models()
            entries = {each.entry for each in served}
            if not served or (len(served) > 1 and (len(entries) > 1 or None in entries)):
                raise UsageError(
                    "the server answers for no model" if not served else "the server answers for several models",
                    known=[each.name for each in served],
                    hint="name one: Client(url, model=NAME), or --model NAME" if served else "",
                )
            self.model = served[0].name if len(served) == 1 else served[0].entry
        name = model or self.model
        assert name is not None
        return Wish(name, branch, prefer)

    def input(self, wish: Wish) -> Steps[Input]:
        """Asked once. Branches of an entry read the same."""
        if wish not in self.inputs:
            metadata, config = yield [wish.get(), wish.get("/config")]
            yield from self._good(metadata, wish)
            most = read_json(config, dict).get("max_batch_size") if config.is_good else None
            self.inputs[wish] = Input.of(read_json(metadata, dict), most if isinstance(most, int) else None)
        return self.inputs[wish]

    def _pixels(self, given: Sequence[Any], wish: Wish, top: int) -> Steps[Plan]:
        """Of the images, those that are arrays of the model's own size. Labels are no part of the protocol, but an image that is
        classified into all classes tells them: asked once, too."""
        import numpy as np

        taken = yield from self.input(wish)
        is_able = taken.datatype == "UINT8" and 0 < taken.num_classes <= MOST_CLASSES
        ours = [k for k, image in enumerate(given) if is_able and isinstance(image, np.ndarray) and taken.fits(image.shape)]
        if not ours:
            return []
        if wish not in self.labels:
            (answer,) = yield [wish.infer(taken, given[ours[0]][None], taken.num_classes)]
            self.labels[wish] = read_labels((yield from self._good(answer, wish)), taken.num_classes)
        read = partial(from_logits, labels=self.labels[wish], top=top)
        parts = [ours[k : k + taken.chunk] for k in range(0, len(ours), taken.chunk)]
        return [(part, wish.infer(taken, [given[k] for k in part]), read) for part in parts]

    def _good(self, answer: Answer, wish: Wish, about: str = "") -> Steps[Answer]:
        """The same answer; raises the error that it is where it is a refusal."""
        if answer.is_good:
            return answer
        if answer.status == 404 or (answer.status == 400 and "unknown model" in answer.sentence):
            error = yield from self._unknown(wish)
            if error is not None:
                raise error
            if about:
                raise UsageError("the server takes no pictures: it is not kdzoo's", hint="give arrays of the model's own size")
        raise error_of(answer, about)

    def _unknown(self, wish: Wish) -> Steps[KdzooError | None]:
        """What is wrong with the names, where the server tells which it knows."""
        try:
            served = yield from self.models()
        except (UsageError, HubError):
            return None
        names = [each.name for each in served]
        entries = sorted({each.entry for each in served if each.entry})
        if wish.name not in (*names, *entries):
            return UnknownName("model", wish.name, [*names, *entries])
        targets = [each.target for each in served if each.target]
        return UnknownName("branch", wish.branch, targets) if wish.branch is not None and wish.branch not in targets else None


def _as_many(found: int, wanted: int) -> None:
    if found != wanted:
        raise HubError(f"the server gave {found} answers for {wanted} images")
