"""One runtime per file, or one family of them; every file registers what it holds."""
