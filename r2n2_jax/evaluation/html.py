"""Self-contained HTML pages: tables and embedded images, nothing from outside."""

import base64
import html
import io
from collections.abc import Iterable

from matplotlib.figure import Figure

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.2em .7em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}figcaption{color:#555}"
)


def document(title: str, parts: Iterable[str]) -> str:
    """A page of the given parts."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join([heading(title, level=1), *parts])
    return f'<!doctype html><html lang="en">{head}{body}</html>\n'


def heading(text: str, *, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table of text."""
    lines = []
    for kind, row in [("th", header), *(("td", row) for row in rows)]:
        lines.append("<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def figure(title: str, drawn: Figure, caption: str = "", *, kind: str = "png", dpi: int = 90) -> str:
    """A heading and a figure: as PNG, small for lines, or as JPEG, small for images."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=kind, dpi=dpi)
    return picture(title, kind, buffer.getvalue(), caption)


def picture(title: str, kind: str, content: bytes, caption: str = "") -> str:
    """A heading and an image file's content."""
    image = base64.b64encode(content).decode()
    return heading(title) + (
        f'<figure><img alt="{html.escape(title)}" src="data:image/{kind};base64,{image}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
