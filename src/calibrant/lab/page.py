"""The laboratory's page: one self-contained HTML file, and the same as Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from calibrant.files import write_text
from calibrant.lab.findings import pictures, results_table, theory_table, words
from calibrant.lab.story import CHAPTERS, Story
from calibrant.report.figures import save_figure, svg_text
from calibrant.report.tables import Table

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

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The laboratory</title>
<style>
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --line: #d6d6d6; --soft: #6e6e6e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #17181a; --line: #3b3d40; --soft: #a0a0a0 }
}
body { margin: 2rem auto; max-width: 58rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
p { max-width: 46rem } .soft, caption, figcaption { color: var(--soft); font-size: .9rem }
figure { margin: 1.2rem 0; padding: .8rem; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; overflow-x: auto }
figure svg { display: block; max-width: 100%; height: auto; margin: auto }
figcaption { color: #6e6e6e; margin-top: .5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums }
caption { text-align: left; caption-side: top; padding: .3rem 0 }
th, td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap }
th { border-bottom-width: 2px } .text { text-align: left }
</style>
</head>
<body>
<main>
<h1>Why alignment breaks calibration, and what restores it</h1>
<p class="soft">calibrant's laboratory: a small world whose true answer probabilities are known.
Seed {{ settings.seed }}; ran in {{ minutes }} minutes. Models, questions and answer tables are in
this folder.</p>
{% for chapter in chapters %}
<h2>{{ loop.index }}. {{ chapter.title }}</h2>
<p>{{ chapter.words }}</p>
{% for name, caption, svg in chapter.figures %}
<figure role="img" aria-label="{{ caption }}">{{ svg | safe }}
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% endfor %}
<h2>All numbers</h2>
{% for table in tables %}
<div class="wide" tabindex="0" role="region" aria-label="{{ table.title }}"><table>
<caption>{{ table.title }}{% for note in table.notes %} {{ note }}{% endfor %}</caption>
<thead><tr>{% for name in table.columns %}
<th scope="col"{% if loop.index0 in table.text_columns %} class="text"{% endif %}>{{ name }}</th>
{%- endfor %}</tr></thead>
<tbody>{% for row in table.rows %}
<tr>{% for cell in row %}
<td{% if loop.index0 in table.text_columns %} class="text"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endfor %}
</main>
</body>
</html>
"""


def write_page(story: Story, seconds: float) -> None:
    """Write ``report.html``, ``report.md``, ``report.json`` and the figures into the run folder."""
    from jinja2 import Environment

    drawn = pictures(story)
    folder = Path(story.folder) / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        save_figure(figure, folder / name)
    tables = [results_table(story), theory_table(story)]
    chapters = [
        {
            "title": title,
            "words": words(story, i),
            "figures": [(name, text, svg_text(drawn[name])) for name, text in _FIGURES[i]],
        }
        for i, title in enumerate(CHAPTERS)
    ]
    html = (
        Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            chapters=chapters, tables=tables, settings=story.settings, minutes=f"{seconds / 60:.1f}"
        )
    )
    write_text(story.folder / "report.html", html)
    write_text(story.folder / "report.md", _markdown(story, tables))
    write_text(story.folder / "report.json", _numbers(story, seconds))


def _markdown(story: Story, tables: list[Table]) -> str:
    parts = []
    for i, title in enumerate(CHAPTERS):
        parts.append(f"## {i + 1}. {title}\n\n{words(story, i)}\n")
        parts += [f"![{text}](figures/{name}.png)\n" for name, text in _FIGURES[i]]
    return "\n".join(parts + [table.to_markdown() for table in tables])


def _numbers(story: Story, seconds: float) -> str:
    content = {
        "format_version": 1,
        "settings": asdict(story.settings),
        "seconds": seconds,
        "checkpoints": {
            c.step.name: {on: story.bounds(c.step.name, on).to_dict() for on in c.tables}
            for c in story.checkpoints_in_order()
        },
    }
    return json.dumps(content, indent=1) + "\n"
