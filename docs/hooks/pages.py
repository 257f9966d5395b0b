"""What the site shows otherwise than a reader of the files sees it: formulas, and links to files that the site has not."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import latex2mathml.converter

OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """A link that leaves docs/ becomes the file's name: the site is read without the code."""
    depth = len(PurePosixPath(page.file.src_uri).parts) - 1

    def named(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        if target.count("../") <= depth:
            return link[0]
        name = target.replace("../", "")
        return text if name in text else f"{text} (`{name}`)"

    return OUTSIDE.sub(named, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Formulas become MathML, which browsers draw without a script."""

    def drawn(formula: re.Match[str]) -> str:
        display = "block" if formula[2] == "[" else "inline"
        text = formula[3].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
        return latex2mathml.converter.convert(text, display=display)

    return FORMULA.sub(drawn, html)
