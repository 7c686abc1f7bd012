"""What the site needs beyond docs/: pages of other folders, links that lead out of docs/, the names of namespaces."""

import ast
import functools
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# File of the repository -> its page of the site.
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
# Files of the repository that a page of the site stands for.
INSTEAD = {**OUTSIDE, "README.md": "index.md", "docs/README.md": "index.md", "docs": "index.md"}
NAMESPACE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
NAME = re.compile(r"(?<!\[)`trs\.(?:(\w+)\.)?(\w+)(?:\([^`]*\))?`(?!\])")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Adds the pages of other folders."""
    from mkdocs.structure.files import File  # tests of the other functions do without it

    for source, page in OUTSIDE.items():
        text = with_links_of_the_site((ROOT / source).read_text(), source, page)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, **_):
    """Turns links into the repository into links of the site, and lists into lists of Python-Markdown."""
    if page.file.src_uri not in OUTSIDE.values():
        markdown = with_links_of_the_site(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    if page.file.src_uri == "api.md":
        markdown = with_whole_names(markdown)
    markdown = with_links_to_names(with_blank_lines(markdown))
    return NAMESPACE.sub(lambda match: "\n\n".join(names_of(match[1])), markdown)


def names_of(namespace):
    """Yields the docstring of a namespace, and a line for each of its own names that is no namespace."""
    tree = parsed(namespace)
    names = exported(tree)
    if namespace != "tf_robust_sparse":
        names = [name for name in names if name not in exported(parsed("tf_robust_sparse"))]
    yield ast.get_docstring(tree)
    for name in names:
        found = origin(namespace, name)
        if found.count(".") > 1:
            yield f"::: {found}"


def with_whole_names(text):
    """Writes each name of the list of public names with its namespace."""
    space = ""
    lines = []
    for line in text.split("\n"):
        if line.startswith("## "):
            space = "trs." if line == "## Top level" else f"trs.{line.removeprefix('## ')}."
        lines.append(re.sub(r"^- `", f"- `{space}", line))
    return "\n".join(lines)


def with_links_to_names(text):
    """Links public names in the text, such as `trs.attacks.LinfPGD`, to their place in the reference."""

    def linked(match):
        space, name = match.groups()
        module = f"tf_robust_sparse.{space}" if space else "tf_robust_sparse"
        if (space and space not in exported(parsed("tf_robust_sparse"))) or name not in exported(parsed(module)):
            return match[0]
        found = origin(module, name)
        return match[0] if found.count(".") == 1 else f"[{match[0]}][{found}]"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else NAME.sub(linked, part) for part in parts)


@functools.cache
def parsed(module):
    """Returns the syntax tree of a module of this package."""
    path = ROOT.joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def exported(tree):
    """Returns `__all__`."""
    found = [each.value for each in tree.body if isinstance(each, ast.Assign) and each.targets[0].id == "__all__"]
    return ast.literal_eval(found[0])


def origin(module, name):
    """Returns where `name` of a module is defined; a function may have the name of its module, which hides it."""
    for each in parsed(module).body:
        if isinstance(each, ast.ImportFrom) and name in [alias.name for alias in each.names]:
            return f"{module}.{name}" if each.module == module else origin(each.module, name)
    return f"{module}.{name}"


def with_links_of_the_site(text, source, page):
    """Rewrites relative links of the file `source`, shown as `page`; files that are no page become plain text."""

    def rewritten(match):
        label, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        found = (ROOT / source).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        inside = INSTEAD.get(found) or (found.removeprefix("docs/") if found.startswith("docs/") else None)
        if inside is None:
            return label if "`" in label else f"`{label}`"
        path = posixpath.relpath(inside, posixpath.dirname(page) or ".")
        return f"[{label}]({path}{anchor})"

    return LINK.sub(rewritten, text)


def with_blank_lines(text):
    """Puts a blank line before each list that follows a line of text, which GitHub does not need."""
    lines, fenced, last = [], False, ""
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        begins = re.match(r"(- |\d+\. )", line) and not fenced
        if begins and last.strip() and not re.match(r"(- |\d+\. | )", last):
            lines.append("")
        lines.append(line)
        last = line
    return "\n".join(lines)
