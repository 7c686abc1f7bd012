"""The results of an evaluation as a page with tables and figures."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.evaluation.figure_style import figure_files
from tf_robust_sparse.evaluation.figures import draw_curves, draw_examples
from tf_robust_sparse.evaluation.leaderboard import radius
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file

EXAMPLES = 6


def write_report(
    path: str | os.PathLike, results: dict[str, Any], examples: dict[str, np.ndarray] | None = None
) -> list[Path]:
    """Writes a Markdown page, and its figures as PNG and PDF files in the same directory.

    Args:
        path: The page; the figures are called `<its name>_curve.png` and `<its name>_examples.png`.
        results: Result of `RobustnessSuite.results`; if known, with `title`, `norm`, `epsilon`, `data` (`name`,
            `origin`) and `versions`; if measured, with `security_curve`, `corruptions` and `foolbox_check`.
        examples: Adversarial examples of AutoAttack: `x` and `x_adv`, `(images, height, width, channels)`, in [0, 1];
            `y`, `y_adv` and `broken_by`, `(images,)`; `None` without AutoAttack.

    Returns:
        The files that were written, the page first.

    Raises:
        ValueError: if matplotlib is missing.
        OSError: if a file cannot be written.
    """
    path = user_path(path)
    written = [path]
    lines = [
        f"# Robustness of {results.get('title', 'a network')}",
        "",
        f"{results['images']} test images{_of_data(results)}{_ball(results)}. Clean accuracy "
        f"{_per_cent(results['clean_accuracy'])}, robust accuracy under all attacks together "
        f"{_per_cent(results['robust_accuracy'])}.",
        "",
        *_attacks(results),
        "## Reasons for doubt",
        "",
        *([f"- {sentence}" for sentence in results["flags"]] or ["None was found."]),
        "",
    ]
    found = _curves(results)
    if found:
        curve = path.with_name(f"{path.stem}_curve.png")
        norm = next(iter(found.values()))["norm"]
        curves = {name: each["points"] for name, each in found.items()}
        draw_curves(curves, norm, curve)
        written += figure_files(curve)
        lines += ["## Accuracy by radius", "", f"![Security curve]({curve.name})", ""]
        for name, points in curves.items():
            some = points[:: max(len(points) // 10, 1)]
            rows = [[radius(norm, point["epsilon"]), _per_cent(point["robust_accuracy"])] for point in some]
            lines += [f"{name}:", "", *_table(["epsilon", "accuracy"], rows)]
    if "corruptions" in results:
        lines += _corruptions(results["corruptions"])
    if "foolbox_check" in results:
        lines += _foolbox(results["foolbox_check"])
    broken_by = np.empty(0) if examples is None else examples["broken_by"]
    chosen = np.flatnonzero(broken_by >= 0)[:EXAMPLES]
    lines += ["## Adversarial examples", ""]
    if examples is not None and len(chosen):
        figure = path.with_name(f"{path.stem}_examples.png")
        x, x_adv = examples["x"][chosen], examples["x_adv"][chosen]
        scale = float(np.abs(x_adv - x).max())
        draw_examples(x, x_adv, examples["y"][chosen], examples["y_adv"][chosen], figure, scale)
        written += figure_files(figure)
        lines += [f"Images, what AutoAttack found, and the difference.\n\n![Examples]({figure.name})", ""]
    elif examples is not None:
        lines += ["There are none: AutoAttack broke no image.", ""]
    else:
        lines += ["None were kept: only AutoAttack, its attacks one after the other, keeps what it finds.", ""]
    if "versions" in results:
        versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        lines += ["## Versions", "", f"{versions}.", ""]
    with replace_file(path) as temporary:
        temporary.write_text("\n".join(lines))
    return written


def _curves(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns all that was measured at more than one radius, by a name that says what it is."""
    found = {}
    if "security_curve" in results:
        each = results["security_curve"]
        name = each["attack"].removeprefix(each["norm"])
        found[f"{name}-{each['num_steps']}, restarts: {each['restarts']}"] = each
    for each in results["attacks"].values():
        if "points" in each:
            found[f"{each['attack']}-{each['num_steps']}"] = each
    return found


def _of_data(results: dict[str, Any]) -> str:
    return f" of {results['data']['name']}" if "data" in results else ""


def _ball(results: dict[str, Any]) -> str:
    """Returns the ball around each image in words, if all attacks have the same one."""
    known = [results] if "norm" in results else results["attacks"].values()
    balls = {(each["norm"], each["epsilon"]) for each in known if "norm" in each}
    named = {f", {norm[:1].upper()}{norm[1:]} ball of radius {radius(norm, epsilon)}" for norm, epsilon in balls}
    return named.pop() if len(named) == 1 else ""


def _attacks(results: dict[str, Any]) -> list[str]:
    rows = [["clean", _per_cent(results["clean_accuracy"]), _per_cent(results["clean_accuracy"]), "", "", "", ""]]
    for name, found in results["attacks"].items():
        rows.append([name, *_numbers(found)])
        rows += [[f"{name}: {part}", *_numbers(each)] for part, each in found.get("attacks", {}).items()]
    head = ["attack", "accuracy", "worst case so far", "broken", "broken by no other", "gradients per image", "seconds"]
    return ["## Accuracy", "", *_table(head, rows)]


def _numbers(found: dict[str, Any]) -> list[str]:
    worst = _per_cent(found["worst_case_accuracy"]) if "worst_case_accuracy" in found else ""
    counts = [str(found.get("broken", "")), str(found.get("broken_by_no_other", ""))]
    gradients, seconds = f"{found['gradient_passes_per_image']:.1f}", f"{found['seconds']:.1f}"
    return [_per_cent(found["robust_accuracy"]), worst, *counts, gradients, seconds]


def _corruptions(found: dict[str, Any]) -> list[str]:
    severities = [str(severity) for severity in found["severities"]]
    rows = [
        [name, each["source"], _per_cent(each["accuracy"])]
        + [_per_cent(each["accuracy_at_severity"][severity]) for severity in severities]
        for name, each in found["corruptions"].items()
    ]
    rows.append(["mean", "", _per_cent(found["mean_corruption_accuracy"]), *([""] * len(severities))])
    head = ["corruption", "source", "accuracy", *(f"severity {severity}" for severity in severities)]
    return ["## Common corruptions", "", *_table(head, rows)]


def _foolbox(found: dict[str, Any]) -> list[str]:
    head = ["attack of Foolbox", "accuracy", "images it alone breaks", "images our PGD alone breaks"]
    rows = [
        [name, _per_cent(each["robust_accuracy"])]
        + [str(len(each[key])) for key in ("broken_by_foolbox_only", "broken_by_ours_only")]
        for name, each in found.items()
    ]
    return ["## Foolbox", "", *_table(head, rows)]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _per_cent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f} %"
