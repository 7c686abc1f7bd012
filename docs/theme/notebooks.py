"""Runs the tutorials while the site is built: each page shows its output, and links to the same as a notebook.

The Markdown pages are the only source. Their blocks marked `python` or `bash` are cells, run in order in one kernel and
in an empty folder; all other blocks are text. `mkdocs serve` shows the pages without output, because it builds often.
"""

import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "tutorials/"
CELL = re.compile(r"^```(python|bash)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
TIMEOUT = 900  # seconds per cell, on a slow machine that does other work, too
SHELL = "%%bash\n"
_notebooks = {}  # page -> its notebook


def on_startup(command, dirty):
    """Notes whether this is a build; because of this method mkdocs loads the hooks once for all builds of a server."""
    del dirty
    _notebooks.clear()
    _notebooks["run"] = command != "serve"


def on_files(files, config):
    """Runs the tutorials and adds their notebooks to the files of the site."""
    from mkdocs.structure.files import File  # tests of the other functions do without it

    if not _notebooks.pop("run", False):
        return files
    import nbformat

    for file in files.documentation_pages():
        if file.src_uri.startswith(FOLDER):
            _notebooks[file.src_uri] = found = executed(notebook(file.content_string, file.src_uri), file.src_uri)
            files.append(File.generated(config, notebook_of(file.src_uri), content=nbformat.writes(found)))
    return files


def on_page_markdown(markdown, page, **_):
    """Puts the output under each block, and a link to the notebook under the title."""
    found = _notebooks.get(page.file.src_uri)
    return markdown if found is None else with_outputs(markdown, found, Path(notebook_of(page.file.src_uri)).name)


def notebook_of(page):
    """Returns the name of the notebook of a page."""
    return page.removesuffix(".md") + ".ipynb"


def cells(markdown):
    """Yields the kind and the text of each part of a page: `"markdown"`, `"python"` or `"bash"`."""
    start = 0
    for match in CELL.finditer(markdown):
        yield "markdown", markdown[start : match.start()]
        yield match[1], match[2]
        start = match.end()
    yield "markdown", markdown[start:]


def notebook(markdown, page):
    """Returns the notebook of a page before it runs."""
    from nbformat import v4

    links = runpy.run_path(str(ROOT / "docs/theme/hooks.py"))["with_links_of_the_site"]
    parts = []
    for kind, text in cells(markdown):
        if kind == "markdown" and text.strip():
            text = re.sub(r"\]\(([^):\s]+)\.md(#[^)\s]*)?\)", r"](\1.html\2)", links(text, f"docs/{page}", page))
            parts.append(v4.new_markdown_cell(text.strip()))
        elif kind != "markdown":
            parts.append(v4.new_code_cell((SHELL if kind == "bash" else "") + text.strip()))
    for number, part in enumerate(parts):
        part["id"] = f"cell-{number}"  # otherwise at random
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=parts, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def executed(found, page):
    """Runs a notebook and returns it; a cell that fails ends the build."""
    import jupyter_client
    import nbclient

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # where `trs` is
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
        kernel = jupyter_client.AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        client = nbclient.NotebookClient(
            found, km=kernel, timeout=TIMEOUT, resources={"metadata": {"path": folder}}, record_timing=False
        )
        try:
            client.execute(env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL)  # TensorFlow's start
        except nbclient.exceptions.CellExecutionError as error:
            raise RuntimeError(f"docs/{page} does not run: {error}") from None
    for cell in found.cells:
        if cell.cell_type == "code":
            cell.outputs = list(worth_showing(cell.outputs))
    return found


def worth_showing(outputs):
    """Yields what a cell prints, as one text, and its figures.

    Progress bars and lines about the machine go to standard error, and the value of a last line is no print.
    """
    printed = [each for each in outputs if each.get("name") == "stdout"]
    lines = "".join(each["text"] for each in printed).splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("INFO:tensorflow:"))
    if text.strip():
        printed[0]["text"] = text.replace(f"{ROOT}/", "")
        yield printed[0]
    yield from (each for each in outputs if each["output_type"] == "display_data")


def with_outputs(markdown, found, link):
    """Returns the page with the output of each cell under its block, and a link under the title."""
    outputs = iter([cell.outputs for cell in found.cells if cell.cell_type == "code"])
    markdown = CELL.sub(lambda match: match[0] + "".join(map(shown, next(outputs))), markdown)
    note = f"Every output on this page comes from the build of this site. [The same page as a notebook]({link})."
    return re.sub(r"\A(# .*\n)", rf"\1\n{note}\n", markdown)


def shown(output):
    """Returns one output as Markdown."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"\n![Output of the block above](data:image/png;base64,{''.join(data['image/png'].split())})\n"
    text = (output.get("text") or data.get("text/plain") or "").strip("\n")
    return f"\n``` {{ .text .output }}\n{text}\n```\n"
