"""What the pages say is checked: links lead somewhere, snippets run, flags and names exist."""

import ast
import os
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from tf_robust_sparse.cli import recipes

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "saved_models/*.md", "tf_robust_sparse/**/*.md")
    for path in ROOT.glob(pattern)
)


def snippets(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """The anchors of the headings, as the site and GitHub make them."""
    headings = re.findall(
        r"^#+ (.*)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.M
    )
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(found), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_snippets_parse(page):
    for snippet in snippets(page, "(?:python|py)"):
        ast.parse(snippet)


def test_every_page_of_the_documentation_is_listed():
    index = (ROOT / "docs/README.md").read_text()
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix().removeprefix("docs/")
        if ROOT / "docs" in page.parents and not name.startswith(("README.md", "reference/")):
            assert f"({name})" in index, f"docs/README.md does not list {name}"


def entries(nav):
    """The files that a `nav` of mkdocs names."""
    for entry in nav:
        (value,) = entry.values()
        yield from [value] if isinstance(value, str) else entries(value)


def test_the_site_shows_every_page():
    """Every page of docs/ is in the `nav` of mkdocs.yml, and every entry there is a page."""
    found = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    outside = {"contributing.md", "changelog.md", "benchmarks.md"}  # docs/theme/hooks.py makes them
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert sorted(found) == sorted(pages | outside), "name each page of docs/ once in `nav` of mkdocs.yml"


BUILD = """
import sys
from mkdocs.commands.build import build
from mkdocs.config import load_config
build(load_config("mkdocs.yml", strict=True, site_dir=sys.argv[1]))
"""


def test_the_site_builds_without_a_warning(tmp_path):
    """As `make docs`, but the tutorials do not run; a link or a name that leads nowhere is a warning."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run([sys.executable, "-c", BUILD, tmp_path / "site"], cwd=ROOT, env=environment, check=True)
    for page in entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]):
        assert (tmp_path / "site" / page).with_suffix(".html").stat().st_size > 5000
    reference = (tmp_path / "site/reference/sparsity.html").read_text()
    assert 'id="tf_robust_sparse.sparsity.channel_magnitude.ChannelMagnitudePruning"' in reference


def test_the_reference_shows_every_public_name():
    from tests.test_public_api import namespaces

    hooks = runpy.run_path(str(ROOT / "docs/theme/hooks.py"))
    for space, names in namespaces().items():
        path = "" if space == "trs" else f".{space}"
        assert (ROOT / f"docs/reference/{space}.md").read_text() == f"# trs{path}\n\n::: tf_robust_sparse{path}\n"
        _, *shown = hooks["names_of"](f"tf_robust_sparse{path}")
        assert [line.rpartition(".")[2] for line in shown] == names


def test_tutorials_become_notebooks():
    """Every part of a page is a cell, in order, and output comes under the block that made it."""
    theme = runpy.run_path(str(ROOT / "docs/theme/notebooks.py"))
    for page in (ROOT / "docs/tutorials").glob("*.md"):
        parts = list(theme["cells"](page.read_text()))
        code = [text for kind, text in parts if kind != "markdown"]
        assert code == snippets(page, "(?:python|bash)") and code, f"{page.name} has no block that runs"
        assert sum(len(text) for _, text in parts) < len(page.read_text())
    page = "# Title\n\n```python\nprint(1)\n```\n\n```py\nprint(2)\n```\n\n```bash\nfalse\n```\n"
    said = [("stdout", "INFO:tensorflow:b\n"), ("stderr", "c"), ("stdout", f"{theme['ROOT']}/"), ("stdout", "a\n")]
    printed = [{"output_type": "stream", "name": name, "text": text} for name, text in said]
    value = {"output_type": "execute_result", "data": {"text/plain": "<a value>"}}
    figure = {"output_type": "display_data", "data": {"image/png": "AB\nCD\n"}}
    outputs = [list(theme["worth_showing"](each)) for each in ([*printed, value], [figure])]
    assert [len(each) for each in outputs] == [1, 1]
    cells = [types.SimpleNamespace(cell_type="code", outputs=each) for each in outputs]
    shown = theme["with_outputs"](page, types.SimpleNamespace(cells=cells), "a.ipynb")
    found = re.findall(r"\(a.ipynb\)|print\(\d\)|^a$|false|base64,ABCD", shown, re.M)
    assert found == ["(a.ipynb)", "print(1)", "a", "print(2)", "false", "base64,ABCD"]


RUN = ["index.md", "tutorials/*.md", "coming_from_*.md"]  # but for a page that tests/sparsity/test_any_model.py runs


def few_images(monkeypatch):
    """Has the sample in the package hold two batches."""
    import tf_robust_sparse as trs

    whole, arrays = trs.data.fashion_mnist_sample, trs.data.load("fashion_mnist_sample").take(64, 32)
    monkeypatch.setattr(trs.data, "fashion_mnist_sample", lambda **given: [part.take(2) for part in whole(**given)])
    monkeypatch.setattr(trs.data, "load", lambda name: {"fashion_mnist_sample": arrays}[name])


@pytest.mark.filterwarnings("ignore")  # of Foolbox
@pytest.mark.parametrize(
    "page",
    sorted({page for pattern in RUN for page in (ROOT / "docs").glob(pattern)} - {ROOT / "docs/coming_from_tfmot.md"}),
    ids=lambda path: path.stem,
)
def test_the_page_runs_as_written(page, tmp_path, monkeypatch):
    few_images(monkeypatch)
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in snippets(page, "python"):
        exec(snippet, names)


def test_the_snippet_of_the_readme_runs_on_a_few_images(tmp_path, monkeypatch):
    few_images(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (snippet,) = snippets(ROOT / "README.md", "python")
    exec(snippet, {})
    assert (tmp_path / "saved_models/snippet/serve/saved_model.pb").exists()


@pytest.mark.full
def test_the_snippet_of_the_readme_runs_as_written(tmp_path):
    (snippet,) = snippets(ROOT / "README.md", "python")
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) > 0.3
    assert (tmp_path / "saved_models/snippet/serve/saved_model.pb").exists()


def test_the_objective_of_the_documentation_trains():
    import keras
    import numpy as np

    import tf_robust_sparse as trs
    from tests.networks import tiny_dataset, tiny_network

    (snippet,) = snippets(ROOT / "docs/adding_an_objective.md", "python")
    names = {}
    exec(snippet, names)
    objective = names["LogitPairing"](trs.attacks.LinfPGD(0.1, 0.03, 2))
    model = trs.RobustModel(tiny_network(), objective, trs.sparsity.ConnectivitySampling(0.1))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    loss = model.fit(tiny_dataset(), epochs=8, verbose=0).history["loss"]
    assert np.isfinite(loss).all() and loss[-1] < loss[0]


def test_flagfiles_that_pages_name_exist():
    for page in PAGES:
        for name in re.findall(r"--flagfile=(flags/[\w./]+\.flags)", page.read_text()):
            assert (ROOT / name).is_file() or recipes.lines_of(ROOT / name), f"{page.name} names {name}"
