"""How a model becomes: recipes, data on the device, one training loop."""
