"""The sections that look at images with the trained network: Grad-CAM, t-SNE, correlation between channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...errors import EnvironmentProblem
from ...zoo.datasets import LabelledImages
from .facts import Run
from .gradcam import Explanation
from .measures import Choice, channel_correlation, embed, mean_strength, perplexity
from .observe import Observations
from .overlay import gradcam_grid
from .panels import correlation_panel, embedding_panel, marker_icon
from .pictures import picture
from .section import CORRELATION, GRADCAM, TSNE, Section


def gradcam_section(
    data: LabelledImages, places: Sequence[int], found: Sequence[Explanation], source: str, *, fused_without_map: bool
) -> Section:
    """The images of `data`, which stand at `places` in the split, with the explanation of every classifier."""
    sizes = dict.fromkeys(f"{explanation.cam.shape[1]} x {explanation.cam.shape[2]}" for explanation in found)
    text = [
        "Where the last map of a classifier speaks for the class that this classifier predicts, in colour over the image in "
        "grey. Below each picture: the predicted class, its probability, and whether it is right. "
        f"{len(places)} images, taken out of {source}."
    ]
    notes = [
        f"Grad-CAM (Selvaraju et al., ICCV 2017). A map of {' or '.join(sizes)} points is stretched over the image, and every "
        "picture is scaled by its own largest value: colours of two pictures cannot be compared. It shows which places add to "
        "the logit, not why they do.",
        "The images are chosen by rule, in the order of the split: in turn one that all branches get right, one that some get "
        "right, one that none gets right. So they do not show how often a branch is right.",
    ]
    if fused_without_map:
        notes.append("The fused classifier mixes logits of the branches and reads no single map, so it has no column.")
    return Section(GRADCAM, text, notes, grid=gradcam_grid(data, places, found))


def tsne_section(run: Run, seen: Observations | None, choice: Choice, source: str, seed: int) -> Section:
    """t-SNE of the pooled features of every branch; `seen` are the images of `choice`, out of `source`. None: they are too few."""
    if seen is None:
        return Section(TSNE, missing=f"t-SNE takes at least 10 images of each of two classes, and there are only {source}")
    classes, pictures = [run.manifest.classes[c] for c in choice.classes], []
    try:
        for name, pooled in zip(run.branch_names(), seen.pooled, strict=True):
            points, title = embed(pooled, seed), f"branch {name}: {pooled.shape[1]} channels"
            alt = f"t-SNE of branch {name}: {len(points)} images of {len(classes)} classes, {', '.join(classes)}."
            pictures.append(picture(embedding_panel(points, choice.groups.tolist(), title), alt, height=3.2))
    except EnvironmentProblem as error:
        return Section(TSNE, missing=f"{error.what}: {error.hint}")
    icons = [picture(marker_icon(n), f"marker {n + 1}", width=0.18, height=0.18) for n in range(len(classes))]
    fewest, most = min(np.bincount(choice.groups)), max(np.bincount(choice.groups))
    text = [
        f"The last map of every branch, averaged over space, for {len(choice.images)} images of {source}: {len(classes)} of "
        f"{len(run.manifest.classes)} classes, {fewest if fewest == most else f'{fewest} to {most}'} images of each, the same "
        "for every branch. Images that a branch takes for alike lie together."
    ]
    notes = [
        f"t-SNE (van der Maaten and Hinton, JMLR 2008), perplexity {perplexity(len(choice.images)):.0f}, started from PCA, seed "
        f"{seed}. Only neighbourhoods mean something: sizes of clusters, distances between clusters and the axes do not, and "
        "another seed gives another picture. The classes are taken evenly from the list, not by eye; few classes are easier to "
        "tell apart than all."
    ]
    return Section(TSNE, text, notes, pictures, legend=list(zip(icons, classes, strict=True)))


def correlation_section(run: Run, seen: Observations, count: int, source: str) -> Section:
    """Correlation between the channels of the pooled map of every branch over `count` images."""
    pictures, strengths, still = [], [], []
    for name, pooled in zip(run.branch_names(), seen.pooled, strict=True):
        matrix = channel_correlation(pooled)
        strength, constant = mean_strength(matrix), int(np.isnan(np.diag(matrix)).sum())
        words = "not defined" if strength is None else f"{strength:.3f}"
        strengths.append(f"branch {name} {words}")
        if constant:
            still.append(f"{constant} of branch {name}")
        alt = f"Correlation matrix of the {len(matrix)} channels of branch {name}; mean |r| off the diagonal: {words}."
        pictures.append(picture(correlation_panel(matrix, f"branch {name}: mean |r| = {words}"), alt))
    text = [
        f"Pearson correlation of every two channels of a branch's last map, averaged over space, over {source}. Mean of |r| off "
        f"the diagonal: {', '.join(strengths)}. The paler, the more do channels tell different things."
    ]
    if still:
        text.append(f"Channels that never change in these images have no correlation and are grey: {', '.join(still)}.")
    notes = [
        "The order of channels is arbitrary, and channel 5 of one branch has nothing to do with channel 5 of another. With "
        f"{count:,} images an |r| below {2 / math.sqrt(count):.2f} cannot be told from none. Correlation also depends on which "
        "classes the images are of."
    ]
    return Section(CORRELATION, text, notes, pictures)
