"""Asks a server: pictures and tensors in, classes and logits out; blocking and asynchronous. Torch-free."""
