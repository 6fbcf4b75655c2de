"""What the laboratory's checkpoints say, as words, tables and figures; all from their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibrant.lab.story import IN, OUT, Story, dpo_name
from calibrant.metrics import bin_table, nll
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
    return (_knowing, _aligned, _calibratable, _memorised)[chapter](story)


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
        notes=("Z above 1.6: more right answers than the target allows (memorised questions).",),
    )  # fmt: skip


# -- figures --------------------------------------------------------------------------------------


def pictures(story: Story) -> dict[str, Figure]:
    """Every figure by file name."""
    return {
        "reliability": reliability_figure(story),
        "sharpening": sharpening_figure(story),
        "regimes": regimes_figure(story),
        "remedies": remedies_figure(story),
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


def regimes_figure(story: Story) -> Figure:
    """Draw the accuracy–ECE plane: every checkpoint on training and test questions, and the bounds.

    Right of ACC* (T2), a model whose confidence follows the target cannot have a lower ECE than
    A − ACC*; the grey wedge is out of its reach.
    """
    from matplotlib.figure import Figure as MatplotlibFigure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    groups = {
        "pre-trained, SFT": (figures.GREY, "o", [story["pretrained"], story["sft"]]),
        "DPO": (figures.VERMILION, "D", [c for c in story.of(1) if c.step.name.startswith("dpo")]),
        "preference matching": ("#CC79A7", "v", [story["preference-matching"]]),
        "few labels, many times": (
            "#E69F00",
            "P",
            [c for c in story.of(3) if not c.step.name.startswith("rcft")]
            + [story["cft-repeated"]],
        ),
        "RCFT, held out": ("#009E73", "^", [c for c in story.of(3) if "rcft" in c.step.name[:4]]),
        "CFT, temperature": (figures.BLUE, "s", [story["cft"], story["temperature"]]),
    }
    critical = story.bounds("sft").critical_accuracy
    with figures.style():
        figure = MatplotlibFigure(figsize=(7.6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        left, top = critical, 0.0
        for colour, marker, members in groups.values():
            for c in members:
                b = story.bounds(c.step.name)
                left, top = min(left, b.accuracy), max(top, b.conf_ece)
                axes.plot(b.accuracy, b.conf_ece, marker=marker, color=colour, markersize=7,
                          zorder=3)  # fmt: skip
                if TRAIN not in c.tables or c.step.kind == "temperature":
                    continue
                t = story.bounds(c.step.name, TRAIN)
                axes.plot((t.accuracy, b.accuracy), (t.conf_ece, b.conf_ece), color="#a8a8a8",
                          linewidth=0.8, linestyle=":", zorder=1)  # fmt: skip
                axes.plot(t.accuracy, t.conf_ece, marker=marker, color=colour, markersize=7,
                          markerfacecolor="white", zorder=3)  # fmt: skip
        axes.axvline(critical, color="black", linewidth=0.9, linestyle="--")
        axes.fill_between((critical, 1), (0, 1 - critical), color=figures.BAND, linewidth=0,
                          zorder=0)  # fmt: skip
        axes.plot((0, 1), (1, 0), color="black", linewidth=0.9, linestyle="-.", zorder=1)
        axes.text(critical - 0.006, top * 1.1, "calibratable", ha="right", va="top", fontsize=8.5)
        axes.text(critical + 0.006, top * 1.1, "non-calibratable", ha="left", va="top",
                  fontsize=8.5)  # fmt: skip
        axes.set(xlim=(left - 0.03, 1.01), ylim=(0, top * 1.13))
        axes.xaxis.set_major_formatter(lambda value, _: figures.plain(value))
        axes.yaxis.set_major_formatter(lambda value, _: figures.plain(value))
        axes.set(xlabel="accuracy", ylabel="conf-ECE")
        handles: list[Any] = [
            Line2D([], [], linestyle="", color=colour, marker=marker, markersize=6)
            for colour, marker, _ in groups.values()
        ]
        handles += [
            Line2D([], [], linestyle="", color="black", marker="o", markersize=6,
                   markerfacecolor="white"),
            Line2D([], [], color="black", linewidth=0.9, linestyle="--"),
            Line2D([], [], color="black", linewidth=0.9, linestyle="-."),
            Patch(color=figures.BAND),
        ]  # fmt: skip
        labels = [*groups, "open: on its training questions", f"ACC* = {number(critical)}",
                  "confidence 1 throughout: ECE = 1 − A",
                  "ECE < A − ACC*: only off target"]  # fmt: skip
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def remedies_figure(story: Story) -> Figure:
    """Accuracy, conf-ECE and NLL of every remedy, in the labelled domain and in the other."""
    from matplotlib.figure import Figure as MatplotlibFigure

    members = [story.aligned, *story.of(2), *story.of(3)]
    places = np.arange(len(members))[::-1]
    panels = (
        ("conf-ECE", lambda name, on: story.bounds(name, on).conf_ece),
        ("accuracy", lambda name, on: story.bounds(name, on).accuracy),
        ("NLL", lambda name, on: _nll(story[name].tables[on])),
    )
    with figures.style():
        figure = MatplotlibFigure(figsize=(8.8, 0.9 + 0.27 * len(members)), layout="constrained")
        for i, (axes, (label, value)) in enumerate(
            zip(figure.subplots(1, 3, sharey=True), panels, strict=True)
        ):
            for name, colour, fill, marker in (
                (IN, figures.BLUE, figures.BLUE, "s"),
                (OUT, figures.VERMILION, "white", "D"),
            ):
                axes.plot([value(c.step.name, name) for c in members], places, linestyle="",
                          marker=marker, color=colour, markerfacecolor=fill, markersize=5.5,
                          label="labelled domain" if name == IN else "other domain")  # fmt: skip
            axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
            axes.tick_params(axis="y", length=0)
            axes.set_title(label)
            if i != 1:
                axes.set_xlim(0, None)
        figure.axes[0].set_yticks(places, [c.step.title for c in members])
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center",
                      ncols=2)  # fmt: skip
    return figure


def cascade_figure(story: Story) -> Figure:
    """Test ECE, mean and spread of confidence while the few labels are trained on."""
    from matplotlib.figure import Figure as MatplotlibFigure

    shown = ("sft2", "rcft", "released-frozen", "released-in-sample")
    looks = (figures.SERIES[0], figures.SERIES[3], figures.SERIES[2], figures.SERIES[5])
    panels = (
        ("conf_ece", "conf-ECE on test questions"),
        ("mean_confidence", "mean confidence"),
        ("confidence_sd", "spread (sd) of confidence"),
    )
    with figures.style():
        figure = MatplotlibFigure(figsize=(8.8, 3.1), layout="constrained")
        for axes, (quantity, label) in zip(figure.subplots(1, 3), panels, strict=True):
            for name, (colour, marker) in zip(shown, looks, strict=True):
                path = story[name].path
                axes.plot([e["epoch"] for e in path], [e[f"eval_test_{quantity}"] for e in path],
                          color=colour, marker=marker, markersize=4, linewidth=1.2,
                          label=story[name].step.title)  # fmt: skip
            axes.set(xlabel="epoch", title=label, ylim=(0, None))
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center",
                      ncols=4)  # fmt: skip
    return figure
