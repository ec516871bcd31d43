"""What a panel shows: sentences, lists, tables and pictures, as HTML and as plain text.

Whatever comes from outside, such as the name of a model, is escaped here and nowhere else.
"""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from IPython.core.getipython import get_ipython

from workbench import figures

__all__ = ["Content", "listed", "pictures", "sentence", "table"]


@dataclass(frozen=True)
class Content:
    """What goes into a panel's output: HTML, and the same in plain text."""

    html: str
    text: str

    def __add__(self, other: "Content") -> "Content":
        return Content(self.html + other.html, f"{self.text}\n\n{other.text}")


def sentence(text: str, role: str = "note", bold: bool = False, size: str = "") -> Content:
    """A paragraph; whatever it says is escaped."""
    weight = "font-weight:600;" if bold else ""
    weight += f"font-size:{size};line-height:1.35;" if size else ""
    edge = "border-left:4px solid #D55E00;padding-left:8px;" if role == "alert" else ""
    style = f"margin:4px 0 8px;{weight}{edge}"
    return Content(f'<p role="{role}" style="{style}">{html.escape(text)}</p>', text)


def listed(items: Sequence[str]) -> Content:
    """Bullet points; whatever they say is escaped."""
    body = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return Content(
        f'<ul style="margin:4px 0 8px;padding-left:20px">{body}</ul>',
        "\n".join(f"- {item}" for item in items),
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Content:
    """A small table; whatever it says is escaped."""
    cell = "text-align:left;padding:2px 14px 2px 0"
    head = "".join(f'<th scope="col" style="{cell}">{html.escape(h)}</th>' for h in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{html.escape(v)}</td>' for v in row) + "</tr>"
        for row in rows
    )
    return Content(
        f'<table style="margin:8px 0"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>',
        "\n".join(" | ".join(row) for row in (header, *rows)),
    )


def pictures(*drawn: Any) -> Content:
    """Figures side by side as `figures.show` renders them, with their alternative text."""
    if get_ipython() is None:
        # Nobody can see a picture outside IPython; its description still says what it shows.
        alts = [str(figure.alt_text) for figure in drawn]
        return Content("".join(f"<p>{html.escape(alt)}</p>" for alt in alts), "\n\n".join(alts))
    images, alts = [], []
    for figure in drawn:
        # Not by capturing what is displayed: callbacks run beside the kernel's main thread, which
        # dies if it takes a message while IPython's publisher is replaced.
        picture, alt = figures.rendered(figure)
        alts.append(alt)
        encoded = base64.b64encode(picture).decode("ascii")
        images.append(
            f'<img src="data:image/png;base64,{encoded}" alt="{html.escape(alts[-1])}" '
            'class="jp-needs-light-background" '
            'style="flex:1 1 380px;min-width:0;max-width:620px">'
        )
    box = "display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start"
    return Content(f'<div style="{box}">{"".join(images)}</div>', "\n\n".join(alts))
