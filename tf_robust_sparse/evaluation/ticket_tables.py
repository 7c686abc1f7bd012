"""Tables of lottery tickets as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from tf_robust_sparse.saving.atomic import replace_file

_LATEX = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "±": r"$\pm$"}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a LaTeX tabular that needs no package."""
    lines = [r"\begin{tabular}{" + "l" * len(header) + "}", r"\hline"]
    lines += [" & ".join(map(_escaped, header)) + r" \\", r"\hline"]
    lines += [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def comma_separated(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def write_table(stem: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes `<stem>.md`, `<stem>.csv` and, as LaTeX, `<stem>.txt`; creates directories."""
    for suffix, form in ((".md", markdown), (".csv", comma_separated), (".txt", latex)):
        with replace_file(stem.with_name(stem.name + suffix)) as path:
            path.write_text(form(header, rows))


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
