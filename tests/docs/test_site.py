"""The site builds, its links lead somewhere, it loads nothing from elsewhere."""

import html.parser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import pytest

from tools import docs_site

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / p for p in docs_site._written() if p.endswith(".md")]


def _anchors(path):
  """Anchors of a Markdown file's headings, as GitHub makes them."""
  text = re.sub(r"(?ms)^```.*?^```", "", path.read_text())
  heads = re.findall(r"(?m)^#+ (.*)$", text)
  words = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
  return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_what_is_written_lead_somewhere(path):
  """In the repository itself: files are there, and headings in them."""
  text = re.sub(r"(?ms)^```.*?^```", "", path.read_text())
  for link in re.findall(r"\]\(([^)\s]+)\)", text):
    file, _, anchor = link.partition("#")
    if not file.startswith(("https://", "http://")):
      target = (path.parent / file).resolve() if file else path
      assert target.exists(), link
      assert not anchor or anchor in _anchors(target), link


def test_doctests_are_fenced():
  """Each up to its empty line; other text stays as it is."""
  text = "One.\n\n>>> 1 + 1\n2\n>>> 2\n2\n\nTwo > 1.\n\n>>> 3\n3"
  assert docs_site.fenced(text) == (
    "One.\n\n```pycon\n>>> 1 + 1\n2\n>>> 2\n2\n```\n\nTwo > 1.\n\n"
    "```pycon\n>>> 3\n3\n```\n"
  )


def test_notebooks_open_in_colab_where_the_repository_is_known():
  path = ROOT / "docs" / "first_steps.ipynb"
  page = docs_site._notebook(path, False, "someone/something")["docs/first_steps.md"]
  url = "https://colab.research.google.com/github/someone/something/blob/main/docs/"
  assert f"[colab]: {url}first_steps.ipynb" in page
  assert "git+https://github.com/someone/something" in page
  assert "olab" not in docs_site._notebook(path, False, "")["docs/first_steps.md"]


class _Page(html.parser.HTMLParser):
  """Anchors of a page, links to others, and what it loads."""

  def __init__(self, text):
    super().__init__()
    self.anchors, self.links, self.loads = set(), set(), set()
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
    if "href" in attrs and tag == "a":
      self.links.add(attrs["href"])
    self.loads |= {attrs[key] for key in ("src", "data-src") if attrs.get(key)}
    if tag == "link" and attrs.get("rel") in ("stylesheet", "icon", "preload"):
      self.loads.add(attrs["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The site, built strictly: links that lead nowhere fail, and pages without links."""
  folder = tmp_path_factory.mktemp("site")
  words = ("-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder))
  own = {"EXECUTE_NOTEBOOKS": "false", "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": "."}
  built = subprocess.run(
    [sys.executable, *words],
    cwd=ROOT,
    env={**os.environ, **own},
    capture_output=True,
    text=True,
  )
  assert built.returncode == 0, built.stdout + built.stderr
  pages = {path: _Page(path.read_text()) for path in folder.rglob("*.html")}
  return folder, pages


@pytest.mark.long
def test_links_and_anchors_of_the_site_lead_somewhere(site):
  _, pages = site
  assert len(pages) > 80
  for path, page in pages.items():
    for link in page.links | page.loads:
      url = urllib.parse.urlsplit(link)
      if url.scheme or path.name == "404.html":
        continue
      file = urllib.parse.unquote(url.path)
      target = (path.parent / file).resolve() if file else path
      assert target.is_file(), (path, link)
      anchor = urllib.parse.unquote(url.fragment)
      assert not anchor or anchor in pages[target].anchors, (path, link)


@pytest.mark.long
def test_the_site_loads_nothing_from_elsewhere(site):
  """Pages can be read, and searched, without a network and without a server."""
  folder, pages = site
  for path, page in pages.items():
    assert not [url for url in page.loads if "//" in url], path
  assert (folder / "search" / "search_index.js").is_file()
  assert "docs/assets/iframe-worker.js" in (folder / "index.html").read_text()


@pytest.mark.long
def test_pages_of_modules_show_what_docstrings_say(site):
  folder, _ = site
  page = (folder / "api" / "diffusion" / "schedule.html").read_text()
  assert "alpha(t) = cos(u(t)) / cos(u(0))" in page  # Cosine's first line
  assert '"gp">&gt;&gt;&gt; </span>' in page and "<blockquote>" not in page  # doctests
  front = (folder / "api" / "gen_jax.html").read_text()
  for name in ("open", "new", "register", "runs.run.Run.generate", "errors.InputError"):
    assert f'id="gen_jax.{name}"' in front


@pytest.mark.long
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_the_site_is_searched_from_a_disk(site):
  """By docs/assets/iframe-worker.js in place of a worker."""
  folder, _ = site
  words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
  words += ["--virtual-time-budget=8000", f"file://{folder}/index.html?q=guidance"]
  done = subprocess.run(words, capture_output=True, text=True, timeout=120)
  found = re.search(r"(\d+) matching documents", done.stdout)
  assert int(found[1]) > 5 and "experiments/guidance" in done.stdout
