"""Tables in the docs are those of the results that are kept; `python -m tests.test_results` writes them."""

import json
import re
from pathlib import Path

import pytest

from tf_robust_sparse.cli import recipes
from tf_robust_sparse.cli.protocol_table import points, table

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "protocols.md"
KEPT = sorted((DOCS / "results").glob("*.json"))


def page():
    """The page with the tables of all results that are kept, each between two comments."""
    text = PAGE.read_text()
    for file in KEPT:
        record = json.loads(file.read_text())
        rows = points([run for point in record["points"] for run in point["runs"]])
        between = re.compile(rf"(<!-- {file.stem} -->\n\n).*?(\n\n<!-- end -->)", re.S)
        text, count = between.subn(lambda found, rows=rows: found[1] + table(rows) + found[2], text)
        assert count == 1, f"{PAGE} has no place for {file.name}"
    return text


def test_the_tables_are_those_of_the_results():
    assert KEPT and PAGE.read_text() == page(), "run python -m tests.test_results"


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_results_are_of_the_protocol_that_is_shipped(file):
    record, shipped = json.loads(file.read_text()), recipes.folder() / "protocols" / f"{file.stem}.toml"
    for method in record["protocol"]["method"]:
        assert method["command"] in shipped.read_text(), method["name"]
    for point in record["points"]:
        for run in point["runs"]:
            assert run["attacks"]["autoattack"] <= run["attacks"]["pgd"] <= run["clean_accuracy"]
            assert all(doubt in PAGE.read_text() for doubt in run["flags"])
            assert not Path(run["directory"]).is_absolute()


if __name__ == "__main__":
    PAGE.write_text(page())
