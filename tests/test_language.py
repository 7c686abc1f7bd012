"""Phrases, spellings and retired names that must not come back; reads files only."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folders and files that are checked.
CHECKED = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "benchmarks", "run_scripts", "tf_robust_sparse"]
# Pattern -> what to write.
PATTERNS = {
    r"Received: (?:it|other ones|another one|both|none)\b": "the received value",
    r"\b[Tt]ells whether\b": "Returns whether",
    r"\banew\b": "again, new",
    r"\bis told by\b": "a plain verb",
    r"(?<!--)\bbeside\b": "next to, in addition to, other than",
    r"\b[Ww]hoever\b": "the subject itself",
    r"\bwhat is missing\b": "the missing values",
    r"\b\w*(?:normal|initial|optim|minim|maxim|random|linear|material|penal|regular)is(?:e[ds]?|ing|ation)\b": "-ize",
    r"\b\w*(?:colour|neighbour|behaviour|favour)\w*\b": "-or",
    r"\b(?:[Cc]entre[ds]?|[Gg]rey|\w*[Ll]abelled|[Ll]earnt|[Cc]atalogue|[Dd]efence|[Ll]icence)\b": "American",
    r"\b(?:settled_kernels|inference_kernels|settled_for_inference|moved_images|ready_made)\b": "the new name",
    r"\bkernel forms?\b|\bkernel_form\b": "parametrization",
}
# Names of flags and keys in results files never change.
KEYS = re.compile(r'["`](?:randomised|penalised|materialised)["`]|--beside\b|\bbeside: list|\bsweep\.beside\b')
# Lines that serve or list old names, see `tf_robust_sparse.deprecation`.
ALIAS = re.compile(
    r'^\s+"\w+": "[\w.]+",$|renamed_|adopt_old_methods|for `normalise`|overridden `normalise`|`layers\.settled_kernels`'
)


def files():
    for name in CHECKED:
        path = ROOT / name
        yield from [path] if path.is_file() else sorted([*path.rglob("*.py"), *path.rglob("*.md")])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_texts_avoid(pattern):
    found = []
    for path in files():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if (match := re.search(pattern, KEYS.sub("", line))) and not ALIAS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}")
    assert not found, f"write {PATTERNS[pattern]}: {found}"


def test_every_checked_place_exists():
    assert all((ROOT / name).exists() for name in CHECKED)
