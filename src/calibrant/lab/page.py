"""The laboratory's page: one self-contained HTML file, and the same as Markdown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibrant.diagnosis.verdict import verdict
from calibrant.files import write_json, write_text
from calibrant.lab.findings import TOLERANCE, pictures, results_table, theory_table, words
from calibrant.lab.story import CHAPTERS, IN, Story
from calibrant.report import page as page_file
from calibrant.report.drawings import Picture
from calibrant.report.figures import save_figure
from calibrant.report.page import Claim, Page, Section
from calibrant.report.sections import making_section
from calibrant.report.svg import of_figure
from calibrant.report.tables import Table
from calibrant.runs import versions

# Figures of each chapter, with what they show in words.
_FIGURES = (
    (),
    (
        ("reliability", "Reliability: share of right answers against confidence, by stage."),
        ("sharpening", "Slope, collapse index and conf-ECE of DPO models against β."),
    ),
    (("remedies", "Every remedy in the labelled domain and in the domain without labels."),),
    (("regimes", "Accuracy and conf-ECE of every model; right of ACC* is the non-calibratable "
                 "regime."),),
    (
        ("bare-cascade", "The calibration term of RCFT alone, on 20,000 confidences: accuracies "
                         "measured once, or on memorised labels, pull all to one value."),
        ("cascade", "The language model while few labels are trained on; dashed: the calibration "
                    "term alone (λ = 1,000)."),
    ),
)  # fmt: skip


def write_page(story: Story, seconds: float) -> None:
    """Write ``report.html``, ``report.md``, ``report.json`` and the figures into the run folder."""
    said = [words(story, i) for i in range(len(CHAPTERS))]
    folder = Path(story.folder) / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in pictures(story).items():
        save_figure(figure, folder / name)
    tables = [results_table(story), theory_table(story)]
    chapters = [
        Section(
            f"{i + 1}. {title}",
            (said[i],),
            {"": [_picture(folder, name, text) for name, text in _FIGURES[i]]},
            size="full",
        )
        for i, title in enumerate(CHAPTERS)
    ]
    page = Page(
        title="Why alignment breaks calibration, and what restores it",
        subtitle="calibrant's laboratory: a small world whose true answer probabilities are known. "
        f"Seed {story.settings.seed}; ran in {seconds / 60:.1f} minutes. Models, questions and "
        "answer tables are in this folder.",
        claims=_claims(story),
        sections=(
            *chapters,
            Section("All numbers", tables=tuple(tables)),
            making_section(asdict(story.settings), versions()),
        ),
        headline="In short",
    )
    page_file.write_page(story.folder / "report.html", page)
    write_text(story.folder / "report.md", _markdown(said, tables))
    write_json(story.folder / "report.json", _numbers(story, seconds))


def _picture(folder: Path, name: str, text: str) -> Picture:
    drawn = (folder / f"{name}.svg").read_text(encoding="utf-8")
    return Picture(name, text, of_figure(name, drawn, title=name, description=text), None)


def _claims(story: Story) -> tuple[Claim, ...]:
    """What became of the SFT model's calibration under DPO, and what CFT made of that."""
    aligned, cft = story.aligned, story["cft"]
    steps = ((story["sft"], aligned), (aligned, cft))
    found = []
    for before, after in steps:
        judged = verdict(before.tables[IN], after.tables[IN], tolerance=TOLERANCE)
        about = f"{before.step.title} → {after.step.title}, {IN}"
        found.append(Claim(judged.label, judged.reason, about))
    return tuple(found)


def _markdown(said: list[str], tables: list[Table]) -> str:
    parts = []
    for i, title in enumerate(CHAPTERS):
        parts.append(f"## {i + 1}. {title}\n\n{said[i]}\n")
        parts += [f"![{text}](figures/{name}.png)\n" for name, text in _FIGURES[i]]
    return "\n".join(parts + [table.to_markdown() for table in tables])


def _numbers(story: Story, seconds: float) -> dict[str, Any]:
    return {
        "format_version": 1,
        "settings": asdict(story.settings),
        "seconds": seconds,
        "checkpoints": {
            c.step.name: {on: story.bounds(c.step.name, on).to_dict() for on in c.tables}
            for c in story.checkpoints_in_order()
        },
    }
