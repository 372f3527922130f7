"""From a checkpoint and, where they are at hand, test images to the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ...errors import UsageError
from ...zoo.checkpoint import Checkpoint
from ...zoo.datasets import ImageSplit
from ...zoo.manifest import library_versions
from .facts import read_run
from .feature_sections import correlation_section, gradcam_section, tsne_section
from .gradcam import choose_images, columns, explain
from .measures import choose_classes, spread
from .observe import in_memory, normalized, observe
from .page import page
from .run_sections import accuracy_section, curves_section, distance_section
from .section import CORRELATION, GRADCAM, TSNE, Section

NUM_EXPLAINED = 6
SEED = 0


@dataclass(frozen=True)
class Images:
    """The test images to look at. `data` is None where there are none; `words` says what they are ("the 10,000 test images
    of ..."), or why there are none."""

    data: ImageSplit | None
    words: str


@dataclass(frozen=True)
class Report:
    """The page, and for each section `drawn` or why it is left out."""

    html: str
    sections: dict[str, str]


def build_report(
    checkpoint: Checkpoint,
    images: Images,
    *,
    samples: int = 2000,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Look at `samples` of the images, spread over the split (t-SNE: at most 500, by class), and write the page. The same run,
    images and libraries give the same page.

    Raises:
        UsageError: the images are of other classes than the network.
        EnvironmentProblem: matplotlib is not installed.
        IntegrityError: a file of the run is not whole.
    """
    manifest, data, place = checkpoint.manifest, images.data, torch.device(device)
    if data is not None and data.classes != manifest.classes:
        raise UsageError(
            f"the images are of {len(data.classes)} classes, which are not the {len(manifest.classes)} of the network",
            known=[*manifest.classes[:3], "..."], hint="give the data set of the run",
        )  # fmt: skip
    network = checkpoint.network().to(place)
    run = read_run(checkpoint, network)
    sections = [accuracy_section(run), curves_section(run)]
    if data is None:
        sections.append(distance_section(run, None, images.words))
        sections += [Section(key, missing=images.words) for key in (GRADCAM, TSNE, CORRELATION)]
    else:
        places, choice = spread(len(data), samples), choose_classes(data.labels)
        words = f"{len(places):,} of {images.words}" if len(places) < len(data) else images.words
        say(f"looking at {words}")
        some = in_memory(data, places)
        seen = observe(network, some, manifest.preprocess, place)
        sections.append(distance_section(run, seen, words))

        chosen = np.asarray(choose_images(seen.predicted(), some.labels.tolist(), NUM_EXPLAINED))
        few, wanted = in_memory(some, chosen), columns(network, run.branch_names())
        found = explain(network, normalized(few.images, manifest.preprocess, place), wanted)
        lacks = network.fused is not None and network.fused not in {column.logits for column in wanted}
        sections.append(gradcam_section(few, places[chosen].tolist(), found, words, fused_without_map=lacks))

        grouped = None
        if len(choice.classes) > 1:
            say(f"placing {len(choice.images)} images by t-SNE")
            grouped = observe(network, in_memory(data, choice.images), manifest.preprocess, place)
        sections.append(tsne_section(run, grouped, choice, images.words, SEED))
        sections.append(correlation_section(run, seen, len(some), words))
    versions = library_versions("kdzoo", "torch", "matplotlib", "scikit-learn")
    footer = f"Written by kdzoo report with {', '.join(f'{n} {v}' for n, v in versions.items())}."
    return Report(page(run, sections, footer), {s.key: s.missing or "drawn" for s in sections})
