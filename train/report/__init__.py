"""Insight pictures of a run, on one self-contained page (`kdzoo report`)."""
