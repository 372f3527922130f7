"""What a model is: backbones, methods, networks, checkpoints. Imports nothing of ours but `errors`."""
