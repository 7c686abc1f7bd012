"""The report as one HTML file."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from tf_robust_sparse.evaluation.report_page import write_report
from tf_robust_sparse.evaluation.report_tables import interval

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "path", "rect", "polyline", "i", "br"}


def attacked(accuracy, **others):
    return {
        **{"robust_accuracy": accuracy, "worst_case_accuracy": accuracy, "broken": 3, "broken_by_no_other": 1},
        **{"gradient_passes_per_image": 50.0, "seconds": 2.0, "norm": "Linf", "epsilon": 0.1},
        **others,
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    random = np.random.default_rng(0)
    x = random.random((7, 14, 14, 1), "float32")
    examples = {
        **{"x": x, "x_adv": np.clip(x + 0.1, 0, 1), "y": np.arange(7) % 3, "y_adv": (np.arange(7) + 1) % 3},
        "broken_by": np.array([-1, 0, 0, 1, 2, 0, 3]),
    }
    points = [{"epsilon": 0.02 * number, "robust_accuracy": 0.8 - 0.1 * number} for number in range(8)]
    curve = {"attack": "LinfPGD", "norm": "Linf", "num_steps": 50, "restarts": 1, "points": points}
    results = {
        **{"images": 200, "num_classes": 10, "clean_accuracy": 0.8, "robust_accuracy": 0.5, "norm": "Linf"},
        **{"epsilon": 0.1, "flags": ["<b>Square</b> is better."], "data": {"name": "patterns"}, "seconds": 7.0},
        **{"network": "runs/" + "long_name/" * 12, "file": {"sha256": "ab" * 32, "bytes": 12345}},
        **{"weights": {"nonzero": 100, "prunable": 1000, "dense": 40}, "command": "run | tee", "security_curve": curve},
        "attacks": {"pgd": attacked(0.55), "autoattack": attacked(0.5, attacks={"apgd-ce": attacked(0.52)})},
    }
    path = tmp_path_factory.mktemp("report") / "page.html"
    _, page, *_ = write_report(path, results, examples, ("shirt", "bag & belt", "shoe"))
    assert page == path and path.with_suffix(".md").exists()
    return page


def test_the_page_needs_nothing_else_and_says_everything(page):
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script|https?://", text)
    for words in (
        "80.00 %",
        "50.00 % (43.1 to 56.9)",
        "autoattack: apgd-ce",
        "100 of 1,000 (10.00 %), 40 of them in kernels that are dense",
        "ab" * 32,
    ):
        assert words in text
    assert "&lt;b&gt;Square" in text and "taken for bag &amp; belt" in text and text.count("data:image/png") == 18
    assert text.index("Reasons for doubt") < text.index("<h2>Accuracy</h2>")
    assert "<dt>autoattack</dt>" in text and "<dt>corruption</dt>" not in text
    assert "run \\| tee" in page.with_suffix(".md").read_text()


def test_every_tag_is_closed(page):
    stack = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in VOID or tag == "i":
                stack.append(tag)

        def handle_endtag(self, tag):
            if tag not in VOID or tag == "i":
                assert stack.pop() == tag

    Tags().feed(page.read_text())
    assert not stack


@pytest.mark.parametrize(("accuracy", "images", "low", "high"), [(0.5, 200, 0.4314, 0.5686), (0, 50, 0, 0.0713)])
def test_intervals(accuracy, images, low, high):
    np.testing.assert_allclose(interval(accuracy, images), (low, high), atol=1e-4)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(page, tmp_path, width):
    measured = tmp_path / "measured.html"
    probe = "<script>document.title = document.documentElement.scrollWidth</script></body>"
    measured.write_text(page.read_text().replace("</body>", probe))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    start = [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},2000"]
    frame = tmp_path / "frame.html"  # the window of a browser cannot be as narrow as a phone
    frame.write_text(f'<body style="margin:0"><iframe src="measured.html" width="{width}" height="1990"></iframe>')
    shot = tmp_path / "page.png"
    subprocess.run([*start, f"--screenshot={shot}", frame.as_uri()], check=True, capture_output=True, timeout=120)
    print(f"Screenshot: {shot}")
    assert shot.stat().st_size > 10_000
    inner = f"--window-size={width},2000"
    done = subprocess.run([*start[:-1], inner, "--dump-dom", measured.as_uri()], capture_output=True, timeout=120)
    found = int(re.search(r"<title>(\d+)</title>", done.stdout.decode()).group(1))
    assert found <= max(width, 500)
