"""A profile: times of nested operations, and a real trace of a real step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.train import profile


def test_own_times_add_up_to_the_time_covered():
  """For any nesting: what lies inside an event is taken from it alone."""
  draw, events = np.random.default_rng(0), []

  def nest(start, end, depth):
    events.append(profile.Event(f"{depth}", start, end))
    if depth < 4:
      cuts = np.sort(draw.integers(start, end + 1, 4))
      nest(int(cuts[0]), int(cuts[1]), depth + 1)
      nest(int(cuts[2]), int(cuts[3]), depth + 1)

  nest(0, 10_000, 0)
  nest(20_000, 21_000, 0)
  draw.shuffle(events)
  events = [profile.Event(*event) for event in events]
  events = [e._replace(start=int(e.start), end=int(e.end)) for e in events]
  own = profile.own_times(events)
  assert sum(duration for _, duration in own) == profile.covered(events) == 11_000
  assert all(duration >= 0 for _, duration in own)


def square(x, times):
  for _ in range(times):
    x = x @ x / 100.0
  return x


@pytest.mark.parametrize(
  "between, at, profiled",
  [((1, 3), 0, "1 to 2"), ((2, 9), 0, "2 to 4"), ((1, 5), 3, "3 to 4")],
)
def test_a_trace_of_steps_in_the_middle(tmp_path, between, at, profiled):
  """Results are the step's; the table names its operations, also if training ends."""
  step, said, x = jax.jit(square, static_argnums=1), [], jnp.ones((100, 100))
  with profile.traced(step, between, at, tmp_path, said.append) as traced:
    for _ in range(5 - at):
      x = traced(x, 3)
      jax.jit(jnp.sin)(x).block_until_ready()
  np.testing.assert_array_equal(x, np.ones((100, 100)))
  assert said[0] == f"profile of steps {profiled}, in {tmp_path}"
  (dot,) = (line.split() for line in said if line.endswith("dot_general"))
  assert float(dot[1]) > 0 and not any(line.endswith("sin") for line in said)
  assert len(list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))) == 1


def test_a_device_without_operations_is_passed_over(tmp_path):
  """libtpu, once loaded, adds a device of its own to traces of a CPU."""
  step = jax.jit(square, static_argnums=1)
  with profile.traced(step, (0, 1), 0, tmp_path, lambda line: None) as traced:
    traced(jnp.ones((4, 4)), 1)
  (path,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
  name = b"/device:CUSTOM:Megascale Trace"
  plane = bytes([0x12, len(name)]) + name  # XPlane.name; planes are field 1 of XSpace
  content = path.read_bytes() + bytes([0x0A, len(plane)]) + plane
  other = tmp_path / "other.xplane.pb"
  other.write_bytes(content)
  assert name.decode() in {
    plane.name for plane in jax.profiler.ProfileData.from_file(str(other)).planes
  }
  assert profile.read(other, "jit_square") == profile.read(path, "jit_square") != []


@pytest.mark.parametrize("between", [(7, 9), (1, 3)])
def test_steps_that_do_not_come_leave_a_line_alone(tmp_path, between):
  step, said = jax.jit(square, static_argnums=1), []
  with profile.traced(step, between, 4, tmp_path, said.append) as traced:
    traced(jnp.ones((4, 4)), 1)
  (line,) = said
  assert line.startswith(f"no profile of steps {between[0]} to {between[1] - 1}")
  assert line.endswith("from step 4 to 5")
  assert not list(tmp_path.iterdir())
