"""gen_jax: decoder-only transformers and text-conditioned diffusion, one trainer."""

import os

__version__ = "0.1.0"

# On CPUs XLA hands convolutions to YNNPACK, whose gradient of the kernel takes two to
# five times as long as Eigen's (experiments/benchmarks). XLA reads this when the first
# program is compiled; other platforms pass over it, and a choice already made stays.
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = (
    f"{_FLAG}=-individual_convolution {os.environ.get('XLA_FLAGS', '')}".strip()
  )


def open(workdir, overrides=()):
  """The run of a folder, a `gen_jax.Run`.

  Args:
    workdir: that `gen-jax train`, `gen-jax import` or `Run.train` has written.
    overrides: {dotted key: value} of what does not change the model: `mesh.fsdp`, say.

  Raises:
    InputError: no run, half of one, a damaged one, or one of a newer format.
  """
  from gen_jax.runs import run  # takes seconds: an import of gen_jax does not wait

  return run.open_run(workdir, overrides)


def new(config, workdir, overrides=()):
  """The run of a config in a folder, a `gen_jax.Run`; `train` begins or resumes it.

  Args:
    config: "FILE[:ARG]" of a config file, a ConfigDict or a dict.
    workdir: where all goes; one of the same config is gone on with.
    overrides: {dotted key: value}.

  Raises:
    InputError: a bad config, or a folder of another one.
  """
  from gen_jax.runs import run

  return run.new(config, workdir, overrides)


def __getattr__(name):
  """InputError and Run, imported when they are asked for."""
  if name == "InputError":
    from gen_jax import types

    return types.InputError
  if name == "Run":
    from gen_jax.runs import run

    return run.Run
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
