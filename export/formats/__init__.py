"""One export format per file; every file registers its format."""
