"""The pages of the site that are made, not written: a hook of MkDocs (mkdocs.yml).

The site mirrors the repository's folders, so that the links between README, docs/ and
experiments/ are the same here and there. Added to what is written are a page for each
module whose docstrings are worth reading alone, the page of config keys, and the
notebooks, run again where they have changed (EXECUTE_NOTEBOOKS=false: not run at all).
"""

import pathlib
import re

import griffe
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools import config_keys, notebooks

ROOT = pathlib.Path(__file__).parents[1]
# Rooms with a page for each module, in the order of reading.
ROOMS = {
  "diffusion": "schedule parameterisation corrupt weighting guidance grids samplers"
  " multistep codec condition editing likelihood",
  "decoding": "filters generate",
  "tasks": "base losses lm diffusion flow autoencoder conditioning lora attribution",
  "models": "transformer unet dit text_encoder autoencoder tiny_autoencoder"
  " discriminator",
  "nn": "attention kernels embed mlp norms spatial block linear widths",
  "train": "state step loop optim checkpoint evaluators writers trackers mup",
  "evaluation": "evaluators requested features fidelity scoring metrics",
  "runs": "run training weights workdir importing",
  "sweeps": "space search statistics scaling",
  "data": "sources datasets batches chat tokenizers",
}
KEPT = ".docs"  # notebooks that have been run
_COLAB = """
[Open in Colab][colab]{{ .md-button }}

On Colab, run this cell first:

```
%pip install "gen_jax[data,report,sweeps] @ git+https://github.com/{0}"
```

[colab]: https://colab.research.google.com/github/{0}/blob/main/docs/{1}
"""
LOOSE = "types ranges rng tree sharding experiment numbers"
_FRONT = """# gen_jax

::: gen_jax
    options: {filters: ["!^_", "!^InputError$", "!^Run$"]}
"""
_CLASS = """
::: gen_jax.%s
    options: {show_root_heading: true, show_root_toc_entry: true, heading: %s}
"""
FRONT = _FRONT + "".join(
  _CLASS % (path, path.rpartition(".")[2])
  for path in ("runs.run.Run", "runs.weights.Weights", "errors.InputError")
)


def modules() -> dict[str, list[str]]:
  """{room: names of its modules that have a page}; "" for those in no room."""
  rooms = {room: names.split() for room, names in ROOMS.items()}
  return {**rooms, "": LOOSE.split()}


def _api() -> tuple[dict[str, str], list]:
  """Pages by path, and their part of the navigation."""
  pages, nav = {"api/gen_jax.md": FRONT}, ["api/gen_jax.md"]
  for room, names in modules().items():
    inner = []
    if room:
      path = f"api/{room}/index.md"
      pages[path] = f"# {room}\n\n::: gen_jax.{room}\n    options: {{members: false}}\n"
      inner.append(path)
    for name in names:
      whole = f"{room}.{name}" if room else name
      path = f"api/{whole.replace('.', '/')}.md"
      pages[path] = f"# {whole}\n\n::: gen_jax.{whole}\n"
      inner.append({name: path})
    nav.append({room or "shared": inner})
  return pages, nav


def _written() -> list[str]:
  """Files of the repository that are pages, or shown on them.

  An experiment that has not been recorded has no figure yet, and no page.
  """
  globs = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/*.png")
  globs += ("docs/assets/*", "experiments/**/README.md", "experiments/**/*.png")
  found = (path for g in globs for path in sorted(ROOT.glob(g)))
  return [p.relative_to(ROOT).as_posix() for p in found if not _awaits(p.parent)]


def _awaits(folder: pathlib.Path) -> bool:
  return (folder / "sweep.py").exists() and not (folder / "results.json").exists()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Adds experiments, API and the rest to the navigation."""
  experiments = [p for p in _written() if p.startswith("experiments/") and p[-1] == "d"]
  tutorials = [
    {title: f"docs/{name.removesuffix('.ipynb')}.md"}
    for name, title in notebooks.titles().items()
  ]
  config.nav.insert(1, {"Tutorials": tutorials})
  config.nav += [
    {"Config keys": "docs/keys.md"},
    {"Experiments": experiments},
    {"API": _api()[1]},
    {"Contributing": ["CONTRIBUTING.md", "CHANGELOG.md"]},
  ]
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """The files of the site, at their places in the repository."""
  where = config.site_dir, config.use_directory_urls
  kept = [file for file in files if file.src_dir != config.docs_dir]
  kept += [File(path, str(ROOT), *where) for path in _written()]
  made: dict[str, str | bytes] = {"docs/keys.md": config_keys.page(), **_api()[0]}
  for name in notebooks.titles():
    path = notebooks.DOCS / name
    made |= _notebook(path, config.extra["execute"], config.extra["repository"])
  return Files(kept + [File.generated(config, p, content=t) for p, t in made.items()])


def _notebook(
  path: pathlib.Path, is_run: bool, repository: str
) -> dict[str, str | bytes]:
  """A notebook's page and images; the file itself, for whoever would run it.

  Args:
    repository: OWNER/NAME on GitHub, from where Colab opens it; "" if not known.
  """
  read = nbformat.read(path, as_version=4)
  made = notebooks.kept(path, ROOT / KEPT) if is_run else read
  text, images = notebooks.markdown(made, path.stem)
  title, _, rest = text.partition("\n")
  colab = _COLAB.format(repository, path.name) if repository else ""
  button = f"[The notebook]({path.name}){{ .md-button download }}"
  text = f"{title}\n\n{button}\n{colab}{rest}"
  found = {f"docs/{name}": image for name, image in images.items()}
  return {f"docs/{path.stem}.md": text, f"docs/{path.name}": path.read_bytes(), **found}


def on_page_markdown(markdown: str, page: Page, **kwargs: object) -> str:
  """What is written links to notebooks; here to their pages, which have the file."""
  is_notebook = (ROOT / page.file.src_uri).with_suffix(".ipynb").exists()
  return markdown if is_notebook else markdown.replace(".ipynb)", ".md)")


class Doctests(griffe.Extension):
  """Examples in docstrings as code: to Markdown `>>>` is a quotation."""

  def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
    """Fences runs of lines from `>>>` to the next empty one."""
    if obj.docstring is not None:
      obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
  """Text with its doctests in fences."""
  return re.sub(
    r"(?m)^>>> (?:.+\n?)+", lambda m: f"```pycon\n{m[0].strip()}\n```\n", text
  )
