"""One paper per file; every file registers its method."""
