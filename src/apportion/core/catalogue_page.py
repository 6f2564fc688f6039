"""The catalogue as a page of the documentation: ``python -m apportion.core.catalogue_page >
docs/catalog.md``.
"""

from __future__ import annotations

import sys

from apportion.core.catalogue import MethodInfo, Paper, describe, families, names


def page() -> str:
    """The catalogue as a page of Markdown: ``docs/catalog.md``."""
    lines = [
        "# Catalogue of methods",
        "",
        "Generated from the methods' docstrings by `python -m apportion.core.catalogue_page`; do not edit.",
        "A method is used by its name and parameters, in the configuration or by `catalogue.build`.",
    ]
    for family in families():
        lines += ["", f"## {family}", "", "| method | what it does |", "| --- | --- |"]
        infos = [describe(name) for name in names(family)]
        lines += [f"| [`{info.name}`](#{info.name.replace('/', '')}) | {info.summary} |" for info in infos]
        for info in infos:
            lines += ["", *_entry(info)]
    return "\n".join(lines) + "\n"


def _entry(info: MethodInfo) -> list[str]:
    lines = [f"### {info.name}", "", info.summary + (" A baseline." if info.baseline else "")]
    if info.parameters:
        lines += ["", "| parameter | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for parameter in info.parameters:
            cells = (f"`{parameter.name}`", f"`{parameter.default}`", parameter.allowed, parameter.meaning)
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    lines += ["", f"Complexity: {info.complexity}"]
    lines += ["", *(f"- {_cited(paper)}" for paper in info.papers)] if info.papers else []
    return lines


def _cited(paper: Paper) -> str:
    title = paper.title if paper.title.endswith("?") else f"{paper.title}."
    if paper.arxiv:
        return f"{title} [arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"
    if paper.doi:
        return f"{title} [doi:{paper.doi}](https://doi.org/{paper.doi})"
    return f"{title} <{paper.url}>"


if __name__ == "__main__":
    sys.stdout.write(page())
