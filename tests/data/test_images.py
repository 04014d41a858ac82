"""Image files are read as a viewer shows them, masks as they are meant."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gen_jax import types
from gen_jax.data import image_files

# What brings an upright image to how a camera stores it, by EXIF orientation.
STORED = {
  1: None,
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_90,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_270,
}


def opened(tmp_path, image, kind="png", **options):
  path = tmp_path / f"a.{kind}"
  image.save(path, **options)
  return image_files.open_image(path)


@pytest.mark.parametrize("kind", ["png", "webp", "jpg", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(tmp_path, kind, orientation):
  upright = np.zeros((32, 48, 3), np.uint8)
  upright[:16, :, 0], upright[:, :24, 2] = 255, 255  # no symmetry
  image = Image.fromarray(upright)
  if STORED[orientation] is not None:
    image = image.transpose(STORED[orientation])
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"lossless": True} if kind == "webp" else {}
  options |= {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
  read = opened(tmp_path, image, kind, exif=exif, **options)
  assert read.shape == upright.shape
  assert np.abs(read.astype(int) - upright).max() <= (4 if kind == "jpg" else 0)


def test_an_orientation_that_is_none_turns_nothing(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 9
  assert opened(tmp_path, Image.new("RGB", (4, 2)), exif=exif).shape == (2, 4, 3)


def png(bits, colour, row, clear):
  """Two pixels in a PNG whose tRNS chunk says which value is transparent."""

  def chunk(kind, data):
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check

  header = struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0)
  pixels = chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
  head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
  return head + chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) + pixels


@pytest.mark.parametrize(
  "bits, row, clear, left, right",
  [
    (1, bytes([0b01000000]), 0, 255, 255),
    (2, bytes([0b01100000]), 1, 255, 170),
    (4, bytes([0x12]), 2, 17, 255),
    (8, bytes([1, 2]), 1, 255, 2),
    (16, struct.pack(">HH", 0x0101, 0x0102), 0x0101, 255, 1),
    (16, struct.pack(">HH", 0x0101, 0x0102), 0x0102, 1, 255),
  ],
)
def test_one_transparent_grey_at_every_depth(tmp_path, bits, row, clear, left, right):
  path = tmp_path / "a.png"
  path.write_bytes(png(bits, 0, row, [clear]))
  assert image_files.open_image(path)[0, :, 0].tolist() == [left, right]


LEVELS = np.array([[0, 255, 256, 0x80FF, 0xFFFF]], np.uint16)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_are_their_upper_eight(tmp_path, kind):
  read = opened(tmp_path, Image.fromarray(LEVELS), kind)
  assert read[0, :, 1].tolist() == (LEVELS[0] >> 8).tolist()


@pytest.mark.parametrize("tag, value", [(262, 0), (258, 12)])
def test_other_sixteen_bits_of_tiff_are_not_guessed(tmp_path, tag, value):
  """Zero is white; or there are twelve bits in sixteen, which would be nearly black."""
  path = tmp_path / "a.tif"
  Image.fromarray(np.resize(LEVELS, (2, 8))).save(path)
  data = bytearray(path.read_bytes())
  at = data.index(struct.pack("<HHI", tag, 3, 1))
  data[at + 8 : at + 10] = struct.pack("<H", value)
  path.write_bytes(data)
  with pytest.raises(types.InputError, match="not a readable image"):
    image_files.open_image(path)


@pytest.mark.parametrize(
  "image, pixel",
  [
    (Image.new("RGBA", (4, 4), (9, 8, 7, 0)), [255, 255, 255]),
    (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), [204, 204, 204]),
    (Image.new("LA", (4, 4), (0, 0)), [255, 255, 255]),
    (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), [255, 0, 0]),
  ],
)
def test_transparent_parts_lie_on_white(tmp_path, image, pixel):
  read = opened(tmp_path, image, "tif")
  assert read.shape == (4, 4, 3) and read[0, 0].tolist() == pixel


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "tif"])
def test_several_frames_are_refused(tmp_path, kind):
  """But for the preview that a phone puts behind its photograph (MPO)."""
  red, blue = (Image.new("RGB", (8, 8), name) for name in ("red", "blue"))
  with pytest.raises(types.InputError, match="it has 2 frames"):
    opened(tmp_path, red, kind, save_all=True, append_images=[blue])
  path = tmp_path / "phone.jpg"
  red.save(path, "MPO", save_all=True, append_images=[blue])
  assert image_files.open_image(path)[0, 0, 0] > 250


def test_a_bomb_and_nothing_are_refused(tmp_path, monkeypatch):
  path = tmp_path / "a.png"
  Image.new("L", (64, 64)).save(path)
  with monkeypatch.context() as m:
    m.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(types.InputError, match="bomb"):
      image_files.open_image(path)
  for content in (b"", b"%!PS-Adobe-3.0 EPSF-3.0", path.read_bytes()[:60]):
    path.write_bytes(content)
    with pytest.raises(types.InputError, match=r"a\.png is not a readable image"):
      image_files.open_image(path)
  with pytest.raises(types.InputError, match="cannot read"):
    image_files.open_image(tmp_path)


def hole(colour, alpha=0, rest=255):
  """RGBA 4 x 4: `colour`, and the left half of opacity `alpha`."""
  array = np.full((4, 4, 4), (*colour, rest), np.uint8)
  array[:, :2, 3] = alpha
  return Image.fromarray(array)


LEFT = np.repeat(np.arange(4)[None] < 2, 4, 0)
PHOTO = np.random.default_rng(0).integers(0, 256, (4, 4, 4), np.uint8)
PHOTO[..., 3] = np.where(LEFT, 0, 255)


@pytest.mark.parametrize(
  "mask",
  [
    Image.fromarray(np.uint8(255 * LEFT)),
    Image.fromarray(LEFT),
    Image.fromarray(np.uint16(0x8000 * LEFT)),
    Image.fromarray(np.uint8(255 * LEFT)).convert("RGB"),
    Image.fromarray(np.uint8(255 * LEFT)).convert("RGBA"),
    Image.fromarray(np.uint8(255 * LEFT)).convert("P"),
    hole((0, 0, 0)),
    hole((128, 128, 128)),
    Image.fromarray(PHOTO),
  ],
  ids=["L", "1", "I;16", "RGB", "RGBA", "P", "black", "grey", "photo"],
)
def test_white_and_holes_are_what_changes(tmp_path, mask):
  mask.save(tmp_path / "mask.png")
  np.testing.assert_array_equal(image_files.open_mask(tmp_path / "mask.png"), LEFT)


@pytest.mark.parametrize(
  "mask, says",
  [
    (hole((255, 255, 255)), "white parts and transparent ones"),
    (hole((0, 0, 0), 0, 0), "fully transparent"),
    (Image.new("RGB", (4, 4), "red"), "coloured"),
  ],
)
def test_a_mask_that_could_mean_either_is_refused(tmp_path, mask, says):
  mask.save(tmp_path / "mask.png")
  with pytest.raises(types.InputError, match=says):
    image_files.open_mask(tmp_path / "mask.png")


def test_a_mask_is_turned_upright_like_its_image(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  stored = Image.fromarray(np.uint8(255 * LEFT)).transpose(STORED[6])
  stored.save(tmp_path / "mask.png", exif=exif)
  np.testing.assert_array_equal(image_files.open_mask(tmp_path / "mask.png"), LEFT)


def test_channels_are_luminance_or_grey_three_times():
  grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  np.testing.assert_array_equal(
    image_files.in_channels(image_files.in_channels(grey, 3), 1), grey
  )
  red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
  assert image_files.in_channels(red, 1).tolist() == np.full((2, 2, 1), 76).tolist()
  assert image_files.to_square(red, 2, 1)[0, 0, 0] == 76


def test_what_is_cut_off_is_said():
  assert image_files.cut_off([(4, 4), (7, 7)], 2) is None
  said = image_files.cut_off([(4, 4), (4, 8), (4, 3)], 3)
  assert said.startswith("2 of 3 images are not square: up to 50 % of one is cut off")
  assert "1 of 1 images looked at (9 in all)" in image_files.cut_off([(1, 2)], 9)
  assert len(image_files.evenly(range(5001), 2000)) <= 2000
  assert list(image_files.evenly([1, 2], 2000)) == [1, 2]


def test_reading_gives_all_that_is_in_a_stream(tmp_path):
  """A file that ends early is refused whatever its format."""
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  for kind in ("png", "jpeg", "webp", "bmp", "gif", "tiff"):
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(types.InputError, match="is not a readable image"):
      image_files.open_image(path)
