"""The report of an evaluation as one HTML file, without scripts, that needs no network and no other file."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.evaluation import report_tables
from tf_robust_sparse.evaluation.report_tables import Table, interval
from tf_robust_sparse.wording import per_cent

# Word -> what it means; a page explains those that it uses.
_GLOSSARY = {
    "clean accuracy": "Share of the images that the network classifies correctly, without an attack.",
    "robust accuracy": "Share of the images that it classifies correctly whatever the attack does within the ball.",
    "worst case": "An image counts only if it withstands every attack of this page.",
    "Linf": "Every pixel may change by at most the radius.",
    "L2": "The Euclidean length of the change is at most the radius.",
    "L1": "The changes of all pixels together are at most the radius.",
    "L0": "At most so many entries of the image may change, each as much as it likes.",
    "FGSM": "One step along the signs of the gradient. Weak; a network that only withstands it is not robust.",
    "PGD": "Many small steps along the gradient, kept in the ball.",
    "autoattack": "Four attacks one after the other, two of them with another loss and one without gradients, whose "
    "settings need no tuning (Croce and Hein, 2020).",
    "square": "An attack that asks for logits only and tries random squares. If it breaks images that attacks with "
    "gradients do not, the gradients are misleading.",
    "fmn": "Looks for the nearest adversarial example, and so measures every radius at once.",
    "transfer": "Adversarial examples of another network.",
    "95 % interval": "Where the accuracy on all possible images lies in 95 of 100 such evaluations (Wilson).",
    "chance level": "Accuracy of guessing.",
    "corruption": "A change that nobody chose to do harm, such as noise, blur or fog.",
    "gradients per image": "Forward and backward passes that the attack took, the unit of its cost.",
}
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 640, 300, 56, 18, 48  # of the curve, in pixels of its own
_THIN = 'stroke-dasharray="3 3" vector-effect="non-scaling-stroke"'
_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f4f6f8; --ink: #1d2733; --soft: #5b6875; --line: #d4dae0;
  --doubt: #fff4dc; --edge: #d99a1c; --c0: #1f6fb2; --c1: #c2571a; --c2: #2b8a4b; --c3: #8a4fb0; --c4: #b03060; }
@media (prefers-color-scheme: dark) { :root { --ground: #14191f; --card: #1d242c; --ink: #e4e9ee; --soft: #9aa7b4;
  --line: #36414c; --doubt: #3a2f16; --edge: #d9a441; --c0: #63aee8; --c1: #ef9459; --c2: #6cc98c; --c3: #c796ea;
  --c4: #f08aae; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.lead { color: var(--soft); margin: 0 0 1rem; }
.doubt { background: var(--doubt); border-left: .3rem solid var(--edge); padding: .6rem 1rem; border-radius: .3rem; }
.doubt ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.fine { background: var(--card); border-left: .3rem solid var(--c2); padding: .6rem 1rem; border-radius: .3rem; }
.bar { display: grid; grid-template-columns: minmax(7rem, 12rem) 1fr 4.5rem; gap: .6rem; align-items: center;
  margin: .25rem 0; }
.bar span:first-child { overflow-wrap: anywhere; }
.bar span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.bar svg { width: 100%; height: 1.3rem; display: block; background: var(--card); border-radius: .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
.facts td { overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); white-space: nowrap; }
figure { margin: 0; }
.curve svg { width: 100%; height: auto; }
.curve text { fill: var(--soft); font-size: 13px; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; font-size: .9rem; }
.key i { display: inline-block; width: 1.4rem; height: .25rem; margin-right: .4rem; vertical-align: middle; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }
.examples figure { background: var(--card); border-radius: .3rem; padding: .6rem; display: grid;
  grid-template-columns: repeat(3, 1fr); gap: .5rem; font-size: .8rem; }
.examples img { width: 100%; image-rendering: pixelated; display: block; border-radius: .2rem; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0; color: var(--soft); }
summary { cursor: pointer; color: var(--soft); margin-top: .5rem; }
@media (max-width: 40rem) { .bar { grid-template-columns: 1fr 4.5rem; gap: 0 .6rem; }
  .bar span:first-child { grid-column: 1 / 3; } .curve text { font-size: 22px; } .curve text.minor { display: none; } }
"""


