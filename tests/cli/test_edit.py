"""`gen-jax edit`: what of an image is drawn, and what is said of the rest."""

import numpy as np
import pytest
from PIL import Image

from gen_jax.inference import drawing
from gen_jax.types import InputError

LEFT = np.repeat(np.arange(6)[None] < 2, 4, 0)


def read(folder, mask=None, outpaint=None, channels=3):
  """An image of 6 x 4, and what of it changes by --mask and --outpaint."""
  Image.new("RGB", (6, 4), (9, 8, 7)).save(folder / "image.png")
  if mask is not None:
    Image.fromarray(mask).save(folder / "mask.png")
    mask = folder / "mask.png"
  edit = drawing.Edit(folder / "image.png", mask=mask, outpaint=outpaint)
  return edit.pixels(channels)


def test_what_changes(tmp_path):
  assert read(tmp_path)[1].all()
  np.testing.assert_array_equal(read(tmp_path, LEFT)[1], LEFT)
  image, change = read(tmp_path, outpaint="0,1,2,0")
  assert image.shape == (5, 8, 3) and not change[1:, :6].any()
  assert change.sum() == 5 * 8 - 4 * 6
  image, change = read(tmp_path, LEFT, "0,0,1,0", channels=1)
  assert image.shape == (4, 7, 1) and change.sum() == LEFT.sum() + 4
  assert read(tmp_path, ~LEFT & LEFT, "0,0,1,0")[1].sum() == 4


def test_image_and_mask_are_resized_alike(tmp_path):
  """The centre of both; what changes stays where it is in the image."""
  pixels = np.zeros((40, 60, 3), np.uint8)
  pixels[:, 30:] = 200
  change = np.zeros((40, 60), bool)
  change[:, 30:] = True
  how = {"resize": 10}
  image, cut = drawing.Edit(pixels, mask=change, **how).pixels(1)
  assert image.shape == (10, 10, 1) and cut.shape == (10, 10)
  np.testing.assert_array_equal(cut, image[..., 0] > 100)
  assert cut[:, 5:].all() and not cut[:, :5].any()
  with pytest.raises(InputError, match="--resize 0 must be in"):
    drawing.Edit(pixels, resize=0).check({})


@pytest.mark.parametrize(
  "given, says",
  [
    (
      dict(mask=np.zeros((4, 6), np.uint8)),
      "nothing of the image may change by --mask",
    ),
    (dict(mask=np.full((4, 6), 127, np.uint8)), "so nothing is drawn"),
    (dict(outpaint="0,0,0,0"), "by --outpaint, so"),
    (dict(mask=np.zeros((4, 6), np.uint8), outpaint="0,0,0,0"), "--mask and --outp"),
    (dict(mask=LEFT[:, :5]), "is 5x4 pixels, the image 6x4"),
    (dict(mask=LEFT[:3], outpaint="0,1,0,0"), "is 6x3 pixels, the image 6x4"),
  ],
)
def test_masks_that_change_nothing_or_do_not_fit_are_refused(tmp_path, given, says):
  with pytest.raises(InputError, match=says):
    read(tmp_path, **given)
