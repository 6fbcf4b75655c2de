"""The laboratory on several seeds, and the tables and figures of docs/laboratory.md.

usage: python examples/laboratory.py [--seeds 5] [--output runs/laboratory] [--write]

About four minutes a seed on two quiet cores; a second call goes on where a first was stopped.
"""

import argparse
import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from calibrant.diagnosis.regime import regime
from calibrant.files import replace_block, write_text
from calibrant.lab.cascade import SOURCES, cascade
from calibrant.lab.findings import pictures, theory_table
from calibrant.lab.story import IN, OUT, LabSettings, Story, dpo_name, tell
from calibrant.metrics import nll
from calibrant.report.figures import save_figure
from calibrant.report.tables import Table, number
from calibrant.runs import TRAIN

REPOSITORY = Path(__file__).parents[1]
PAGE, FIGURES = REPOSITORY / "docs/laboratory.md", REPOSITORY / "docs/laboratory"
CASCADES = ("sft2", "released-in-sample", "released-frozen", "rcft", "alone-frozen",
            "alone-held-out")  # fmt: skip
DIAGNOSED = ("cft", "cft-repeated", "sft1-early", "sft1", "sft2", "rcft")


def spread(values: list[float]) -> str:
    """Mean over the seeds, and the range."""
    return f"{number(np.mean(values))} [{number(min(values))}, {number(max(values))}]"


def results(stories: list[Story]) -> Table:
    rows = []
    for checkpoint in stories[0].checkpoints_in_order():
        name = checkpoint.step.name
        inside = [s.bounds(name) for s in stories]
        outside = [s.bounds(name, OUT) for s in stories]
        tables = [[s[name].tables[on] for s in stories] for on in (IN, OUT)]
        losses = [[nll(t.probs(), t.labels, n_options=t.n_options) for t in ts] for ts in tables]
        rows.append(
            (
                checkpoint.step.title,
                number(np.mean([b.accuracy for b in inside])),
                number(np.mean([b.mean_confidence for b in inside])),
                spread([b.conf_ece for b in inside]),
                spread([b.tce for b in inside]),
                number(np.mean(losses[0])),
                number(np.mean([b.accuracy for b in outside])),
                spread([b.conf_ece for b in outside]),
                number(np.mean(losses[1])),
            )
        )
    columns = ("model", "acc", "conf", "conf-ECE", "TCE", "NLL", "other: acc", "conf-ECE", "NLL")
    return Table(columns, tuple(rows))


def sharpening(stories: list[Story]) -> Table:
    rows = []
    names = [*(dpo_name(b) for b in stories[0].settings.betas), "preference-matching", "sft"]
    for name in names:
        reports = [s.collapse(name) for s in stories]
        beta = name.removeprefix("dpo-")
        optimum = number(1 + 1 / float(beta), 1) if name != beta else "1"
        rows.append(
            (
                stories[0][name].step.title,
                optimum,
                spread([r["effective_slope"].value for r in reports]),
                spread([r["collapse_index"].value for r in reports]),
                spread([r["confidence_wrong"].value for r in reports]),
                spread([r["entropy_change"].value for r in reports]),
            )
        )
    columns = ("model", "optimum s", "slope s", "collapse index", "E[c | wrong]", "ΔH, nats")
    return Table(columns, tuple(rows))


def training(stories: list[Story]) -> Table:
    rows = []
    for name in DIAGNOSED:
        train = [s.bounds(name, TRAIN) for s in stories]
        test = [s.bounds(name) for s in stories]
        labels: Counter[str] = Counter()
        for s in stories:
            tables = s[name].tables
            found = regime(tables[TRAIN], tables[IN], s["sft"].tables[IN], n_resamples=300)
            labels[f"{found.label} ({found.method})"] += 1
        pairs = list(zip(train, test, strict=True))
        rows.append(
            (
                stories[0][name].step.title,
                number(np.mean([b.accuracy for b in train])),
                spread([b.excess_accuracy for b in train]),
                number(np.mean([b.z for b in train]), 1),
                number(np.mean([a.accuracy - b.accuracy for a, b in pairs])),
                number(np.mean([a.mean_confidence - b.mean_confidence for a, b in pairs])),
                number(np.mean([b.mean_confidence - b.accuracy for b in test])),
                ", ".join(f"{label}: {n} of {len(stories)}" for label, n in labels.items()),
            )
        )
    columns = ("model", "A_tr", "A_tr − ACC*", "Z", "A_tr − A_te", "shrinkage", "c̄_te − A_te",
               "diagnose says (recommends)")  # fmt: skip
    return Table(columns, tuple(rows), text_columns=(0, 7))


