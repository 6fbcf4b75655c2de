"""Tables and figures of docs/results/protocol.md, from the units there are; see protocol.py."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from protocol import BEFORE, IN, OUT, PAIR_TOKENS, PRIDE, SEED, SETUPS, Setup, Unit, units

from calibrant.answers import AnswerTable
from calibrant.diagnosis.comparison import Comparison, compare, pooled
from calibrant.errors import InputError
from calibrant.files import write_text
from calibrant.metrics import accuracy, conf_ece, nll
from calibrant.metrics.inference import agresti_min, bootstrap_intervals, noise_floor
from calibrant.posthoc import LABELLED, TemperatureScaling, load
from calibrant.report.comparison import change_table, plot_changes, prepare_changes, value_table
from calibrant.report.figures import GREY, SERIES, plain, save_figure, style
from calibrant.report.tables import HEADINGS, Table, interval, number

AIM = 0.88  # share of removable conf-ECE that the best published reduction takes away
BUDGETS = (
    "Accuracy, conf-ECE and NLL against the number of labels, one training run for each point; "
    "bars: 95 % over questions; dotted: before, dashed: a temperature fitted on 3,000 labels"
)
DOMAINS = {"in domain": IN, "out of domain": OUT}
BESIDE = "rcft"  # whose settings a setup beside another changes


@dataclass
class Found:
    """What is there of one setup: method -> test set -> table, and what each unit kept."""

    setup: Setup
    tables: dict[str, dict[str, AnswerTable]]
    kept: dict[Unit, dict]
    repeats: dict[Unit, dict[str, AnswerTable]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def read_whole(path: Path) -> AnswerTable:
    """Answer table that `protocol.save_scores` wrote whole."""
    import pyarrow.parquet as pq

    columns = pq.read_table(path).to_pydict()
    rows = columns["logprobs"]
    scores = np.full((len(rows), max(map(len, rows))), -np.inf)
    for i, row in enumerate(rows):
        scores[i, : len(row)] = row
    return AnswerTable(
        ids=tuple(columns["id"]),
        logprobs=scores,
        labels=columns["label"],
        n_options=[len(row) for row in rows],
        option_mass=[np.nan if m is None else min(m, 1.0) for m in columns["option_mass"]],
        tasks=tuple(columns["task"]),
        groups=tuple(g.hex() for g in columns["group"]),
    )


def with_scores(table: AnswerTable, scores: dict[str, list[float]]) -> AnswerTable:
    """Those of a table's questions that have scores here, with these scores."""
    part = table.select([i for i, name in enumerate(table.ids) if name in scores])
    logprobs = np.full(part.logprobs.shape, -np.inf)
    for i, name in enumerate(part.ids):
        logprobs[i, : len(scores[name])] = scores[name]
    return part.with_logprobs(logprobs)


def read_scores(path: Path) -> dict[str, list[float]]:
    """Scores by question id."""
    import pyarrow.parquet as pq

    columns = pq.read_table(path).to_pydict()
    return dict(zip(columns["id"], columns["logprobs"], strict=True))


def by_set(table: AnswerTable) -> dict[str, AnswerTable]:
    """Test sets of a table of all; the set is what stands before the colon in an id."""
    names = np.array([name.partition(":")[0] for name in table.ids])
    return {s: table.select(names == s.replace("/", "-")) for s in (*IN, *OUT)}


def read(setup: Setup, results: Path) -> Found | None:
    """Everything there is of a setup; None without the model's own answers."""
    folder = results / "protocol"
    mine = [u for u in units() if u.setup == setup.name]
    if setup.beside:
        shared = (BEFORE, BESIDE)
        mine = [Unit(setup.beside, m, setup.labels, SEED) for m in shared] + mine
    kept = {
        u: json.loads((folder / u.name / "unit.json").read_text(encoding="utf-8"))
        for u in mine
        if (folder / u.name / "unit.json").exists()
    }
    start = next((u for u in kept if u.method == BEFORE), None)
    if start is None:
        return None
    pool = read_whole(folder / start.name / "train.parquet")
    tests = read_whole(folder / start.name / "tests.parquet")
    found = Found(setup, {BEFORE: by_set(tests)}, kept)
    for name, kind in LABELLED.items():
        if setup.beside and name != "temperature":
            continue
        begin = time.process_time()
        try:
            calibrator = kind().fit(pool)
        except InputError as error:
            found.notes.append(f"{name}: not applicable: {error}")
            continue
        found.seconds[name] = time.process_time() - begin
        found.tables[name] = {}
        for s, table in found.tables[BEFORE].items():
            try:
                found.tables[name][s] = calibrator.transform(table)
            except InputError as error:
                found.notes.append(f"{name}: not applicable to {s}: {error}")
    for u in kept:
        if u.method == BEFORE:
            continue
        if u.method == PRIDE:
            debiased = load(folder / u.name / "pride.json")
            found.tables[PRIDE] = by_set(debiased.transform(tests))
            tempered = TemperatureScaling().fit(debiased.transform(pool))
            found.tables[f"{PRIDE} + temperature"] = by_set(
                tempered.transform(debiased.transform(tests))
            )
            continue
        table = with_scores(tests, read_scores(folder / u.name / "tests.parquet"))
        fitted = folder / u.name / "calibrator.json"
        if fitted.exists():  # the method trains at a temperature
            table = load(fitted).transform(table)
        found.repeats[u] = by_set(table)
        if u.labels == setup.labels and u.seed == SEED:
            found.tables[u.method] = found.repeats[u]
            if fitted.exists():
                continue
            if (tempered := with_online_temperature(pool, folder / u.name, table)) is not None:
                found.tables[f"{u.method} + T"] = by_set(tempered)
    return found


