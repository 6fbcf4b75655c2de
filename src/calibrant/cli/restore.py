"""``calibrant restore``: restore calibration by one or several methods, and judge them."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from calibrant.cli.options import (
    PLACE,
    SHARE,
    Number,
    choices_option,
    config_option,
    model_options,
    output_option,
    seed_option,
)
from calibrant.cli.terminal import terminal_options
from calibrant.posthoc import LABELLED, REFERENCED, REORDERED
from calibrant.training import METHODS as FINE_TUNING


@click.command("restore")
@click.argument("model", type=PLACE)
@click.option(
    "--train",
    type=PLACE,
    multiple=True,
    required=True,
    help="Questions to learn from (repeatable).",
)
@click.option(
    "--eval",
    "evaluate",
    type=PLACE,
    multiple=True,
    required=True,
    help="Held-out questions of the same domain (repeatable).",
)
@click.option("--out-of-domain", type=PLACE, multiple=True, help="Test questions of other domains.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(["auto", "all", *LABELLED, *REFERENCED, *REORDERED, *FINE_TUNING]),
    default=("auto",),
    show_default=True,
    help="auto chooses on a share of the training questions, and says why. Repeatable; all get the "
    "same labels.",
)
@click.option(
    "--fine-tune",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Whether auto tries it: by default when post-hoc calibration leaves something to do.",
)
@click.option(
    "--min-accuracy",
    type=Number(0, 1),
    help="Accuracy on held-out questions below which auto tries fine-tuning.",
)
@click.option(
    "--selection-fraction",
    type=SHARE,
    default=0.25,
    show_default=True,
    help="Share of the training questions auto chooses on.",
)
@click.option(
    "--reference-model",
    type=PLACE,
    help="The model before alignment, for base-kl, daca and all (no labels).",
)
@click.option("--train-limit", type=click.IntRange(2), help="Training questions in all, at random.")
@click.option("--limit", type=click.IntRange(1), help="Questions of each test source, at random.")
@click.option(
    "--overlap",
    type=click.Choice(["drop", "error", "keep"]),
    default="drop",
    show_default=True,
    help="Training questions that occur in a test set.",
)
@click.option("--skip-invalid", is_flag=True, help="Leave out bad rows, and say which.")
@click.option("--epochs", default=1.0, show_default=True, type=Number(0, min_open=True))
@click.option(
    "--learning-rate",
    type=Number(0, min_open=True),
    help="[default: 3e-4 with LoRA, 2e-5 for every weight]",
)
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1))
@click.option(
    "--lora-rank",
    default=32,
    show_default=True,
    type=click.IntRange(0),
    help="0 trains every weight.",
)
@click.option("--lora-alpha", type=click.IntRange(1), help="[default: the rank]")
@click.option(
    "--lora-dropout",
    default=0.0,
    show_default=True,
    type=Number(0, 1, max_open=True),
)
@click.option("--dora", is_flag=True, help="Adapters with a magnitude of their own (DoRA).")
@click.option(
    "--quantize", type=click.Choice(["nf4"]), help="Train on a base model of 4 bits (QLoRA)."
)
@click.option(
    "--activation-checkpointing",
    is_flag=True,
    help="Less memory for a third more time; the result is the same.",
)
@click.option(
    "--early-stopping",
    type=click.IntRange(1),
    metavar="N",
    help="Stop after N evaluations (4 an epoch, on a tenth of the training questions) without a "
    "better one, and keep the best unharmed weights.",
)
@click.option(
    "--best-by",
    type=click.Choice(["nll", "conf_ece", "brier", "accuracy"]),
    default="nll",
    show_default=True,
    help="What better means for --early-stopping.",
)
@click.option(
    "--report-to",
    multiple=True,
    help="Where training is logged besides the terminal: tensorboard, wandb. (repeatable)",
)
@click.option(
    "--push-to-hub",
    metavar="ID",
    help="Push every trained adapter and its card to the private Hub repository ID-METHOD.",
)
@click.option(
    "--strength",
    type=Number(0),
    help="ε, λ or γ of label-smoothing, entropy, focal, brier, cogcalib.",
)
@click.option("--ece-weight", default=1.0, show_default=True, type=Number(0), help="λ of rcft.")
@click.option(
    "--question-weight",
    type=Number(0),
    help="Weight of the question's own tokens, which keep the model a language model.  [default: 1 "
    "for sft, rcft and tempered-cft, 0 for the others]",
)
@click.option(
    "--target",
    type=click.Choice(["tempered", "tanh"]),
    default="tempered",
    show_default=True,
    help="E-step target of rcft; tanh as published.",
)
@click.option(
    "--calibration-fraction",
    type=SHARE,
    help="Training questions rcft keeps for its E-step.  [default: none in one epoch, where it "
    "answers each before it learns it; .2 in more]",
)
@click.option(
    "--tolerance",
    default=0.03,
    show_default=True,
    type=Number(0, 1),
    help="conf-ECE the verdict counts as calibrated.",
)
@choices_option
@model_options
@output_option("runs/restore")
@seed_option
@config_option
@terminal_options
def command(model: str, output_dir: str, **options: Any) -> dict[str, Any]:  # fmt: skip
    """Restore the calibration of MODEL; measure every test set before and after.

    \b
    calibrant restore MODEL --train train.jsonl --eval test.jsonl
    calibrant restore MODEL --train train.jsonl --eval test.jsonl --method temperature --method cft
    """
    _refuse_idle(options)
    from rich.console import Console

    from calibrant.errors import printable
    from calibrant.progress import note
    from calibrant.report.folder import cost_table, restoration_tables, write_restoration
    from calibrant.restore import RestoreSettings, restore

    settings = RestoreSettings(model=model, **options)
    result = restore(settings, output_dir, say=note)
    write_restoration(
        result.folder,
        title=f"{model}: calibration before and after ({settings.prompt} prompt)",
        tables=result.tables,
        reports=result.reports,
        verdicts=result.verdicts,
        domains=result.domains,
        costs=result.costs,
        questions=result.questions,
        notes=result.notes,
        tolerance=settings.tolerance,
        alignment=result.alignment,
    )
    _write_cards(result)
    console = Console()
    for table in restoration_tables(result.reports, result.verdicts, result.domains):
        console.print(table.to_rich())
    console.print(cost_table(result.costs).to_rich())
    for line in result.notes:
        click.echo(printable(f"note: {line}"))
    click.echo(
        f"Written to {output_dir}: report.html, report.md, report.json, one folder per method"
    )
    return {**result.to_dict(), "output_dir": str(output_dir)}


def _refuse_idle(options: dict[str, Any]) -> None:
    """Raise `click.UsageError` for a flag that the methods asked for have no use for."""
    methods = set(options["methods"])
    auto, everything = "auto" in methods, "all" in methods
    tuned = everything or bool(methods & set(FINE_TUNING))
    tuned |= auto and options["fine_tune"] != "never"
    compared = everything or bool(methods & set(REFERENCED))
    fine_tuning = f"a --method that fine-tunes: {', '.join(FINE_TUNING)}"
    needs = {
        "fine_tune": (auto, "--method auto"),
        "selection_fraction": (auto, "--method auto"),
        "min_accuracy": (
            auto and options["fine_tune"] == "auto",
            "--method auto, --fine-tune auto",
        ),
        "reference_model": (compared, f"--method {' or '.join(REFERENCED)}"),
        "early_stopping": (tuned, fine_tuning),
        "best_by": (options["early_stopping"] is not None, "--early-stopping"),
        "report_to": (tuned, fine_tuning),
        "push_to_hub": (tuned or auto, fine_tuning),  # auto: refused with its reason elsewhere
    }
    ctx = click.get_current_context()
    for name, (used, goes_with) in needs.items():
        if not used and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with {goes_with}")


# Settings that say how a model was trained; a calibrator has only the first of them.
_TRAINING = (
    "overlap", "epochs", "learning_rate", "batch_size", "lora_rank", "strength", "ece_weight",
    "question_weight", "target", "calibration_fraction", "seed",
)  # fmt: skip


def _write_cards(result: Any) -> None:
    """Write a model card beside every adapter, model and calibrator; it goes where they went."""
    from calibrant.report.card import CARD, CardFacts, write_card
    from calibrant.restore import push
    from calibrant.runs import BEFORE, TRAIN, load, versions

    settings = result.settings.to_dict()
    tests = [name for name in result.domains if name != TRAIN]
    for method, verdicts in result.verdicts.items():
        folder = result.folder / method
        kind = next((k for k in ("adapter", "model") if (folder / k).is_dir()), "calibrator")
        facts = CardFacts(
            model=settings["model"],
            method=method,
            kind=kind,
            prompt=load(folder).settings["prompt"],
            train=settings["train"],
            n_train=int(result.costs[method].get("labels", 0)),
            settings={k: settings[k] for k in _TRAINING[: 1 if kind == "calibrator" else None]},
            versions=versions(),
            calibrated=kind != "calibrator" and (folder / "calibrator.json").is_file(),
        )
        reports = {s: {m: result.reports[m][s] for m in (BEFORE, method)} for s in tests}
        where = folder if kind == "calibrator" else folder / kind
        write_card(where, facts, reports, {s: verdicts[s] for s in tests})
        if settings["push_to_hub"] is not None and kind != "calibrator":
            push(f"{settings['push_to_hub']}-{method}", {name: where / name for name in CARD})
