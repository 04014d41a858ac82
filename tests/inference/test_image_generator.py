"""Pixels as they are written."""

import numpy as np
import pytest

from gen_jax.inference import image_generator
from gen_jax.types import InputError


def test_pixels_that_are_no_numbers_are_not_black():
  found = image_generator.to_uint8(np.array([-1.0, 0.0, 1.0, np.inf, -9.0]))
  assert found.tolist() == [0, 128, 255, 255, 0]
  with pytest.raises(InputError, match="no numbers: draw with a lower guidance_scale"):
    image_generator.to_uint8(np.array([0.0, np.nan]))
