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
    config: as `gen-jax train` takes it: "NAME[:ARG]" of a config, its file or module
      (`gen-jax list` names ours), or another run's workdir; a ConfigDict or a dict.
    workdir: where everything is written; a run of the same config there is resumed.
    overrides: {dotted key: value}.

  Raises:
    InputError: a bad config, or a folder of another one.
  """
  from gen_jax.runs import run

  return run.new(config, workdir, overrides)


def register(kind, made, name=None):
  """Gives a function or class a name in configs, as if it were one of gen_jax.

  A run's config records the module that calls this, and imports it again when the run
  is opened; of a script or notebook it cannot. See `gen_jax.build.registry`.

  Args:
    kind: the block of a config that may name it: "attention_impl", "norm", "sampler",
      "optimizer", "task", ... ; what it must be stands in the files that
      CONTRIBUTING.md names.
    made: the function or class. Its keyword arguments are the block's keys.
    name: in configs; None: its own.

  Raises:
    InputError: no such kind, or a name that is taken.
  """
  import sys

  from gen_jax.build import registry

  registry.register(kind, made, name, sys._getframe(1).f_globals)


def __getattr__(name):
  """InputError and Run, imported when they are asked for."""
  if name == "InputError":
    from gen_jax import types

    return types.InputError
  if name == "Run":
    from gen_jax.runs import run

    return run.Run
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
