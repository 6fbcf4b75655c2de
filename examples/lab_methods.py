"""Every method in the laboratory, where the truth is known; writes docs/results/lab-methods.md.

usage: python examples/lab_methods.py [--stories runs/laboratory] [--output runs/lab-methods]
                                      [--seeds 0 ...] [--write]

Takes the aligned models of `examples/laboratory.py`, one world for each seed, and restores each by
`calibrant restore --method all` in both regimes: many fresh labels, met once; and few, met many
times. Also aligns anew with CATTO beside DPO. About five minutes of a core a seed; a second call
goes on where a first was stopped, and --write makes the page of what there is.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import yaml

from calibrant.answers import AnswerTable
from calibrant.diagnosis.bounds import bounds
from calibrant.files import write_text
from calibrant.lab.story import IN, OUT, dpo_name
from calibrant.lab.world import DOMAINS, World
from calibrant.metrics import nll
from calibrant.questions import load_questions
from calibrant.report.tables import Table, number
from calibrant.restore import RestoreSettings, restore
from calibrant.runs import TRAIN

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs/results/lab-methods.md"
REGIMES = {
    "fresh": ("Fresh labels, met once", {"epochs": 1.0, "learning_rate": 1e-3}),
    "few": ("Few labels, met 20 times", {"epochs": 20.0, "learning_rate": 2e-3}),
}
CATTO_WEIGHTS = (0.1, 1.0, 10.0)
PAIRS = 3  # the draw of the story's preference pairs


def story_settings(folder: Path) -> dict:
    """Settings of a laboratory run."""
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return content["settings"]


def run_regime(story: Path, regime: str, output: Path) -> None:
    """Restore the aligned model of a story by every method."""
    settings = story_settings(story)
    questions, aligned = story / "questions", story / dpo_name(settings["betas"][-1])
    how = RestoreSettings(
        model=str(aligned / "model"),
        train=(str(questions / f"{IN}-{regime}.jsonl"),),
        evaluate=(str(questions / f"{IN}-test.jsonl"),),
        out_of_domain=(str(questions / f"{OUT}-test.jsonl"),),
        methods=("all",),
        reference_model=str(story / "sft" / "model"),
        prompt="cloze",
        device="cpu",
        overlap="keep",  # questions of the world may repeat by chance, as the story's do
        batch_size=32,
        lora_rank=0,
        ece_weight=settings["ece_weight"],
        seed=settings["seed"],
        **REGIMES[regime][1],
    )
    restore(how, str(output), say=lambda line: print(f"  {line}", flush=True))


def run_catto(story: Path, output: Path) -> None:
    """Align the story's SFT model with DPO and CATTO; answer its test questions."""
    from calibrant.lab import stages
    from calibrant.scoring.local import score
    from calibrant.scoring.models import load_model

    settings = story_settings(story)
    beta = settings["betas"][-1]
    world = World(settings["seed"], settings["ceiling"])
    pairs = [p for d in DOMAINS for p in world.pairs(d.name, settings["pairs"], PAIRS)]
    for weight in CATTO_WEIGHTS:
        target = output / f"catto-{weight:g}"
        paths = {on: target / f"{on}.parquet" for on in (IN, OUT)}
        if all(path.exists() for path in paths.values()):
            continue
        print(f"  catto, λ = {weight:g}", flush=True)
        model, tokenizer = load_model(str(story / "sft" / "model"), device="cpu")
        model = stages.align(
            model, tokenizer, pairs, seed=settings["seed"], beta=beta, loss="catto",
            calibration_weight=weight,
        )  # fmt: skip
        target.mkdir(parents=True, exist_ok=True)
        for on, path in paths.items():
            questions = load_questions(story / "questions" / f"{on}-test.jsonl")
            score(model, tokenizer, questions, prompt="cloze", show_progress=False).save(path)


class Truth:
    """Measures answer tables of one world against its true probabilities."""

    def __init__(self, story: Path) -> None:
        settings = story_settings(story)
        world = World(settings["seed"], settings["ceiling"])
        self.rows = {}
        for file in sorted((story / "questions").glob("*.jsonl")):
            questions = load_questions(file)
            target = world.target(questions)
            self.rows |= dict(zip((q.id for q in questions), target, strict=True))

    def measure(self, table: AnswerTable) -> tuple[float, float, float]:
        """Exact accuracy and conf-ECE, over the true probabilities, and NLL on the labels."""
        target = np.zeros_like(table.logprobs)
        for i, name in enumerate(table.ids):
            row = self.rows[name][: target.shape[1]]
            target[i, : len(row)] = row
        found = bounds(table.probs(), table.labels, target, n_options=table.n_options)
        loss = nll(table.probs(), table.labels, n_options=table.n_options)
        return found.expected_accuracy, found.target_conf_ece, loss