def with_online_temperature(
    pool: AnswerTable, folder: Path, tests: AnswerTable
) -> AnswerTable | None:
    """Temper by the second half of training's own predictions, each made before it was learnt."""
    if not (folder / "online.json").exists():
        return None
    online = json.loads((folder / "online.json").read_text(encoding="utf-8"))
    last = max(step for step, _ in online.values())
    late = {name: scores for name, (step, scores) in online.items() if step > last / 2}
    try:
        return TemperatureScaling().fit(with_scores(pool, late)).transform(tests)
    except InputError:
        return None


# -- tables -------------------------------------------------------------------------------------


def pools(tables: dict[str, AnswerTable]) -> dict[str, AnswerTable]:
    """The test sets of each domain as one, where the method applies to all of them."""
    return {
        name: pooled({s: tables[s] for s in sets})
        for name, sets in DOMAINS.items()
        if all(s in tables for s in sets)
    }


def removed(found: Found, compared: Comparison) -> Table:
    """Share of the conf-ECE above what noise alone gives that each method takes away."""
    rows = []
    start = compared.verdicts["in domain"]
    for run in compared.runs:
        if run not in start:
            continue
        table = pools(found.tables[run])["in domain"]
        before = start[run].before["conf_ece"].value
        after = start[run].after["conf_ece"].value
        floor = noise_floor(table.probs(), table.labels, n_options=table.n_options, seed=SEED).mean
        share = "–"  # a ratio of noise
        if start[run].before["conf_ece"].low > 0:
            share = f"{100 * (before - after) / (before - floor):.0f} %"
        rows.append((run, number(before), number(after), number(floor), share))
    return Table(
        ("run", "before", "after", "noise alone", "taken away"), tuple(rows),
        title=f"conf-ECE in domain above the noise floor (aim: {100 * AIM:.0f} %)",
    )  # fmt: skip


def sets_table(found: Found) -> Table:
    """Accuracy, conf-ECE and NLL of each test set."""
    rows = [
        (
            run,
            *(
                f"{number(accuracy(t.probs(), t.labels))} / {number(conf_ece(t.probs(), t.labels))}"
                f" / {number(nll(t.probs(), t.labels, n_options=t.n_options))}"
                if (t := parts.get(s)) is not None
                else "–"
                for s in (*IN, *OUT)
            ),
        )
        for run, parts in found.tables.items()
    ]
    sizes = [f"{s} (N = {len(found.tables[BEFORE][s]):,})" for s in (*IN, *OUT)]
    return Table(("run", *sizes), tuple(rows), title="Accuracy / conf-ECE / NLL of each set")


def cost_rows(found: Found) -> Table:
    """What each method took: by the clock on a GPU, in seconds of one thread on a CPU."""
    rows = [
        (run, "cpu", f"{found.setup.labels:,}", f"{seconds:.2g}", "–", "–")
        for run, seconds in found.seconds.items()
    ]
    for u, content in found.kept.items():
        cost, device = content["cost"], content.get("device", "cpu")
        kind = "cpu_seconds" if device == "cpu" else "seconds"
        trained, scored = cost.get(f"training_{kind}"), cost.get(f"tests_{kind}")
        rate = None if scored is None else cost["tests_tokens"] / scored
        rows.append(
            (
                f"{u.method}, {u.labels:,} labels, seed {u.seed}",
                device,
                f"{cost['labels']:,}",
                "–" if trained is None else f"{trained:,.0f}",
                number(rate, 0),
                number(cost["peak_memory_gb"], 2),
            )
        )
    return Table(
        ("run", "on", "labels", "fit, s", "tokens scored a second", "peak GB"), tuple(rows),
        title="Cost",
        notes=(
            "On a CPU: processor seconds of one thread. On the GPU: by the clock, while up to "
            "twelve of these units took turns on it; none was timed alone.",
        ),
    )  # fmt: skip


