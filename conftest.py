"""Eight virtual CPU devices in one process, and no silent rank promotion.

Tests compile hundreds of small programs and run each once or twice, so LLVM's
optimisation, which takes most of the time, is off; the commands under tests/e2e run in
processes of their own, as a user's would.
"""

import atexit
import gc
import os
import shutil
import tempfile

os.environ["TQDM_DISABLE"] = "1"  # stderr belongs to what is tested
os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="gen_jax_tests_")
os.environ["GEN_JAX_CACHE"] = os.path.join(os.environ["TFDS_DATA_DIR"], "cache")
atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)
# Workers and the commands that tests start compile many a program that another has
# compiled already. The first process makes the folder, the others inherit its name.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gen_jax_jit_")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
  atexit.register(
    shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
  )
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",  # MLIR's, as long again as all the rest
    "--xla_cpu_parallel_codegen_split_count=1",
  ]
).strip()

# What is imported, traced and compiled stays, and is looked through again and again.
gc.set_threshold(50_000, 20, 50)
gc.disable()  # until all is collected

import jax  # noqa: E402 (the flags must be set first)
import pytest  # noqa: E402

# Commands in processes of their own keep small programs, too.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Buckets: one server of each kind in a session, whoever asks for one.
pytest_plugins = ["tests.s3", "tests.gcs"]

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


_FIRST = (
  "tests/docs/",
  "tests/e2e/",
  "tests/train/",
  "tests/configs/",
  "tests/cost/test_plan.py",
)


def pytest_collection_modifyitems(items):
  """Files of long tests first, so that all workers end at about the same time."""
  items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))


def pytest_collection_finish():
  gc.freeze()
  gc.enable()


@pytest.fixture(scope="module")
def one_device():
  """For a module of commands: programs for eight take four times as long to compile."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    yield
