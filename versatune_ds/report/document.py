"""Make HTML files that need nothing else: the template that all pages share, and a Markdown text as a page.

Everything is in the one file: style, pictures, numbers. What a page shows is escaped, HTML in a Markdown text too, and
a content policy in its head stops the browser from loading anything.
"""

from __future__ import annotations

import base64
import mimetypes
import re
from pathlib import Path

import jinja2
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from versatune_ds.run_folder.atomic import write_text

FOLDER = Path(__file__).parent
"""Folder of the templates, the style and the script."""


def write_document(markdown: str, path: Path, *, title: str) -> Path:
    """Write a Markdown text as HTML; return the file's path.

    Args:
        markdown: The text, tables included; its pictures are files beside `path`.
        path: HTML file to write.
        title: The browser's title.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                _embed(child, path.parent)
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("<table>", '<div class="card scroll"><table>').replace("</table>", "</table></div>")
    text = html_environment().get_template("document.html").render(title=title, body=Markup(body))
    write_text(path, text)
    return path


def html_environment() -> jinja2.Environment:
    """Return the environment of the templates: what they show is escaped, a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    environment.globals["style"] = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    return environment


def breakable(text: object) -> Markup:
    """Return text, escaped, that may break after a `_`, `-`, `.` or `/`: long names of domains have no spaces."""
    return Markup(re.sub(r"([_./-]+)(?=[^\s_./-])", r"\1<wbr>", str(escape(str(text)))))


def _embed(image: Token, folder: Path) -> None:
    """Replace the address of a picture by its content."""
    file = folder / str(image.attrs["src"])
    kind, _ = mimetypes.guess_type(file.name)
    image.attrs["src"] = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
