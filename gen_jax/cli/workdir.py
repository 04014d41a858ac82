"""Old names of `gen_jax.runs.workdir`, for one release more: see `gen_jax.open`."""

from gen_jax.runs.workdir import claim, latest_step, read_config

__all__ = ("claim", "latest_step", "read_config")
