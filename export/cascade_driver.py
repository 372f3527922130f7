"""Asks the parts of a cascade one after the other: images whose answer is sure leave, the others go on. NumPy only.

For runtimes that cannot compile conditions, or that compute both sides of them; a copy lies beside the parts in a package. A part
is a callable that takes arrays by name and gives arrays by name, `inputs` names what it takes.

    logits, exits = run_cascade(parts, thresholds, images)

Shapes: `N` images, `K` classes.
"""

import numpy as np


def run_cascade(parts, thresholds, image):  # type: ignore[no-untyped-def]  # stands alone in a package, whatever Python is there
    """Logits `N K` and the exits `N`, from 1, of a batch of images. One threshold for each part but the last."""
    rows, known, logits, exits = np.arange(len(image)), {"image": image}, None, np.zeros(len(image), np.int64)
    for number, part in enumerate(parts, start=1):
        found = part({name: known[name] for name in part.inputs})
        answer = found["logits"]
        if logits is None:
            logits = np.zeros((len(image), answer.shape[1]), answer.dtype)
        last = number == len(parts)
        leave = np.ones(len(rows), bool) if last else found["confidence"] >= np.float32(thresholds[number - 1])
        logits[rows[leave]], exits[rows[leave]] = answer[leave], number
        if leave.all():
            break
        later = {name for other in parts[number:] for name in other.inputs}
        known = {name: array for name, array in {**known, **found, "before": answer}.items() if name in later}
        if leave.any():
            rows, known = rows[~leave], {name: array[~leave] for name, array in known.items()}
    return logits, exits