def elsewhere(found: Found, results: Path) -> Table | None:
    """What training costs the model on other text: preference pairs, before and after."""
    pairs = {}
    for u in found.kept:
        file = results / "protocol" / u.name / "pairs.json"
        if file.exists() and u.seed == SEED:
            fewer = f", {u.labels:,} labels" if u.labels < found.setup.labels else ""
            pairs[u.method + fewer] = json.loads(file.read_text(encoding="utf-8"))
    if BEFORE not in pairs:
        return None
    start = _pair_numbers(pairs[BEFORE])
    rows = []
    for method, answers in pairs.items():
        loss, right = _pair_numbers(answers)
        change = loss - start[0]
        reach = 1.96 * change.std(ddof=1) / np.sqrt(len(change))
        better = right.astype(float) - start[1]
        rows.append(
            (
                method,
                number(loss.mean()),
                f"{number(change.mean())} {interval(change.mean() - reach, change.mean() + reach)}",
                number(right.mean()),
                f"{number(better.mean())} {interval(*agresti_min(better, 0.95))}",
            )
        )
    return Table(
        ("run", "NLL a token, chosen", "change", "chosen over rejected", "change"), tuple(rows),
        title=f"Preference pairs, UltraFeedback validation (N = {len(start[0])} of 199: those "
        f"whose prompt and longer answer have at most {PAIR_TOKENS} tokens)",
        notes=(
            "Post-hoc methods leave the weights, and so these numbers, as they are.",
            "Intervals: 1.96 standard errors of the paired change, and Agresti-Min. Chosen over "
            "rejected: share of pairs whose chosen answer has the higher log-probability a token.",
        ),
    )  # fmt: skip


