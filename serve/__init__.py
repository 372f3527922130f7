"""How a model answers: a package over HTTP and gRPC, in the words of the Open Inference Protocol v2. Torch-free."""