def html_page(
    results: dict[str, Any], examples: dict[str, np.ndarray], class_names: tuple[str, ...] | None = None
) -> str:
    """Returns the page; see `write_report`.

    Args:
        results: As there.
        examples: `x`, `x_adv`, `y` and `y_adv` of the images to show; none of them if it is empty.
        class_names: One per class, or `None` for numbers.
    """
    title = html.escape(f"Robustness of {results.get('title', 'a network')}")
    data = f" of {results['data']['name']}" if "data" in results else ""
    lead = (
        f"{results['images']:,} test images{data}{report_tables.ball(results)}. Clean accuracy "
        f"{per_cent(results['clean_accuracy'])}, robust accuracy under all attacks together "
        f"{per_cent(results['robust_accuracy'])}."
    )
    body = [
        f"<h1>{title}</h1>",
        f'<p class="lead">{html.escape(lead)}</p>',
        _doubts(results["flags"]),
        "<h2>Accuracy</h2>",
        *_bars(results),
        f"<details><summary>All numbers</summary>{_table(report_tables.attacks(results))}</details>",
    ]
    curves = report_tables.curves(results)
    if curves:
        body += ["<h2>Accuracy by radius</h2>", _curve(curves)]
        tables = "".join(f"<h3>{html.escape(n)}</h3>{_table(report_tables.curve(n, c))}" for n, c in curves.items())
        body.append(f"<details><summary>Numbers</summary>{tables}</details>")
    for key, make in (("corruptions", report_tables.corruptions), ("foolbox_check", report_tables.foolbox)):
        if key in results:
            table = make(results[key])
            body += [f"<h2>{table.title}</h2>", _table(table)]
    if examples:
        body += ["<h2>Adversarial examples</h2>", _examples(examples, class_names)]
    facts = report_tables.facts(results)
    body += [f"<h2>{facts.title}</h2>", _table(facts, "facts")]
    body += _glossary(" ".join(body))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _doubts(flags: Sequence[str]) -> str:
    if not flags:
        return '<p class="fine">No reason to doubt these numbers was found.</p>'
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in flags)
    return f'<div class="doubt"><strong>Reasons for doubt</strong><ul>{items}</ul></div>'


def _bars(results: dict[str, Any]) -> list[str]:
    """Returns a bar for each accuracy, with its interval and the chance level."""
    images, chance = results["images"], 1 / results["num_classes"] if results.get("num_classes") else None
    rows = [("clean", results["clean_accuracy"], 0)]
    rows += [(name, found["robust_accuracy"], 1) for name, found in results["attacks"].items()]
    rows.append(("all attacks together", results["robust_accuracy"], 2))
    lines = []
    for name, accuracy, color in rows:
        low, high = (1000 * edge for edge in interval(accuracy, images))
        mark = "" if chance is None else f'<path d="M{1000 * chance:.1f} 0v20" stroke="var(--soft)" {_THIN}/>'
        lines.append(
            f'<div class="bar"><span>{html.escape(name)}</span><svg viewBox="0 0 1000 20" preserveAspectRatio="none" '
            f'role="img" aria-label="{per_cent(accuracy)}"><rect width="{1000 * accuracy:.1f}" height="20" '
            f'fill="var(--c{color})" opacity=".75"/>{mark}<path d="M{low:.1f} 10H{high:.1f}M{low:.1f} 4v12M{high:.1f} '
            f'4v12" stroke="var(--ink)" fill="none" vector-effect="non-scaling-stroke"/></svg>'
            f"<span>{per_cent(accuracy)}</span></div>"
        )
    words = "Bars with their 95 % interval" + ("" if chance is None else f"; dashed: chance level, {per_cent(chance)}")
    return [*lines, f'<p class="lead">{words}.</p>']


