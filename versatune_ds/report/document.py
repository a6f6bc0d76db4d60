"""Write a Markdown page as one HTML file that needs nothing else, in the report's style.

The one idea: the HTML is made from the Markdown, so both say the same; pictures go into the file, HTML within the text
is shown and not obeyed, and a policy in the file's head lets the browser load nothing.
"""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path

import jinja2
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from versatune_ds.run_folder.atomic import write_text

_FOLDER = Path(__file__).parent


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
                _put_in(child, path.parent)
    body = parser.renderer.render(tokens, parser.options, {})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    style = Markup((_FOLDER / "style.css").read_text(encoding="utf-8"))
    body = body.replace("<table>", '<div class="card scroll"><table>').replace("</table>", "</table></div>")
    text = environment.get_template("document.html").render(title=title, style=style, body=Markup(body))
    write_text(path, text)
    return path


def _put_in(image: Token, folder: Path) -> None:
    """Replace a picture's address by its content."""
    file = folder / str(image.attrs["src"])
    kind, _ = mimetypes.guess_type(file.name)
    image.attrs["src"] = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
