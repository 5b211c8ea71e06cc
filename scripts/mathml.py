"""Equations of the docs as MathML, which browsers draw without scripts: the formatter of ```math fences."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def display(source: str, language: str, css_class: str, options: Any, md: Any, **kwargs: Any) -> str:
    """A block of LaTeX as MathML; the signature is that of a formatter of pymdownx.superfences."""
    return f'<div class="{css_class}">{convert(source, display="block")}</div>'
