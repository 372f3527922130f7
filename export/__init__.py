"""How a model leaves: ONNX and engines, measured, packaged, with a card."""
