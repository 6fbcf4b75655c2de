"""Settings of calibration-aware fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from calibrant.errors import InputError
from calibrant.prompts import PMI_IS_FOR_SCORING, Prompt
from calibrant.training import METHODS

# Numbers that `CalibrationTrainer.evaluate` reports -> whether more is better.
EVALUATED = {"accuracy": True, "conf_ece": False, "nll": False, "brier": False}

# What `strength` is to each method, and its default.
STRENGTHS = {"label-smoothing": 0.1, "entropy": 0.1, "focal": 2.0, "brier": 1.0, "cogcalib": 1.0}

# Weight of the question's own tokens, where it is not 0.
QUESTION_WEIGHTS = {"sft": 1.0, "rcft": 1.0, "rcft-released": 1.0, "tempered-cft": 1.0}

# Where training can be logged, but transformers does not always list it as installed.
_UNLISTED = ("azure_ml", "flyte")


@dataclass
class CalibrationConfig(TrainingArguments):
    r"""Arguments of `CalibrationTrainer`: all of `transformers.TrainingArguments`, and these.

    The loss, per question i and averaged over the global batch:

    * ``cft``: ``L_SFT1``, the answer's loss;
    * ``tempered-cft``: L_SFT1 of the scores divided by a temperature that was fitted before the
      training, and belongs to the trained model; plus ``anchor_weight · KL(t ‖ p̂)``, t the
      tempered probabilities of the model as it came. The loss of an unlabelled question is
      ``KL(t ‖ p̂)``. Both add ``question_weight`` times the question tokens' loss, as ``sft``;
    * ``sft``: ``L_SFT2``, the answer's full-vocabulary loss plus ``question_weight`` times the mean
      negative log-likelihood of the question's own tokens;
    * ``rcft``: ``L_SFT2 + ece_weight · ‖p̂_i − q_i‖²``, q_i the E-step's target;
    * ``rcft-released``: L_SFT2 with the regulariser of the published code, defects included
      (`CalibrationTrainer._released_loss`), for comparison;
    * ``label-smoothing``, ``entropy``, ``focal``, ``brier``: the loss of that name over the
      question's options (`calibrant.training.losses`), ``strength`` being its ε, λ, γ or λ;
    * ``cogcalib``: ``L_SFT1 + strength · L_LS`` on questions whose answer has probability 1/2 or
      more, L_LS label smoothing's cross-entropy with the uniform distribution.

    For letters and labels cft, sft and rcft are losses over the vocabulary; the others add to
    theirs ``−log(option mass)``, so that the model goes on to answer with an option.

    Parameters
    ----------
    method : of `calibrant.training.METHODS`.
    strength : see above; None is .1 for label-smoothing and entropy, 2 for focal, 1 for the others.
    temperature : T > 0 that every option score is divided by, in the loss and in `evaluate`; None
        is 1, but for tempered-cft the temperature of maximum likelihood on the labelled training
        questions, fitted to the model as it came (`CalibrationTrainer.calibrator`).
    anchor_weight : λ of the labelled questions' divergence from the model as it came
        (tempered-cft).
    prompt : a prompt format, a `calibrant.prompts.Prompt` or its JSON form, which is what is kept.
    answer_loss : "options", cross-entropy over the question's options; "vocabulary", the answer's
        full-vocabulary negative log-likelihood; "auto", vocabulary for letters, labels and for
        sft, options for cloze.
    question_weight : weight of the mean negative log-likelihood of the question's own tokens, which
        any method can have: it keeps the model a language model, where a loss over options alone
        lets go of it (`docs/rcft.md`). None is 1 for sft, rcft and rcft-released (0 turns their
        L_SFT2 into L_SFT1) and for tempered-cft, and 0 for the others.
    ece_weight : λ of the regulariser (rcft).
    target : "tempered" (corrected, keeps the order for any K) or "tanh" (as published).
    calibration_fraction : share of the training questions set aside for the E-step when the
        trainer gets no ``calibration_dataset`` (rcft). None sets none aside where the model answers
        each before it learns from it, which is itself an answer to a held-out question: in one
        epoch, without dropout; and .2 elsewhere.
    e_step_data : "held-out" questions, or "training" questions, as published: their accuracies are
        those of memorised questions (rcft).
    e_steps_per_epoch : refreshes of the E-step in each epoch (rcft); 0 makes one before training
        and freezes it, as published.
    e_step_share : calibration questions scored in an epoch, per training question, shared out over
        its refreshes; .15 costs about a twentieth of the training (rcft with held-out questions
        and refreshes; the others score them all). In the first epoch all are scored before
        training and the refreshes take what training itself has just read; not where the model
        drops out (LoRA's dropout, or its own), which makes it answer otherwise than it is
        evaluated: there the first epoch is like the others.
    e_step_bins, e_step_shrinkage, e_step_decay : see `ConfidenceMap`.
    early_stopping_patience : evaluations without a better one before the run stops; None never
        stops it. Needs ``load_best_model_at_end``. Which is better ``metric_for_best_model`` says,
        "eval_nll" by default, "eval_conf_ece", "eval_accuracy" or "eval_brier"; one that the
        verdict calls harmed or gamed is never the best (`GuardedSelection`).

    Raises
    ------
    InputError
        If one of these is out of its range.

    References
    ----------
    Xiao et al., "Restoring Calibration for Aligned Large Language Models", ICML 2025,
    arXiv 2505.01997.
    """

    method: str = "cft"
    prompt: str | dict[str, Any] = "letter"
    strength: float | None = None
    temperature: float | None = None
    anchor_weight: float = 0.3
    answer_loss: str = "auto"
    question_weight: float | None = None
    ece_weight: float = 1.0
    target: str = "tempered"
    calibration_fraction: float | None = None
    e_step_data: str = "held-out"
    e_steps_per_epoch: int = 4
    e_step_share: float = 0.15
    e_step_bins: int = 10
    e_step_shrinkage: float = 10.0
    e_step_decay: float = 0.5
    early_stopping_patience: int | None = None

    learning_rate: float = 3e-4
    num_train_epochs: float = 1.0
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    logging_steps: float = 10
    save_strategy: str = "epoch"
    report_to: str | list[str] = "none"
    # A batch of questions has no columns the Trainer knows; a NaN loss must be seen, not logged
    # as 0; the E-step's statistics are part of a checkpoint.
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    restore_callback_states_from_checkpoint: bool = True
    label_names: list[str] = field(default_factory=lambda: ["answer"])

    def __post_init__(self) -> None:
        """Check what is ours, then let `TrainingArguments` check its own."""
        self.prompt = Prompt.of(self.prompt).to_json()
        if Prompt.of(self.prompt).format == "cloze-pmi":
            raise InputError(PMI_IS_FOR_SCORING)
        if self.method == "rcft-released":
            self.e_step_data, self.e_steps_per_epoch, self.target = "training", 0, "tanh"
        if self.strength is None:
            self.strength = STRENGTHS.get(self.method, 0.0)
        if self.question_weight is None:
            self.question_weight = QUESTION_WEIGHTS.get(self.method, 0.0)
        for name, allowed in (
            ("method", METHODS),
            ("answer_loss", ("auto", "options", "vocabulary")),
            ("target", ("tempered", "tanh")),
            ("e_step_data", ("held-out", "training")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} {getattr(self, name)!r}, expected one of {', '.join(allowed)}"
                )
        for name, low, high in (
            ("strength", 0, 1 if self.method == "label-smoothing" else float("inf")),
            ("question_weight", 0, float("inf")),
            ("ece_weight", 0, float("inf")),
            ("anchor_weight", 0, float("inf")),
            ("e_steps_per_epoch", 0, float("inf")),
            ("e_step_share", 1e-9, float("inf")),
            ("e_step_bins", 1, float("inf")),
            ("e_step_shrinkage", 0, float("inf")),
            ("e_step_decay", 0, 1 - 1e-9),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} {getattr(self, name)!r}, expected {low:g} to {high:g}")
        share = self.calibration_fraction
        if share is not None and not 0 < share < 1:
            raise InputError(f"calibration_fraction {share!r}, expected between 0 and 1, or None")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature {self.temperature!r}, expected more than 0, or None")
        if self.label_smoothing_factor:
            raise InputError(
                f"label_smoothing_factor {self.label_smoothing_factor}: not a part of these "
                "methods, expected 0"
            )
        self._check_selection()
        super().__post_init__()
        for package in self.report_to:
            if package not in INTEGRATION_TO_CALLBACK:
                known = ", ".join(INTEGRATION_TO_CALLBACK)
                raise InputError(f"report_to {package!r}, expected of {known}")
            if package not in (*get_available_reporting_integrations(), *_UNLISTED):
                raise InputError(
                    f"report_to {package}: is not installed; install it with pip install {package}"
                )

    def _check_selection(self) -> None:
        """Check how the best evaluation is chosen, and fill in which way is better."""
        patience = self.early_stopping_patience
        if patience is not None and (patience < 1 or not self.load_best_model_at_end):
            raise InputError(
                f"early_stopping_patience {patience}, expected 1 or more, with "
                "load_best_model_at_end and an eval_strategy"
            )
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "nll"
        if self.metric_for_best_model is None:
            return
        name = next((n for n in EVALUATED if self.metric_for_best_model.endswith(n)), None)
        if name is None:
            raise InputError(
                f"metric_for_best_model {self.metric_for_best_model!r}, expected one of "
                + ", ".join(f"eval_{n}" for n in EVALUATED)
            )
        if self.greater_is_better is None:
            self.greater_is_better = EVALUATED[name]

    @property
    def regularised(self) -> bool:
        """Whether the method has an E-step."""
        return self.method in ("rcft", "rcft-released")
