"""Labelled images as they lie on disk, one layout per file, and the processes that decode them. `zoo.datasets` picks the layout."""
