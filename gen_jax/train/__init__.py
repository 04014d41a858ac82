"""The trainer, for any model: state, step, loop, checkpoints, evaluators, writers."""
