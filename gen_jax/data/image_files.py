"""Image files, read alike for training, editing and evaluation.

Images are rotated by their EXIF orientation; transparent parts become white; 16 bits
are reduced to the upper eight. Colour profiles (ICC) are not applied, as in the
training pipelines of published models.
"""

import contextlib
import io
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps

from gen_jax.errors import InputError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SUFFIXES += (".jpe", ".jfif")
# Image formats that are not supported: an error, never skipped.
FOREIGN = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2")
FOREIGN += (".nef", ".arw", ".exr", ".tga")

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr")
_GREY = 32  # how far apart the channels of a mask's grey may be


@contextlib.contextmanager
def _opened(
  path: pathlib.Path | str, content: bytes | None = None
) -> Iterator[Image.Image]:
  """An image file with its header read; any error becomes an InputError.

  Args:
    content: of the file, if it is not one of its own; `path` then says where it is.
  """
  given = path if content is None else io.BytesIO(content)
  try:
    with Image.open(given, formats=_FORMATS) as file:
      yield file
  except Exception as error:  # damaged files make Pillow raise many kinds
    if isinstance(error, OSError) and error.errno:  # the disk's
      raise InputError(f"cannot read {path}: {error.strerror}") from None
    raise InputError(
      f"{path} is not a readable image ({one_line(error)}); repair or remove it"
    ) from None


def _check_kind(file: Image.Image) -> None:
  """Raises ValueError for images that Pillow would read wrongly."""
  if not (file.mode in _MODES or file.mode.startswith("I;16")):
    raise ValueError(f"mode {file.mode}; 8 or 16 bits per channel are needed")
  if getattr(file, "is_animated", False) and file.format != "MPO":  # of a phone
    raise ValueError(f"it has {file.n_frames} frames; save one of them")
  if file.format == "TIFF" and file.mode.startswith("I;16"):
    bits, white = file.tag_v2.get(258), file.tag_v2.get(262) == 0
    if white or bits != (16,):
      raise ValueError(f"{bits} bits, zero is {'white' if white else 'black'}")
  clear = file.info.get("transparency")
  if file.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
    raise ValueError("one colour of 16 bits is transparent; save it with alpha")


def _read(path: pathlib.Path | str, content: bytes | None = None) -> Image.Image:
  """An upright image: RGBA if parts of it may be transparent, else RGB."""
  with _opened(path, content) as file:
    _check_kind(file)
    stored = file.tile[0][3] if file.tile else None
    image = ImageOps.exif_transpose(file)
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to white
      values = np.asarray(image)
      image = Image.fromarray((values >> 8).astype(np.uint8))
      if clear is not None:
        image.putalpha(Image.fromarray(np.uint8(255 * (values != clear))))
    elif stored in ("L;2", "L;4") and clear is not None:
      # Pillow scales these pixels to 0 .. 255, but not the transparent value.
      image.info["transparency"] = clear * (85 if stored == "L;2" else 17)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def open_image(path: pathlib.Path) -> np.ndarray:
  """uint8 [H, W, 3]; transparent parts become white.

  Raises:
    InputError: damaged, not of a format in `SUFFIXES`, or with several frames.
  """
  return _on_white(_read(path))


def decoded(content: bytes, where: str) -> np.ndarray:
  """`open_image` of the bytes of a file, which is at `where`."""
  return _on_white(_read(where, content))


def _on_white(image: Image.Image) -> np.ndarray:
  if image.mode == "RGBA":
    paper = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(paper, image)
  return np.asarray(image.convert("RGB"))


def open_mask(path: pathlib.Path) -> np.ndarray:
  """bool [H, W], True where the image may change: white, or transparent.

  Without transparency, white changes and black stays; with transparency, transparent
  parts change and all else stays.

  Raises:
    InputError: ambiguous between the two; coloured; fully transparent; see
      `open_image`.
  """
  image = _read(path)
  colours = np.asarray(image.convert("RGB"), np.int16)
  shown = np.ones(colours.shape[:2], np.bool_)
  if image.mode == "RGBA":
    shown = np.asarray(image)[..., 3] >= 128
  grey = np.asarray(image.convert("RGB").convert("L"))
  rest = grey[shown]
  if not shown.any():
    raise InputError(f"mask {path} is fully transparent; make white what changes")
  if shown.all():
    if (np.ptp(colours, axis=-1) > _GREY).any():
      raise InputError(
        f"mask {path} is coloured; make white what changes and black what stays"
      )
    return grey >= 128
  if (rest > 239).any() and ((rest > 239) | (rest < 16)).all():
    raise InputError(
      f"mask {path} has white parts and transparent ones, and either could be what"
      " changes; save it without transparency: white changes, black stays"
    )
  return ~shown


def in_channels(image: np.ndarray, channels: int) -> np.ndarray:
  """uint8 [H, W, 1 or 3] -> [H, W, channels]: luminance, or grey repeated."""
  kind = getattr(image, "dtype", type(image).__name__)
  shape = getattr(image, "shape", ())
  if kind != np.uint8 or len(shape) != 3 or shape[-1] not in (1, 3) or 0 in shape:
    raise InputError(
      f"an image is {kind} {[*shape]}; uint8 [H, W, C] with C of 1 or 3 is needed"
    )
  if channels == image.shape[-1]:
    return image
  if channels == 3:
    return np.repeat(image, 3, -1)
  return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def to_square(image: np.ndarray, size: int, channels: int) -> np.ndarray:
  """Centre-crops and resizes uint8 [H, W, C] to [size, size, channels] (bilinear)."""
  image = in_channels(image, channels)
  whole = Image.fromarray(image[..., 0] if channels == 1 else image)
  side = min(whole.size)
  left, top = ((extent - side) // 2 for extent in whole.size)
  box = (left, top, left + side, top + side)
  square = whole.crop(box).resize((size, size), Image.Resampling.BILINEAR)
  return np.asarray(square).reshape(size, size, channels)


def size(path: pathlib.Path) -> tuple[int, int]:
  """Width and height in the header, before rotation by EXIF."""
  with _opened(path) as file:
    _check_kind(file)
    return file.size


def evenly(items: Sequence, most: int) -> Sequence:
  """At most `most` items, evenly spaced.

  >>> evenly(range(10), 4)
  range(0, 10, 3)
  """
  return items[:: max(1, -(-len(items) // most))]


def cut_off(sizes: Sequence[tuple[int, int]], num: int) -> str | None:
  """One line about what a centre crop to squares removes; None if nothing.

  Args:
    sizes: (width, height) of some of `num` images.

  >>> cut_off([(3, 4), (5, 5)], 2)[:47]
  '1 of 2 images are not square: up to 25 % of one'
  """
  shares = [1.0 - min(pair) / max(pair) for pair in sizes]
  cropped = [share for share in shares if share > 0]
  if not cropped:
    return None
  seen = "images" if len(sizes) == num else f"images looked at ({num} in all)"
  return (
    f"{len(cropped)} of {len(sizes)} {seen} are not square: up to"
    f" {100 * max(cropped):.0f} % of one is cut off, half on either side; crop them"
    " yourself if that matters"
  )
