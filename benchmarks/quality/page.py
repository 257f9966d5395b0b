"""The report as one HTML page that needs nothing else: no network, no other file, light or dark as the reader has it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from markdown_it import MarkdownIt

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fbfbfa; --line: #d9dce1; --head: #f0f1f3; --link: #2a62b5 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde2ea; --paper: #15181d; --line: #343a44; --head: #20252d; --link: #8ab4f0 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 74rem; color: var(--ink); background: var(--paper);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.8rem } h2 { margin-top: 3rem; padding-bottom: .3rem; border-bottom: 2px solid var(--line) }
h3 { margin-top: 2.2rem }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { background: var(--head); font-weight: 600 }
tbody tr:hover { background: var(--head) }
figure { margin: 1.2rem 0 } figure svg { width: 100%; height: auto; max-width: 62rem; color: var(--ink) }
code, pre { font-size: .85rem; background: var(--head); border-radius: 4px } code { padding: .1rem .3rem }
pre { padding: .8rem; overflow-x: auto } details { margin: 1rem 0 } summary { cursor: pointer }
"""


def html_page(markdown: str, pictures: Mapping[str, str]) -> str:
    """The Markdown report as HTML. `pictures`: {"DATASET/NAME": SVG}."""
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    body = re.sub(r"<!-- picture: (\S+) -->", lambda found: _figure(found[1], pictures), body)
    title = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title[1] if title else ''}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _figure(name: str, pictures: Mapping[str, str]) -> str:
    if name not in pictures:
        return ""
    label = name.replace("/", ": ").replace("-", " ")
    return f'<figure role="img" aria-label="{label}">{pictures[name]}</figure>'