def bare_cascades() -> Table:
    rows = []
    for source, title in SOURCES.items():
        runs = [cascade(source, seed) for seed in range(5)]
        at = list(runs[0].steps)
        cells = [spread([r.conf_ece[at.index(step)] for r in runs]) for step in (0, 20, 100, 400)]
        rows.append((title, *cells, spread([r.confidence_sd[-1] for r in runs])))
    columns = ("accuracies", "start", "step 20", "step 100", "step 400", "sd(conf) at the end")
    return Table(columns, tuple(rows))


def cascades(stories: list[Story]) -> Table:
    rows = []
    for name in CASCADES:
        tables = [s[name].tables for s in stories]
        rows.append(
            (
                stories[0][name].step.title,
                f"{stories[0][name].step.settings.get('ece_weight', 0):g}",
                spread([t[TRAIN].correct.mean() for t in tables]),
                spread([t[TRAIN].confidence.mean() for t in tables]),
                spread([t[IN].correct.mean() for t in tables]),
                spread([t[IN].confidence.mean() for t in tables]),
                spread([t[IN].confidence.std() for t in tables]),
                spread([s.bounds(name).conf_ece for s in stories]),
            )
        )
    columns = ("model", "λ", "train: acc", "mean conf", "test: acc", "mean conf", "sd(conf)",
               "conf-ECE")  # fmt: skip
    return Table(columns, tuple(rows))


def bounds_kept(stories: list[Story]) -> str:
    checked = broken = 0
    largest = 0.0
    for s in stories:
        for checkpoint in s.checkpoints_in_order():
            for on in checkpoint.tables:
                b = s.bounds(checkpoint.step.name, on)
                checked, broken = checked + 1, broken + bool(b.violations())
                if on != TRAIN:
                    largest = max(largest, abs(b.z))
    return (
        f"Over {len(stories)} worlds, {checked} answer tables of checkpoints were held to T1–T3: "
        f"{broken} violated one. T4: on test questions |Z| was at most {largest:.1f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "runs/laboratory")
    parser.add_argument("--write", action="store_true", help="into docs/laboratory.md")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    stories = [
        tell(LabSettings(seed=seed), arguments.output / str(seed))
        for seed in range(arguments.seeds)
    ]
    seeds = ", ".join(str(s.settings.seed) for s in stories)
    blocks = {
        "worlds": f"All tables are of {len(stories)} worlds, seeds {seeds}; figures of the first.",
        "sharpening": sharpening(stories).to_markdown(),
        "theory": theory_table(stories[0]).to_markdown(),
        "bounds": bounds_kept(stories),
        "results": results(stories).to_markdown(),
        "training": training(stories).to_markdown(),
        "bare-cascade": bare_cascades().to_markdown(),
        "cascade": cascades(stories).to_markdown(),
    }
    for name, block in blocks.items():
        print(f"{name}\n{block}\n")
    if not arguments.write:
        return
    text = PAGE.read_text(encoding="utf-8")
    for name, block in blocks.items():
        text = replace_block(text, name, block)
    write_text(PAGE, text)
    shutil.rmtree(FIGURES, ignore_errors=True)
    FIGURES.mkdir()
    for name, figure in pictures(stories[0]).items():
        save_figure(figure, FIGURES / name, formats=("png",))


if __name__ == "__main__":
    main()
