"""Docstrings of this package as the generator reads them."""

import re

import griffe

LINES = re.compile(r"^(Args|Input shape|Reference): (?=\S)", re.MULTILINE)


class PlainLines(griffe.Extension):
    """Keeps lines such as `Reference: ...` and `Args: see ...` in the text; Google style would begin sections there."""

    def on_instance(self, *, obj, **_):
        """Changes the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = LINES.sub(r"**\1:** ", obj.docstring.value)
