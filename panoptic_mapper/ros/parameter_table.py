"""The table of the node's own parameters in docs/ros.md; `python -m panoptic_mapper.ros.parameter_table` renews it."""

from __future__ import annotations

import re
from pathlib import Path

from panoptic_mapper.config import Parameter, iter_parameters
from panoptic_mapper.ros.node_config import NodeConfig

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/ros.md"
ELSEWHERE = ("mapper.", "segmenter.")  # described where those parts are
MARKED = re.compile(r"(?<=<!-- parameters -->\n).*?(?=<!-- /parameters -->)", re.DOTALL)


def parameter_table() -> str:
    """A Markdown table of all parameters but those described elsewhere."""
    rows = ["| parameter | default | range | what |", "|---|---|---|---|"]
    for p in iter_parameters(NodeConfig):
        if not p.name.startswith(ELSEWHERE):
            default = list(p.default) if isinstance(p.default, tuple) else p.default
            rows.append(f"| `{p.name}` | `{default!r}` | {_range(p)} | {p.help} |")
    return "\n".join(rows) + "\n"


def _range(p: Parameter) -> str:
    if p.choices:
        return ", ".join(p.choices)
    if p.minimum is None and p.maximum is None:
        return ""
    return f"{'' if p.minimum is None else p.minimum} .. {'' if p.maximum is None else p.maximum}".strip()


if __name__ == "__main__":
    DOCUMENT.write_text(MARKED.sub(lambda _: parameter_table(), DOCUMENT.read_text()))
