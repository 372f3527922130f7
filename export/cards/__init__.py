"""Model cards, written from JSON and nothing else. Torch-free."""
