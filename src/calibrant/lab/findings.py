"""What the laboratory's checkpoints say, as words, tables and figures; all from their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibrant.lab.cascade import SOURCES, cascade
from calibrant.lab.story import IN, OUT, WATCHED, Checkpoint, Story, dpo_name
from calibrant.metrics import bin_table, conf_ece, nll
from calibrant.report import figures
from calibrant.report.tables import Table, number
from calibrant.runs import TRAIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from calibrant.answers import AnswerTable

TOLERANCE = 0.03


# -- words ----------------------------------------------------------------------------------------


def words(story: Story, chapter: int) -> str:
    """A paragraph about one chapter; every number in it was measured in this run."""
    return (_knowing, _aligned, _calibratable, _memorised, _cascades)[chapter](story)


def _said(story: Story, name: str, on: str = IN) -> str:
    b = story.bounds(name, on)
    return (
        f"accuracy {number(b.accuracy)}, mean confidence {number(b.mean_confidence)}, conf-ECE "
        f"{number(b.conf_ece)}"
    )


def _knowing(story: Story) -> str:
    b = story.bounds("sft")
    return (
        f"A small Llama reads {story.settings.texts:,} texts in which the same question has "
        "different answers, each as often as the true distribution p* says, and is then taught to "
        f"answer (SFT). No model can be right more often than ACC* = {number(b.critical_accuracy)} "
        f"of the time. Pre-trained: {_said(story, 'pretrained')}. SFT: {_said(story, 'sft')}; its "
        f"confidence is {number(b.tce)} away from the true probability on average (TCE)."
    )


def _aligned(story: Story) -> str:
    s = story.settings
    aligned = story.aligned
    wrong = {
        name: story.collapse(name)["confidence_wrong"].value for name in ("sft", aligned.step.name)
    }
    factor = story.bounds(aligned.step.name).conf_ece / story.bounds("sft").conf_ece
    slopes = ", ".join(
        f"β = {b:g}: slope {story.collapse(dpo_name(b))['effective_slope'].value:.2f} "
        f"(conf-ECE {number(story.bounds(dpo_name(b)).conf_ece)})"
        for b in s.betas
    )
    return (
        f"DPO on {3 * s.pairs:,} honest preference pairs (Bradley–Terry on p*), one pass. Its "
        "optimum is p* to the power 1 + 1/β: sharper than the truth for every β. "
        f"{slopes}. At β = {s.betas[-1]:g} the model has {_said(story, aligned.step.name)}, "
        f"{factor:.0f} times the SFT model's ECE; its confidence when wrong went from "
        f"{number(wrong['sft'])} to {number(wrong[aligned.step.name])}. Preference matching on the "
        f"same pairs: {_said(story, 'preference-matching')}."
    )


def _calibratable(story: Story) -> str:
    s = story.settings
    truth, sft = story.bounds("cft"), story.bounds("sft")
    names = (story.aligned.step.name, "cft", "temperature")
    before, cft, temperature = (number(story.bounds(n, OUT).conf_ece) for n in names)
    return (
        f"{s.fresh:,} fresh labelled questions, each seen once: CFT gives "
        f"{_said(story, 'cft')}, and its TCE is {number(truth.tce)} (SFT: {number(sft.tce)}). A "
        f"temperature fitted on the same labels gives {_said(story, 'temperature')}. Repeating "
        f"{s.fresh // 20} labels 20 times gives {_said(story, 'cft-repeated')}. In the "
        f"domain without labels conf-ECE was {before}; CFT leaves {cft}, temperature {temperature}."
    )


def _memorised(story: Story) -> str:
    s = story.settings
    train = story.bounds("sft2", TRAIN)
    rivals = {c.step.title: story.bounds(c.step.name).conf_ece for c in story.of(3)}
    outside = {c.step.title: story.bounds(c.step.name, OUT).conf_ece for c in story.of(3)}
    best, best_outside = min(rivals, key=rivals.__getitem__), min(outside, key=outside.__getitem__)
    return (
        f"{s.few - s.held_out} labels, {s.epochs} passes, trained for accuracy (SFT2): "
        f"{number(train.accuracy)} of the training questions right, above "
        f"ACC* = {number(train.critical_accuracy)} (Z = {train.z:.1f}): confidence cannot follow "
        f"the target. On fresh questions: {_said(story, 'sft2')}. RCFT with held-out E-steps "
        f"(λ = {s.ece_weight:g}): {_said(story, 'rcft')}. The published form: accuracies frozen "
        f"before training, {_said(story, 'released-frozen')}; measured on the training questions, "
        f"{_said(story, 'released-in-sample')}; literally, {_said(story, 'released-literal')}. SFT "
        f"stopped early, with a temperature: {_said(story, 'sft1-early-temperature')}. Lowest "
        f"conf-ECE in the domain: {best} ({number(rivals[best])}); outside it: {best_outside} "
        f"({number(outside[best_outside])})."
    )


def _cascades(story: Story) -> str:
    runs = {source: cascade(source) for source in SOURCES}
    start = runs["frozen"]
    ece = {source: number(run.conf_ece[-1]) for source, run in runs.items()}
    in_sample, held_out = (watched_path(story, name)[-1] for name in ("released-in-sample", "rcft"))
    alone, frozen = story.bounds("alone-held-out"), story.bounds("alone-frozen")
    spread = number(watched_path(story, "alone-frozen")[-1]["confidence_sd"])
    return (
        "RCFT pulls each confidence towards the accuracy measured at that confidence. Of 20,000 "
        f"confidences moved by that alone, conf-ECE {number(start.conf_ece[0])} at first, ends at "
        f"{ece['re-estimated']} where accuracies are measured anew at every step, at "
        f"{ece['frozen']} where they were measured once (released: a question falls from bin to "
        f"bin until all are in one), and at {ece['memorised']} where they are measured on labels "
        "that are being memorised (all go to 1). In the language model: with a weight at which the "
        f"labels are not heard (λ = 1,000), frozen accuracies end at one confidence (sd {spread}) "
        f"and conf-ECE {number(frozen.conf_ece)}, held-out ones at {number(alone.conf_ece)}; "
        "neither learns anything, which is why λ is to be chosen. At the usual weight, accuracies "
        "measured on the memorised training questions bring mean confidence to "
        f"{number(in_sample['mean_confidence'])}, held-out ones to "
        f"{number(held_out['mean_confidence'])}."
    )


# -- tables ---------------------------------------------------------------------------------------


def _nll(table: AnswerTable) -> float:
    return nll(table.probs(), table.labels, n_options=table.n_options)


def results_table(story: Story, *, intervals: bool = True) -> Table:
    """Every checkpoint on the labelled domain and on the other one."""
    rows = []
    for checkpoint in story.checkpoints_in_order():
        name = checkpoint.step.name
        b, outside = story.bounds(name), story.bounds(name, OUT)
        value = story.ece(name)
        rows.append(
            (
                checkpoint.step.title,
                number(b.accuracy),
                number(b.mean_confidence),
                number(value.value)
                + (f" [{number(value.low)}, {number(value.high)}]" if intervals else ""),
                number(b.tce),
                number(_nll(checkpoint.tables[IN])),
                number(outside.accuracy),
                number(outside.conf_ece),
                number(_nll(checkpoint.tables[OUT])),
            )
        )
    s, truth = story.settings, story.bounds("sft")
    return Table(
        ("model", "acc", "conf", "conf-ECE", "TCE", "NLL", "acc", "conf-ECE", "NLL"),
        tuple(rows),
        title=f"{IN} (N = {s.test:,}), then {OUT} (N = {s.test // 2:,})",
        notes=(
            f"The last three columns are of {OUT}. Labels come from {IN} only; ACC* there is "
            f"{number(truth.critical_accuracy)}. TCE: mean distance of confidence from the true "
            "probability.",
        ),
    )


def theory_table(story: Story) -> Table:
    """Every checkpoint against the bounds of the theory, on test and training questions."""
    rows = []
    for checkpoint in story.checkpoints_in_order():
        for on in (IN, TRAIN):
            if on not in checkpoint.tables:
                continue
            b = story.bounds(checkpoint.step.name, on)
            rows.append(
                (
                    checkpoint.step.title,
                    "test" if on == IN else "train",
                    number(b.accuracy),
                    number(b.critical_accuracy),
                    f"{b.z:+.1f}",
                    number(b.lower_bound),
                    number(b.conf_ece),
                    number(b.target_conf_ece),
                    number(b.tce),
                    number(b.max_distance),
                    number(b.excess_accuracy),
                    "holds" if not b.violations() else ", ".join(b.violations()),
                )
            )
    return Table(
        ("model", "on", "A", "ACC*", "Z", "|A − c̄|", "≤ ECE", "ECE of p*", "≤ TCE",
         "≤ max-norm", "A − ACC* ≤ ECE + TCE", "bounds"),
        tuple(rows),
        text_columns=(0, 1, 11),
        title="Theory, with the target known",
        notes=(
            "Z above 1.6: more right answers than the target allows. On test questions that is "
            "chance: 1 table in 20, several at once since the models share the questions. Far "
            "above it, on training questions only: memorised.",
        ),
    )  # fmt: skip


# -- figures --------------------------------------------------------------------------------------


def pictures(story: Story) -> dict[str, Figure]:
    """Every figure by file name."""
    return {
        "reliability": reliability_figure(story),
        "sharpening": sharpening_figure(story),
        "regimes": regimes_figure(story),
        "remedies": remedies_figure(story),
        "bare-cascade": bare_cascade_figure(),
        "cascade": cascade_figure(story),
    }


def _reliability(story: Story, name: str, on: str) -> figures.Reliability:
    table, value = story[name].tables[on], story.ece(name, on)
    return figures.prepare_reliability(
        bin_table(table.probs(), table.labels, n_options=table.n_options),
        ece=value.value,
        interval=(value.low, value.high),
    )


def reliability_figure(story: Story) -> Figure:
    """Reliability diagrams of the stages, in the labelled domain and in the other."""
    stages = [story["pretrained"], story["sft"], story.aligned, story["cft"]]
    return figures.plot_reliability_grid(
        [[_reliability(story, c.step.name, on) for c in stages] for on in (IN, OUT)],
        rows=(f"{IN} (labelled)", OUT),
        columns=[c.step.title for c in stages],
    )


def sharpening_figure(story: Story) -> Figure:
    """Slope, collapse index and ECE against β, with the optimum's slope 1 + 1/β."""
    from matplotlib.figure import Figure as MatplotlibFigure

    betas = sorted(story.settings.betas)
    reports = {name: story.collapse(name) for name in (*map(dpo_name, betas), "sft",
                                                           "preference-matching")}  # fmt: skip
    panels = (
        ("effective_slope", "sharpening slope s"),
        ("collapse_index", "collapse index"),
        ("conf_ece", "conf-ECE"),
    )
    with figures.style():
        figure = MatplotlibFigure(figsize=(8.4, 2.9), layout="constrained")
        for axes, (quantity, label) in zip(figure.subplots(1, 3), panels, strict=True):
            values = [reports[dpo_name(b)][quantity] for b in betas]
            middle = [v.value for v in values]
            reach = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
            axes.errorbar(betas, middle, yerr=np.maximum(reach, 0), color=figures.VERMILION,
                          marker="D", markersize=5, linewidth=1.2, label="DPO")  # fmt: skip
            for name, colour, dash, text in (
                ("sft", figures.GREY, ":", "SFT"),
                ("preference-matching", figures.BLUE, "--", "preference matching"),
            ):
                axes.axhline(reports[name][quantity].value, color=colour, linestyle=dash,
                             linewidth=1.2, label=text)  # fmt: skip
            if quantity == "effective_slope":
                axes.plot(betas, [1 + 1 / b for b in betas], color="black", linewidth=0.9,
                          linestyle="-.", label="optimum, 1 + 1/β")  # fmt: skip
                axes.set_yscale("log")
                axes.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
                axes.minorticks_off()
                axes.legend(loc="upper right", fontsize=7.5)
            else:
                axes.set_ylim(0, None)
            axes.set_xscale("log")
            axes.set_xticks(betas, [f"{b:g}" for b in betas])
            axes.minorticks_off()
            axes.set(xlabel="β of DPO", title=label)
    return figure


