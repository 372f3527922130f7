"""The Open Inference Protocol v2 over gRPC, in the words of Triton. Torch-free."""
