"""Every command line that a page shows is one that the command takes."""

import re
import shlex

import pytest

from tests.cli.conftest import ROOT
from tests.test_docs import PAGES
from tf_robust_sparse.cli import settings
from tf_robust_sparse.cli.main import COMMANDS

SCRIPTS = {script for _, script in COMMANDS.values()}


def documented():
    """Each command line of a page, as page, script or command, and words."""
    for page in PAGES:
        for block in re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:python\S* run_scripts/(\w+)\.py|\btrs ([a-z ]+?))(?= -|$)(.*)", line)
                if found and "..." not in line:
                    words = shlex.split(found[3].partition(" && ")[0], comments=True)
                    yield page.name, found[1] or found[2].strip(), words
    for path in sorted((ROOT / "flags").rglob("*.flags")):
        for script, rest in re.findall(r"^# .*?python run_scripts/(\w+)\.py (.*)", path.read_text(), re.MULTILINE):
            yield path.name, script, rest.split()


LINES = [each for each in documented() if each[1] in SCRIPTS or each[1] in COMMANDS]


def test_pages_show_commands():
    assert len(LINES) > 80 and {"run_hydra", "run_compile"} <= {script for _, script, _ in LINES}


@pytest.mark.parametrize("page", sorted({page for page, _, _ in LINES}))
def test_commands_take_what_pages_show(page, parse, monkeypatch, tmp_path):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}')
    file = tmp_path / "file.pt"
    file.touch()
    for _, script, words in (each for each in LINES if each[0] == page):
        placed = [
            word.replace("DIR", str(tmp_path)).replace("FILE", str(file)).replace("checkpoint.pth.tar", str(file))
            for word in words
        ]
        try:
            parse(script, *placed)
            settings.check()
        except (SystemExit, ValueError) as error:
            pytest.fail(f"{page}: {script} {' '.join(words)}: {error}")
