"""What the pages say is checked: links lead somewhere, snippets run, flags and names exist."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tf_robust_sparse.cli import recipes

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "saved_models/*.md", "tf_robust_sparse/**/*.md")
    for path in ROOT.glob(pattern)
)


def snippets(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_snippets_parse(page):
    for snippet in snippets(page, "python"):
        ast.parse(snippet)


def test_every_page_of_the_documentation_is_listed():
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index


def test_the_snippet_of_the_readme_runs_on_a_few_images(tmp_path, monkeypatch):
    import tf_robust_sparse as trs

    whole = trs.data.fashion_mnist_sample
    monkeypatch.setattr(trs.data, "fashion_mnist_sample", lambda **given: [part.take(2) for part in whole(**given)])
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
