"""Foreign checkpoints in and out: maps of names, safetensors, no torch, no pickle."""
