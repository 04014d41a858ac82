"""Image files: one per image, sheets of many, and a record of how they were made."""

import contextlib
import io
import json
import pathlib
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

import gen_jax
from gen_jax import errors
from gen_jax.data import image_files
from gen_jax.system import copies, files
from gen_jax.types import InputError

_ABOUT = "gen_jax"  # the text chunk of a PNG with JSON


def grid_image(images: np.ndarray, columns: int, border: int = 1) -> np.ndarray:
  """uint8 [N, H, W, C] -> one image, row by row, with white lines between."""
  rows = -(-len(images) // columns)
  n, height, width, channels = images.shape
  cells = np.full((rows * columns, height, width, channels), 255, np.uint8)
  cells[:n] = images
  cells = np.pad(cells, ((0, 0), (border, 0), (border, 0), (0, 0)), constant_values=255)
  cells = cells.reshape(rows, columns, height + border, width + border, channels)
  return cells.swapaxes(1, 2).reshape(
    rows * (height + border), columns * (width + border), channels
  )


def save_sheet(path: pathlib.Path, images: np.ndarray) -> None:
  """Writes uint8 [rows, columns, H, W, C] as one PNG, each at least 64 wide."""
  save_image(path, one_image(images))


def one_image(images: np.ndarray, least: int = 64) -> np.ndarray:
  """uint8 [rows, columns, H, W, C] -> one image, each at least `least` wide."""
  columns, height = images.shape[1:3]
  whole = grid_image(images.reshape(-1, *images.shape[2:]), columns)
  zoom = max(1, least // height)
  return whole.repeat(zoom, 0).repeat(zoom, 1)


def in_colour(images: np.ndarray) -> np.ndarray:
  """`one_image` in three channels, uint8 [height, width, 3]."""
  whole = one_image(images)
  return np.broadcast_to(whole, (*whole.shape[:2], 3))


def save_captioned(
  path: pathlib.Path, images: np.ndarray, captions: Sequence[str], columns: int = 4
) -> None:
  """Writes uint8 [N, H, W, C] as one PNG, up to three lines of text under each."""
  font, line = ImageFont.load_default(12), 15
  large = [one_image(image[None, None], least=160)[..., :3] for image in images]
  height, width = large[0].shape[:2]
  columns, rows = min(columns, len(large)), -(-len(large) // columns)
  size = (columns * width, rows * (height + 3 * line + 4))
  page = Image.new("RGB", size, "white")
  pen = ImageDraw.Draw(page)
  for i, (pixels, caption) in enumerate(zip(large, captions, strict=True)):
    x, y = i % columns * width, i // columns * (height + 3 * line + 4)
    page.paste(_pillow(pixels), (x, y))
    words = textwrap.wrap(caption, width // 7, max_lines=3, placeholder=" ...")
    for k, text in enumerate(words):
      pen.text((x + 3, y + height + 2 + k * line), text, "black", font)
  with files.replacing(path) as partial, partial.open("wb") as file:
    page.save(file, format="png")


def save_figure(
  workdir: pathlib.Path,
  name: str,
  images: np.ndarray,
  caption: str,
  rows: Sequence[str] = (),
  titles: Sequence[Sequence[str]] = (),
) -> pathlib.Path:
  """Writes a figure into WORKDIR/figures, for `gen-jax report`: PNG, PDF and caption.

  Args:
    images: uint8 [rows, columns, H, W, C].
    rows, titles: see `labelled`; without any the PNG is a `save_sheet`, and alone.
  """
  path = workdir / "figures" / f"{name}.png"
  path.parent.mkdir(exist_ok=True)
  if rows or titles:
    drawn = labelled(images, rows, titles)
    for file in (path, path.with_suffix(".pdf")):
      out = io.BytesIO()
      drawn.savefig(out, format=file.suffix[1:], dpi=150)
      files.write_bytes(file, out.getvalue())
  else:
    save_sheet(path, images)
  files.write(path.with_suffix(".txt"), caption + "\n")
  return path


def labelled(
  images: np.ndarray, rows: Sequence[str], titles: Sequence[Sequence[str]]
) -> Any:
  """A figure of matplotlib: uint8 [rows, columns, H, W, C] with words around them.

  Args:
    rows: labels at the left.
    titles: above the images of the first rows, from the left.
  """
  with errors.extra("report"):
    from matplotlib import figure
  num_rows, num_columns, height, width = images.shape[:4]
  side = min(1.2, 12.0 / num_columns)
  size = (num_columns * side + bool(rows), num_rows * side * height / width + 0.4)
  drawn = figure.Figure(figsize=size, layout="constrained")
  grid = drawn.subplots(num_rows, num_columns, squeeze=False)
  for (row, column), axis in np.ndenumerate(grid):
    axis.set(xticks=[], yticks=[], frame_on=False)
    axis.imshow(_pillow(images[row, column]), "gray", vmin=0, vmax=255)
    title = titles[row][column : column + 1] if row < len(titles) else ()
    axis.set_title(*title or [""], fontsize=8, wrap=True)
  for axis, row in zip(grid[:, 0], rows, strict=bool(rows)):
    words = "\n".join(textwrap.wrap(row, 16))
    axis.set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8)
  return drawn


def save_image(
  path: pathlib.Path,
  pixels: np.ndarray,
  zoom: int = 1,
  about: Mapping[str, Any] | None = None,
) -> None:
  """Writes uint8 [H, W, C] as PNG, each pixel `zoom` wide.

  Args:
    about: how it was made, words of JSON: text chunks that `about_image` reads.
  """
  image = _pillow(pixels)
  size = (image.width * zoom, image.height * zoom)
  chunks = PngImagePlugin.PngInfo()
  if about is not None:
    chunks.add_itxt("Description", about.get("prompt", ""))
    chunks.add_itxt(_ABOUT, json.dumps(about))
  with files.replacing(path) as partial:
    image = image.resize(size, Image.Resampling.NEAREST)
    with partial.open("wb") as file:
      image.save(file, format="png", pnginfo=chunks)


def _pillow(pixels: np.ndarray) -> Image.Image:
  return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def about_image(path: pathlib.Path) -> dict[str, Any]:
  """How an image was made: prompt, seed, index, sampling, hash of the weights, version.

  Raises:
    InputError: no image, or one that does not say.
  """
  here = copies.fetched(path)
  image_files.open_image(here)  # refuses what is none
  with Image.open(here) as image:
    text = image.info.get(_ABOUT)
  about = files.parse_json(text.encode(), str(path)) if isinstance(text, str) else None
  if not isinstance(about, dict):
    raise InputError(
      f"{path} does not say how it was made: no PNG written by gen_jax, or saved again"
      " by another program"
    )
  return about


def _paths(folder, captions: list[str], seed: int, index: list[int]):
  """The file of each image, named after its prompt, seed and index."""
  prompts = list(dict.fromkeys(captions))
  slugs = {
    prompt: "".join(c if c.isalnum() else "_" for c in prompt)[:40] or "empty"
    for prompt in prompts
  }
  if len(set(slugs.values())) < len(slugs):  # still one file per image
    slugs = {prompt: f"{n}_{slug}" for n, (prompt, slug) in enumerate(slugs.items())}
  pairs = zip(captions, index, strict=True)
  return [folder / f"{slugs[caption]}_{seed}_{i}.png" for caption, i in pairs]


def write_images(
  folder: pathlib.Path,
  draw: Callable[[int], Iterable[np.ndarray]],
  size: int,
  captions: list[str],
  seed: int,
  index: list[int],
  columns: int,
  how: dict,
) -> dict:
  """Writes each image as it is drawn, then grid.png, and prompts.json at the start.

  An interrupted command resumes at the first incomplete batch: images are kept if
  prompts.json says that they were drawn in the same way. What is drawn in another way
  is replaced, with a line that says so. Each image says how it was made, see
  `about_image`.

  Args:
    draw: number of an image -> batches uint8 [n, H, W, C] from it on.
    size: of every batch but the last.
    index: of each image among those of its prompt.
    how: written to prompts.json, next to the prompts.
  """
  paths = _paths(folder, captions, seed, index)
  prompts = list(dict.fromkeys(captions))
  record = {"prompts": prompts, "seed": seed, **how, "images": [p.name for p in paths]}
  record = json.loads(json.dumps(record))  # as JSON reads it back
  made = {k: v for k, v in how.items() if k not in _LOCAL}
  made["gen_jax"] = gen_jax.__version__
  writes, about = jax.process_index() == 0, folder / "prompts.json"
  before, done = None, 0
  with contextlib.suppress(InputError):
    before = files.read_json(about)
  if how.get("sha256") and before == record:
    done = next((i for i, p in enumerate(paths) if not p.exists()), len(paths))
  start = done // size * size if done < len(paths) else done
  is_begun = start > 0
  at = start
  for images in draw(start) if start < len(paths) else ():
    if writes and not is_begun:  # files of these names may show other images
      _clear(paths, before, record)
      files.write_json(about, record)
    is_begun = True
    for i, image in enumerate(images, at):
      if writes:
        told = {"prompt": captions[i], "seed": seed, "index": index[i], **made}
        save_image(paths[i], image, about=told)
    at += len(images)
  if writes:
    images = np.stack([open_own(path) for path in paths])
    zoom = max(1, 64 // images.shape[1])
    save_image(folder / "grid.png", grid_image(images, columns), zoom)
  print(f"{len(paths)} images in {folder}, all of them in {folder / 'grid.png'}")
  samples = [
    {"prompt": caption, "path": str(path), "seed": seed, "index": i}
    for caption, path, i in zip(captions, paths, index, strict=True)
  ]
  return {"samples": samples, "grid": str(folder / "grid.png")}


_LOCAL = ("image", "mask")  # paths, that mean nothing elsewhere


def _clear(paths: list[pathlib.Path], before: Any, record: dict) -> None:
  """Removes images that were drawn in another way, and says what was different."""
  replaced = [path for path in paths if path.exists()]
  before = before if isinstance(before, dict) else {}
  differ = [
    f"{name} was {before.get(name)!r:.60}, is {value!r:.60}"
    for name, value in record.items()
    if name != "images" and before.get(name) != value
  ]
  why = f" ({'; '.join(differ[:3])})" if before and differ else ""
  if replaced:
    where = f"{len(replaced)} images in {paths[0].parent}"
    print(f"replacing {where} that were drawn in another way{why}", flush=True)
  for path in replaced:
    path.unlink(missing_ok=True)


def open_own(path: pathlib.Path) -> np.ndarray:
  """Reads uint8 [H, W, C] of an image written by `save_image`."""
  with Image.open(io.BytesIO(path.read_bytes())) as image:
    pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels
