"""Write docs/measures.md from the registry: `python docs/make_measures.py`. A test sees that it is up to date."""

from __future__ import annotations

from pathlib import Path

from tightframe.metrics.registry import MEASURES, Measure
from tightframe.scores.transferability import SLOW

HEADINGS = {
    "collapse": "Collapse metrics: lower is more collapsed",
    "score": "Transferability scores: higher is better",
    "probe": "Probes: accuracies",
}
NEEDS = {
    "moments": "moments",
    "features": "features",
    "labels": "",
    "classes": "",
    "head": "a head trained on these classes",
    "source": "the model's own probabilities",
}


def page() -> str:
    """The page, in Markdown."""
    parts = [
        "# Every measure",
        "",
        "Written by `python docs/make_measures.py` from what stands beside each function; change it there.",
        "Each is a plain function in `tightframe.metrics`; `tightframe.collapse_metrics` and",
        "`tightframe.transferability` compute all that the evidence at hand allows. *Unchanged by* is tested for every",
        "measure, and so is the reverse.",
        "",
    ]
    for kind, heading in HEADINGS.items():
        found = sorted((m for m in MEASURES.values() if m.kind == kind), key=lambda measure: measure.name)
        if found:
            parts += [
                f"## {heading}",
                "",
                "| name | what it says | needs | unchanged by | source |",
                "|---|---|---|---|---|",
            ]
            parts += [_line(measure) for measure in found] + [""]
    parts += [
        "`ncti` (Wang et al., ICCV 2023) is scaled over a pool of models, so it is no measure of one. `rank` shows",
        "it, and `metrics.fisher_scores.ncti` brings together what `ncti_parts` finds of each model.",
        "",
    ]
    parts += [f"Left out unless asked for by name, being slow: {', '.join(sorted(SLOW))}."]
    return "\n".join(parts) + "\n"


def _line(measure: Measure) -> str:
    needs = ", ".join(filter(None, (NEEDS[need] for need in measure.needs)))
    holds = ", ".join(sorted(measure.unchanged_by)) or "–"
    cells = (f"`{measure.name}`", measure.meaning.rstrip("."), needs, holds, measure.reference)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    Path(__file__).with_name("measures.md").write_text(page(), encoding="utf-8")
