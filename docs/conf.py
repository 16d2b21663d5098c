"""Settings of Sphinx; `make docs-build` builds the site, `make docs` serves it."""

import re

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from deepteach import __version__ as release

project = "deepteach"
author = "The deepteach developers"
version = release
html_title = f"deepteach {release}"
html_theme = "furo"
extensions = [
    "myst_nb",  # Markdown, and notebooks with the outputs that they were committed with
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
nb_execution_mode = "off"  # `make notebooks` runs them
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
default_role = "code"  # single backticks, as the docstrings write names
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
OUTSIDE = re.compile(r"\]\(((?:\.\./)+(?:[\w.-]+/)*[\w.-]+\.md)\)")


def _download(app: Sphinx, page: str, source: list[str]) -> None:
    """Files beside the pages, as LOG.md, are no pages: they are offered as they are."""
    here = app.srcdir / page

    def linked(found: re.Match[str]) -> str:
        target = (here.parent / found[1]).resolve()
        inside = target.is_relative_to(app.srcdir.resolve())
        return found[0] if inside else f"](path:{found[1]})"

    source[0] = OUTSIDE.sub(linked, source[0])


def _bars(app: Sphinx, what: str, name: str, it: object, options: object, lines: list[str]) -> None:
    """|z| in a docstring is an absolute value; reStructuredText takes it for a name."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.add_lexer("layers", TextLexer)
    app.connect("source-read", _download)
    app.connect("autodoc-process-docstring", _bars)
