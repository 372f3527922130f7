"""One backbone family per file; every file registers what it holds."""