def _pair_numbers(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    loss = np.array([-r["chosen"] / r["tokens"][0] for r in rows])
    other = np.array([-r["rejected"] / r["tokens"][1] for r in rows])
    return loss, loss < other


def repeats_table(found: Found) -> Table | None:
    """Means over seeds and label budgets, where there are several."""
    rows = []
    for u, parts in found.repeats.items():
        alone = sum(o.method == u.method for o in found.repeats) == 1
        if alone and u.labels == found.setup.labels:
            continue  # it is in the tables above
        cells = []
        for table in pools(parts).values():
            p, y = table.probs(), table.labels
            cells += [number(accuracy(p, y)), number(conf_ece(p, y)),
                      number(nll(p, y, n_options=table.n_options))]  # fmt: skip
        rows.append((u.method, f"{u.labels:,}", str(u.seed), *cells))
    if not rows:
        return None
    rows.sort(key=lambda r: (r[0], -int(r[1].replace(",", "")), r[2]))
    columns = ("method", "labels", "seed", "in: acc", "conf-ECE", "NLL", "out: acc", "conf-ECE",
               "NLL")  # fmt: skip
    return Table(columns, tuple(rows), title="Seeds and label budgets")


def plot_budgets(found: Found) -> Any:
    """Draw accuracy, conf-ECE and NLL against the number of labels; None without several numbers.

    Bars are 95 % intervals over questions; dashes: the model before, and a temperature fitted on
    all labels.
    """
    from matplotlib.figure import Figure

    several = [
        m
        for m in dict.fromkeys(u.method for u in found.repeats)
        if len({u.labels for u in found.repeats if u.method == m}) > 2
    ]
    if not several:
        return None
    metrics = ("accuracy", "conf_ece", "nll")
    with style():
        figure = Figure(figsize=(8.6, 4.6), layout="constrained")
        grid: Any = figure.subplots(2, 3, sharex=True)
        for row, domain in zip(grid, DOMAINS, strict=True):
            for k, method in enumerate(several):
                units_of = sorted(
                    (u for u in found.repeats if u.method == method and u.seed == SEED),
                    key=lambda u: u.labels,
                )
                estimates = [_estimates(found.repeats[u], domain, metrics) for u in units_of]
                for axes, metric in zip(row, metrics, strict=True):
                    value = np.array([e[metric].value for e in estimates])
                    ends = np.array([[e[metric].low, e[metric].high] for e in estimates]).T
                    axes.errorbar(
                        np.array([u.labels for u in units_of]) * 1.04 ** (k - 0.5), value,
                        abs(ends - value), label=method, color=SERIES[1 + k][0],
                        marker=SERIES[1 + k][1], markersize=4, linewidth=1.2,
                    )  # fmt: skip
            for name, dash in ((BEFORE, ":"), ("temperature", "--")):
                flat = _estimates(found.tables[name], domain, metrics)
                for axes, metric in zip(row, metrics, strict=True):
                    axes.axhline(flat[metric].value, color=GREY, linestyle=dash, label=name)
            for axes, metric in zip(row, metrics, strict=True):
                axes.yaxis.set_major_formatter(lambda value, _: plain(value))
                axes.set_xscale("log")
                axes.set_xticks([100, 300, 1000, 3000], ["100", "300", "1,000", "3,000"])
                axes.minorticks_off()
                axes.set_title(f"{HEADINGS[metric]}, {domain}")
        for axes in grid[1]:
            axes.set_xlabel("labels")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return figure


def _estimates(parts: dict[str, AnswerTable], domain: str, metrics: Sequence[str]) -> Any:
    table = pools(parts)[domain]
    return bootstrap_intervals(
        table.probs(), table.labels, n_options=table.n_options, groups=table.groups,
        metrics=metrics, seed=SEED,
    )  # fmt: skip


# -- the page -----------------------------------------------------------------------------------


def write_page(results: Path) -> None:
    """Write protocol.md and its figures beside the units' folder."""
    from calibrant.runs import versions

    done, missing, sections = [], [], []
    for u in units():
        there = (results / "protocol" / u.name / "unit.json").exists()
        (done if there else missing).append(u.name)
    for setup in SETUPS.values():
        if (found := read(setup, results)) is not None:
            sections.append(_section(found, results))
    listed = ", ".join(f"{name} {n}" for name, n in versions().items())
    lines = [
        "# Every remedy under one protocol",
        "",
        "Made by `python examples/protocol.py`, which goes on with the units that are missing, and "
        "`python examples/protocol.py --write`, which makes this page of those that are there "
        "(`docs/results/protocol/`). Trained on OpenBookQA train, MedMCQA train and MMLU dev and "
        "val in the shares 2 : 1 : 3, questions that occur in a test set left out; one epoch, LoRA "
        "of rank 32, learning rate 3e-4, batches of 8. Tested in domain on OpenBookQA test, "
        "MedMCQA validation and MMLU test, out of domain on ARC-Challenge and ARC-Easy test, a "
        f"seeded sample of each. Intervals are 95 % over questions, one training run. {listed}; a "
        "unit's own versions are in its unit.json. Those of the H200 ran under PyTorch 2.11, given "
        "2.13's `linear_cross_entropy`.",
        "",
        f"**Done: {len(done)} of {len(done) + len(missing)} units.** "
        + (f"Not run yet: {', '.join(missing)}." if missing else "Nothing is missing."),
        "",
        "Rows called *method + T* add a temperature fitted on the second half of training's own "
        "predictions: in one epoch each question is predicted before it is learnt, so they cost "
        "neither labels nor time. Not applicable to these models: base-KL temperature and DACA "
        "(the models before alignment are not to be had here), letter-prior debiasing for cloze. "
        "*pride*, that debiasing, is fitted on 2 % of the test questions in all cyclic orders of "
        "their options, without their labels; *pride + temperature* then fits a temperature on the "
        "training questions.",
        "",
        *sections,
    ]
    write_text(results / "protocol.md", "\n".join(lines) + "\n")


def _section(found: Found, results: Path) -> str:
    setup = found.setup
    lines = [f"## {setup.title}", ""]
    tables = {run: pools(parts) for run, parts in found.tables.items()}
    before = tables.pop(BEFORE)
    compared = compare(before, tables, name=BEFORE, seed=SEED)
    for domain in DOMAINS:
        lines.append(value_table(compared, domain).to_markdown())
        lines.append(change_table(compared, domain).to_markdown())
        lines += [f"- {run}: {v}" for run, v in compared.verdicts[domain].items()] + [""]
    figure = plot_changes(prepare_changes(compared, list(DOMAINS)))
    save_figure(figure, results / f"protocol-{setup.name}", formats=("png",))
    lines += [f"![changes from before]({f'protocol-{setup.name}.png'})", ""]
    lines.append(removed(found, compared).to_markdown())
    for rival in ("temperature", *([BESIDE] if setup.beside else ())):
        others = {run: t for run, t in tables.items() if run not in (*LABELLED, rival)}
        if rival in tables and others:
            against = compare(tables[rival], others, name=rival, seed=SEED)
            lines += [change_table(against, domain).to_markdown() for domain in DOMAINS]
    more = (sets_table(found), repeats_table(found), elsewhere(found, results), cost_rows(found))
    lines += [table.to_markdown() for table in more if table is not None]
    if (budgets := plot_budgets(found)) is not None:
        save_figure(budgets, results / f"protocol-{setup.name}-labels", formats=("png",))
        lines += [f"![{BUDGETS}](protocol-{setup.name}-labels.png)", "", f"*{BUDGETS}*", ""]
    lines += [f"- {note}" for note in found.notes]
    return "\n".join(lines)
