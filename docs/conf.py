"""Settings of Sphinx; `make docs-build` builds the site, `make docs` serves it."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from deepteach import __version__ as release

project = "deepteach"
author = copyright = "The deepteach developers"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["math.css"]
version = release
html_title = f"deepteach {release}"
html_theme = "furo"
extensions = [
    "myst_nb",  # Markdown, and notebooks with the outputs that they were committed with
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
nb_execution_mode = "off"  # `make notebooks` runs them
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
default_role = "code"  # single backticks, as the docstrings write names
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
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


def _mathml(block: bool) -> tuple[Any, None]:
    def visit(page: HTML5Translator, node: nodes.Element) -> None:
        """Browsers draw MathML by themselves: no script, and no network."""
        page.body.append(tex2mathml(node.astext(), as_block=block))
        raise nodes.SkipNode

    return visit, None


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.add_lexer("layers", TextLexer)
    app.add_html_math_renderer("mathml", _mathml(block=False), _mathml(block=True))
    app.connect("source-read", _download)
    app.connect("autodoc-process-docstring", _bars)