def _plain_ticks(axes: Any, *, x: bool = False) -> None:
    for axis in (axes.xaxis, axes.yaxis) if x else (axes.yaxis,):
        axis.set_major_formatter(lambda value, _: figures.plain(value))


def regimes_figure(story: Story) -> Figure:
    """Draw the accuracy–ECE plane: every checkpoint on training and test questions, and the bounds.

    Right of ACC* (T2), a model whose confidence follows the target cannot have a lower ECE than
    A − ACC*; the grey wedge is out of its reach.
    """
    from matplotlib.figure import Figure as MatplotlibFigure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    critical = story.bounds("sft").critical_accuracy
    with figures.style():
        figure = MatplotlibFigure(figsize=(8.2, 4.6), layout="constrained")
        axes = figure.add_subplot()
        left, top, drawn = critical, 0.0, {}
        for c in story.checkpoints_in_order():
            group, (colour, marker) = _group(c)
            drawn[group] = Line2D([], [], linestyle="", color=colour, marker=marker, markersize=6)
            look = {"marker": marker, "color": colour, "markersize": 7, "linestyle": ""}
            b = story.bounds(c.step.name)
            left, top = min(left, b.accuracy), max(top, b.conf_ece)
            axes.plot(b.accuracy, b.conf_ece, **look, zorder=4)
            if TRAIN not in c.tables or c.step.kind == "temperature":
                continue
            t = story.bounds(c.step.name, TRAIN)
            left, top = min(left, t.accuracy), max(top, t.conf_ece)
            axes.plot((t.accuracy, b.accuracy), (t.conf_ece, b.conf_ece), color="#a8a8a8",
                      linewidth=0.8, linestyle=":", zorder=1)  # fmt: skip
            axes.plot(t.accuracy, t.conf_ece, **look, markerfacecolor="white", zorder=3)
        left, top = left - 0.03, top + 0.05
        axes.axvline(critical, color="black", linewidth=0.9, linestyle="--")
        axes.fill_between((critical, 1), (0, 1 - critical), color=figures.BAND, linewidth=0,
                          zorder=0)  # fmt: skip
        axes.plot((0, 1), (1, 0), color="black", linewidth=0.9, linestyle="-.", zorder=1)
        for x, ha, word in ((-0.006, "right", "calibratable"), (0.006, "left", "non-calibratable")):
            axes.text(critical + x, top, word, ha=ha, va="top", fontsize=8.5,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
        axes.set(xlim=(left, 1.01), ylim=(0, top), xlabel="accuracy", ylabel="conf-ECE")
        _plain_ticks(axes, x=True)
        more = {
            "open: on its training questions": Line2D(
                [], [], linestyle="", color="black", marker="o", markersize=6,
                markerfacecolor="white",
            ),
            f"ACC* = {number(critical)}": Line2D([], [], color="black", lw=0.9, ls="--"),
            "confidence 1 throughout: ECE = 1 − A": Line2D([], [], color="black", lw=0.9, ls="-."),
            "ECE < A − ACC*: only off target": Patch(color=figures.BAND),
        }  # fmt: skip
        legend = drawn | more
        figure.legend(list(legend.values()), list(legend), loc="outside right upper")
    return figure


def _group(checkpoint: Checkpoint) -> tuple[str, tuple[str, str]]:
    """Legend entry of a checkpoint in the plane, with its colour and marker."""
    step = checkpoint.step
    look = dict(zip(("first", "temperature", "dpo", "rcft", "matching", "few", "released", "cft"),
                    figures.SERIES, strict=True))  # fmt: skip
    if step.chapter == 0:
        return "pre-trained, SFT", look["first"]
    if step.kind == "temperature":
        return "with a temperature", look["temperature"]
    if step.name.startswith("dpo"):
        return "DPO", look["dpo"]
    if step.kind == "align":
        return "preference matching", look["matching"]
    if step.data == "fresh":
        return "CFT, fresh labels", look["cft"]
    if step.name.startswith("alone"):
        return "few labels: calibration term alone", (figures.GREY, "X")
    if step.name.startswith("released"):
        return "few labels: RCFT as released", look["released"]
    if step.name.startswith("rcft"):
        return "few labels: RCFT, held out", look["rcft"]
    return "few labels: SFT, CFT", look["few"]


def remedies_figure(story: Story) -> Figure:
    """Accuracy, conf-ECE and NLL of every remedy, in the labelled domain and in the other."""
    from matplotlib.figure import Figure as MatplotlibFigure

    parts = ([story.aligned], story.of(2), story.of(3))
    members = [c for part in parts for c in part]
    places = np.arange(len(members))[::-1]
    edges = len(members) - 0.5 - np.cumsum([len(part) for part in parts[:-1]])
    panels = (
        ("conf-ECE", lambda name, on: story.bounds(name, on).conf_ece),
        ("accuracy", lambda name, on: story.bounds(name, on).accuracy),
        ("NLL", lambda name, on: _nll(story[name].tables[on])),
    )
    with figures.style():
        figure = MatplotlibFigure(figsize=(8.8, 1.1 + 0.27 * len(members)), layout="constrained")
        for i, (axes, (label, value)) in enumerate(
            zip(figure.subplots(1, 3, sharey=True), panels, strict=True)
        ):
            for name, colour, fill, marker in (
                (IN, figures.BLUE, figures.BLUE, "s"),
                (OUT, figures.VERMILION, "white", "D"),
            ):
                where = "labelled domain" if name == IN else "other domain"
                axes.plot([value(c.step.name, name) for c in members], places, linestyle="",
                          marker=marker, color=colour, markerfacecolor=fill, markersize=5.5,
                          label=f"{where} ({name})")  # fmt: skip
            axes.axvline(value("sft", IN), color=figures.GREY, linewidth=1, linestyle=":",
                         zorder=1, label=f"SFT, before alignment ({IN})")  # fmt: skip
            axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
            axes.hlines(edges, 0, 1, transform=axes.get_yaxis_transform(), color=figures.GREY,
                        linewidth=0.8)  # fmt: skip
            axes.tick_params(axis="y", length=0)
            axes.set_title(label)
            axes.xaxis.set_major_formatter(lambda value, _: figures.plain(value))
            if i != 1:
                axes.set_xlim(0, None)
        axes = figure.axes[0]
        axes.set_yticks(places, [c.step.title for c in members])
        axes.set_ylim(-0.6, len(members) - 0.4)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        for y, word in zip(edges, ("fresh labels", "few labels"), strict=True):
            last = figure.axes[-1]
            last.text(1.01, y - 0.1, word, ha="left", va="top", fontsize=8, color=figures.GREY,
                      rotation=270, transform=last.get_yaxis_transform())  # fmt: skip
    return figure


_CASCADE_PANELS = (
    ("conf_ece", "conf-ECE on fresh questions"),
    ("mean_confidence", "mean confidence"),
    ("confidence_sd", "spread (sd) of confidence"),
)


def bare_cascade_figure() -> Figure:
    """What the calibration term does to confidences where nothing else moves them."""
    from matplotlib.figure import Figure as MatplotlibFigure

    looks = (figures.SERIES[2], figures.SERIES[1], figures.SERIES[3], figures.SERIES[5])
    with figures.style():
        figure = MatplotlibFigure(figsize=(8.8, 3.2), layout="constrained")
        panels = figure.subplots(1, 3)
        for source, (colour, marker) in zip(SOURCES, looks, strict=True):
            run, title = cascade(source), SOURCES[source]
            for axes, (quantity, _) in zip(panels, _CASCADE_PANELS, strict=True):
                axes.plot(run.steps, getattr(run, quantity), color=colour, marker=marker,
                          markersize=4, markevery=4, linewidth=1.2, label=title)  # fmt: skip
        _finish_cascade(figure, panels, "step", ncols=2)
    return figure


def cascade_figure(story: Story) -> Figure:
    """Test ECE, mean and spread of confidence while the few labels are trained on."""
    from matplotlib.figure import Figure as MatplotlibFigure

    green, red = figures.SERIES[3], figures.SERIES[2]
    shown = {
        "sft2": (figures.SERIES[0], "-"),
        "rcft": (green, "-"),
        "released-frozen": (red, "-"),
        "released-in-sample": (figures.SERIES[5], "-"),
        "alone-held-out": (green, "--"),
        "alone-frozen": (red, "--"),
    }
    with figures.style():
        figure = MatplotlibFigure(figsize=(8.8, 3.3), layout="constrained")
        panels = figure.subplots(1, 3)
        for name, ((colour, marker), dash) in shown.items():
            path, title = watched_path(story, name), story[name].step.title
            face = colour if dash == "-" else "white"
            for axes, (quantity, _) in zip(panels, _CASCADE_PANELS, strict=True):
                axes.plot([e["epoch"] for e in path], [e[quantity] for e in path], color=colour,
                          marker=marker, markerfacecolor=face, markersize=4, linewidth=1.2,
                          linestyle=dash, label=title)  # fmt: skip
        _finish_cascade(figure, panels, "epoch", ncols=3)
    return figure


def _finish_cascade(figure: Figure, panels: Any, across: str, ncols: int) -> None:
    for axes, (_, label) in zip(panels, _CASCADE_PANELS, strict=True):
        axes.set(xlabel=across, title=label, ylim=(0, 1.02 if "mean" in label else None))
        _plain_ticks(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=ncols)


def watched_path(story: Story, name: str) -> list[dict[str, float]]:
    """What a training on few labels did on the watched test questions, from before it on.

    Returns
    -------
    ``epoch``, ``conf_ece``, ``mean_confidence``, ``confidence_sd`` and ``accuracy`` at each time.
    """
    start = story.aligned.tables[IN]
    start = start.select(np.arange(len(start)) < WATCHED)
    ece = conf_ece(start.probs(), start.labels, n_options=start.n_options)
    path = [
        {
            "epoch": 0.0,
            "conf_ece": ece,
            "mean_confidence": float(start.confidence.mean()),
            "confidence_sd": float(start.confidence.std()),
            "accuracy": float(start.correct.mean()),
        }
    ]
    for entry in story[name].path:
        path.append({k: entry["epoch" if k == "epoch" else f"eval_test_{k}"] for k in path[0]})
    return path
