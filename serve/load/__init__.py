"""Loads a server: closed and open loops, latencies and errors. Torch-free."""