def tables_of(folder: Path) -> dict[str, dict[str, AnswerTable]]:
    """Answer tables of a restoration: method -> "in", "out"."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    domains = {s: d for s, d in report["sets"].items() if s != TRAIN}
    return {
        method: {
            d: AnswerTable.load(folder / method / "answers" / f"{s}.parquet")
            for s, d in domains.items()
        }
        for method in report["reports"]
    }


def spread(values: list[float]) -> str:
    """Mean over the worlds, and the range if there are several."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(np.mean(values))} [{number(min(values))}, {number(max(values))}]"


def results_table(title: str, worlds: list[tuple[Truth, dict]]) -> Table:
    """One row a method, means over the worlds that have it."""
    methods = list(dict.fromkeys(m for _, tables in worlds for m in tables))
    rows = []
    for method in methods:
        cells = []
        for domain in ("in", "out"):
            there = [(truth, t[method]) for truth, t in worlds if method in t]
            measured = [truth.measure(tables[domain]) for truth, tables in there]
            cells += [spread(list(column)) for column in zip(*measured, strict=True)]
        rows.append((method, *cells))
    columns = ("method", "in: acc", "conf-ECE", "NLL", "out: acc", "conf-ECE", "NLL")
    return Table(columns, tuple(rows), title=f"{title} ({len(worlds)} worlds)")


def write(stories: Path, output: Path) -> None:
    """Write the page of what there is."""
    sections, notes = [], []
    for regime, (title, _) in REGIMES.items():
        folders = sorted(output.glob(f"*/{regime}"))
        there = [f for f in folders if (f / "report.json").exists()]
        worlds = [(Truth(stories / f.parent.name), tables_of(f)) for f in there]
        if worlds:
            sections.append(results_table(title, worlds).to_markdown())
            report = json.loads((there[0] / "report.json").read_text(encoding="utf-8"))
            where = f"{stories.resolve()}/"
            notes += [f"- {title}: {n.replace(where, '')}" for n in report["notes"]]
    aligned = []
    for folder in sorted(output.glob("*/catto")):
        story = stories / folder.parent.name
        beta = dpo_name(story_settings(story)["betas"][-1])
        tables = {
            name: {
                d: AnswerTable.load(story / name / "answers" / f"{on}.parquet")
                for d, on in (("in", IN), ("out", OUT))
            }
            for name in ("sft", beta, "preference-matching")
            if (story / name / "done").exists()
        }
        for weight in CATTO_WEIGHTS:
            paths = {d: folder / f"catto-{weight:g}" / f"{on}.parquet" for d, on in
                     (("in", IN), ("out", OUT))}  # fmt: skip
            if all(path.exists() for path in paths.values()):
                tables[f"catto-{weight:g}"] = {d: AnswerTable.load(p) for d, p in paths.items()}
        aligned.append((Truth(story), tables))
    if aligned:
        title = "Aligning with calibration in mind: CATTO, β as DPO's"
        sections.append(results_table(title, aligned).to_markdown())
    head = (
        "# Every method in the laboratory\n\n"
        "Made by `python examples/lab_methods.py` from the aligned models of "
        "`examples/laboratory.py`, then `--write`. conf-ECE is exact: it is taken over the true "
        "probabilities, so it has no noise floor but that of ten bins. Means over the worlds, with "
        "the range where there are several; every weight is trained; the labels are those of the "
        "domain called in.\n"
    )
    write_text(PAGE, "\n".join([head, *sections, *notes, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path, default=Path("runs/laboratory"))
    parser.add_argument("--output", type=Path, default=Path("runs/lab-methods"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="write the page of what there is")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.stories, arguments.output)
        return
    for seed in arguments.seeds:
        story, output = arguments.stories / str(seed), arguments.output / str(seed)
        output.mkdir(parents=True, exist_ok=True)
        for regime in REGIMES:
            print(f"world {seed}: {regime}", flush=True)
            run_regime(story, regime, output / regime)
        run_catto(story, output / "catto")


if __name__ == "__main__":
    main()
