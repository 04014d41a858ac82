"""The trainer: state, step, loop, checkpoints, evaluators, writers. Knows no model."""
