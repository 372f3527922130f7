"""kdzoo: train one multi-branch network, deploy any of its branches as a measured file."""

__version__ = "0.1.0"
