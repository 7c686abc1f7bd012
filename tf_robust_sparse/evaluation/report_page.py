"""The results of an evaluation as pages with tables and figures: Markdown, and HTML in one file."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.evaluation import report_tables
from tf_robust_sparse.evaluation.figure_style import figure_files
from tf_robust_sparse.evaluation.figures import draw_curves, draw_examples
from tf_robust_sparse.evaluation.report_html import html_page
from tf_robust_sparse.evaluation.report_tables import Table
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file
from tf_robust_sparse.wording import per_cent

EXAMPLES = 6


def write_report(
    path: str | os.PathLike,
    results: dict[str, Any],
    examples: dict[str, np.ndarray] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> list[Path]:
    """Writes a Markdown page with its figures as PNG and PDF files, and the same as one HTML file, in one directory.

    The HTML page holds its figures and needs no other file.

    Args:
        path: Either page; they are called `<name>.md`, or as given, and `<name>.html`, the figures of the former
            `<name>_curve.png` and `<name>_examples.png`.
        results: Result of `RobustnessSuite.results`; if known, with `title`, `norm`, `epsilon`, `data` (`name`,
            `origin`), `versions`, `network`, `file` (`sha256`, `bytes`), `weights` (`nonzero`, `prunable`), `date`,
            `seed`, `seconds` and `command`; if measured, with `security_curve`, `corruptions` and `foolbox_check`.
        examples: Adversarial examples of AutoAttack: `x` and `x_adv`, `(images, height, width, channels)`, in [0, 1];
            `y`, `y_adv` and `broken_by`, `(images,)`; `None` without AutoAttack.
        class_names: One per class, or `None` for numbers.

    Returns:
        The files that were written, the pages first.

    Raises:
        ValueError: if matplotlib is missing.
        OSError: if a file cannot be written.
    """
    path, page, curve, figure = report_files(path)
    written = [path, page]
    lines = [
        f"# Robustness of {results.get('title', 'a network')}",
        "",
        f"{results['images']} test images{_of_data(results)}{report_tables.ball(results)}. Clean accuracy "
        f"{per_cent(results['clean_accuracy'])}, robust accuracy under all attacks together "
        f"{per_cent(results['robust_accuracy'])}.",
        "",
        "## Reasons for doubt",
        "",
        *([f"- {sentence}" for sentence in results["flags"]] or ["None was found."]),
        "",
        *_section(report_tables.attacks(results)),
    ]
    curves = report_tables.curves(results)
    if curves:
        draw_curves({name: each["points"] for name, each in curves.items()}, next(iter(curves.values()))["norm"], curve)
        written += figure_files(curve)
        lines += ["## Accuracy by radius", "", f"![Security curve]({curve.name})", ""]
        for name, each in curves.items():
            lines += [f"{name}:", "", *_table(report_tables.curve(name, each))]
    if "corruptions" in results:
        lines += _section(report_tables.corruptions(results["corruptions"]))
    if "foolbox_check" in results:
        lines += _section(report_tables.foolbox(results["foolbox_check"]))
    chosen = _chosen(examples)
    lines += ["## Adversarial examples", ""]
    if chosen:
        shown = chosen["x"], chosen["x_adv"], chosen["y"], chosen["y_adv"]
        draw_examples(*shown, figure, float(np.abs(chosen["x_adv"] - chosen["x"]).max()))
        written += figure_files(figure)
        lines += [f"Images, what AutoAttack found, and the difference.\n\n![Examples]({figure.name})", ""]
    elif examples is not None:
        lines += ["There are none: AutoAttack broke no image.", ""]
    else:
        lines += ["None were kept: only AutoAttack, its attacks one after the other, keeps what it finds.", ""]
    lines += _section(report_tables.facts(results))
    with replace_file(path) as temporary:
        temporary.write_text("\n".join(lines))
    with replace_file(page) as temporary:
        temporary.write_text(html_page(results, chosen, class_names), encoding="utf-8")
    return written


def report_files(path: str | os.PathLike) -> tuple[Path, Path, Path, Path]:
    """Returns the paths of the Markdown page, of the HTML page, and of the PNG files of the two figures."""
    path, page = user_path(path), user_path(path).with_suffix(".html")
    text = page.with_suffix(".md") if path == page else path
    return text, page, text.with_name(f"{text.stem}_curve.png"), text.with_name(f"{text.stem}_examples.png")


def _chosen(examples: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Returns the first adversarial examples that AutoAttack found, nothing if there are none."""
    if examples is None:
        return {}
    found = np.flatnonzero(examples["broken_by"] >= 0)[:EXAMPLES]
    return {name: examples[name][found] for name in ("x", "x_adv", "y", "y_adv")} if len(found) else {}


def _of_data(results: dict[str, Any]) -> str:
    return f" of {results['data']['name']}" if "data" in results else ""


def _section(table: Table) -> list[str]:
    return [f"## {table.title}", "", *_table(table)]


def _table(table: Table) -> list[str]:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    return [*(f"| {' | '.join(line)} |" for line in [table.head, ["---"] * len(table.head), *rows]), ""]