def _curve(curves: dict[str, dict[str, Any]]) -> str:
    norm = next(iter(curves.values()))["norm"]
    largest = max(point["epsilon"] for each in curves.values() for point in each["points"]) or 1.0

    def place(epsilon: float, accuracy: float) -> str:
        across = _LEFT + (_WIDTH - _LEFT - 16) * epsilon / largest
        return f"{across:.1f},{_TOP + (_HEIGHT - _BOTTOM - _TOP) * (1 - accuracy):.1f}"

    lines = []
    for accuracy in (0.0, 0.25, 0.5, 0.75, 1.0):
        lines.append(f'<polyline points="{place(0, accuracy)} {place(largest, accuracy)}" stroke="var(--line)"/>')
        y = place(0, accuracy).partition(",")[2]
        lines.append(f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{100 * accuracy:.0f}</text>')
    for number, epsilon in enumerate(_ticks(largest)):
        x = place(epsilon, 0).partition(",")[0]
        minor = ' class="minor"' if number % 2 else ""  # hidden where there is no room
        lines.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle"{minor}>{epsilon:.4g}</text>')
    unit = "changed entries" if norm == "L0" else f"{norm} radius, pixels of [0, 1]"
    lines.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{unit}</text>')
    key = []
    for number, (name, each) in enumerate(curves.items()):
        color = f"var(--c{number % 5})"
        points = " ".join(place(point["epsilon"], point["robust_accuracy"]) for point in each["points"])
        lines.append(f'<polyline points="{points}" stroke="{color}" stroke-width="2"/>')
        key.append(f'<li><i style="background: {color}"></i>{html.escape(name)}</li>')
    return (
        f'<figure class="curve"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" fill="none" role="img" '
        f'aria-label="Robust accuracy in percent by radius">{"".join(lines)}</svg>'
        f'<ul class="key">{"".join(key)}</ul></figure>'
    )


def _ticks(largest: float) -> Iterable[float]:
    """Returns four to nine round numbers from 0 to `largest`."""
    unit = 10.0 ** math.floor(math.log10(largest))
    step = next(step for step in (0.1, 0.2, 0.5, 1.0) if largest / (step * unit) <= 9) * unit
    return [step * number for number in range(int(largest / step + 1e-6) + 1)]


def _examples(examples: dict[str, np.ndarray], class_names: tuple[str, ...] | None) -> str:
    names = class_names or {int(y): f"class {y}" for y in np.ravel([examples["y"], examples["y_adv"]])}
    scale = float(np.abs(examples["x_adv"] - examples["x"]).max())
    figures = []
    for x, x_adv, y, y_adv in zip(*(examples[key] for key in ("x", "x_adv", "y", "y_adv")), strict=True):
        columns = (
            (x, names[int(y)]),
            (x_adv, f"taken for {names[int(y_adv)]}"),
            (0.5 + (x_adv - x) / (2 * scale), "difference"),
        )
        cells = (f'<div><img src="{_png(image)}" alt="">{html.escape(word)}</div>' for image, word in columns)
        figures.append(f"<figure>{''.join(cells)}</figure>")
    note = f"In the difference, black and white are ±{scale:.3g} in pixels of [0, 1], and gray is no change."
    return f'<div class="examples">{"".join(figures)}</div><p class="lead">{note}</p>'


def _png(image: np.ndarray) -> str:
    encoded = tf.io.encode_png(np.uint8(np.rint(255 * np.clip(image, 0, 1)))).numpy()
    return f"data:image/png;base64,{base64.b64encode(encoded).decode()}"


def _table(table: Table, kind: str = "") -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    top = f"<thead><tr>{head}</tr></thead>" if any(table.head) else ""
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{rows}</tbody></table></div>'


def _glossary(text: str) -> list[str]:
    """Returns the words that the page uses, with what they mean."""
    used = {word: meaning for word, meaning in _GLOSSARY.items() if word.lower() in text.lower()}
    items = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(meaning)}</dd>" for word, meaning in used.items())
    return ["<h2>Glossary</h2>", f"<dl>{items}</dl>"]
