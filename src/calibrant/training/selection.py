"""Which evaluation was the best, and when to stop: with the guard of the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from calibrant.answers import AnswerTable
from calibrant.diagnosis.verdict import verdict
from calibrant.errors import InputError
from calibrant.training.checkpoints import logger

BEFORE = "before.parquet"  # answers of the model before training, beside its checkpoints


class Patience(TrainerCallback, ExportableState):
    """Evaluations since the best one, kept with the checkpoints."""

    def __init__(self, waited: int = 0) -> None:
        self.waited = waited
        self.stopped = False

    def state(self) -> dict[str, Any]:
        """JSON-able state in the form the Trainer expects."""
        return {"args": {"waited": self.waited}, "attributes": {}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to wait; a run that was killed when it had just stopped, stops again."""
        if state.global_step == 0:
            self.waited = 0
        self.stopped = args.early_stopping_patience is not None and (
            self.waited >= args.early_stopping_patience
        )
        control.should_training_stop |= self.stopped

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the last step; leave no trace of one that is made after the run has stopped."""
        if args.load_best_model_at_end and state.global_step >= state.max_steps:
            control.should_evaluate = True
        if self.stopped:
            control.should_evaluate = control.should_save = control.should_log = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave no trace here either."""
        if self.stopped:
            control.should_evaluate = control.should_save = control.should_log = False


class GuardedSelection:
    """Mixin of a Trainer whose `evaluate` makes answer tables: the best evaluation, guarded.

    ``metric_for_best_model`` may be any number that `evaluate` reports. An evaluation whose
    `calibrant.diagnosis.verdict` against the model before training is *harmed* or *gamed* is never
    the best: lower accuracy beyond the margin, or a lower conf-ECE paid with discrimination, as a
    constant prediction gets it. ``early_stopping_patience`` counts evaluations that are not better.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._before: AnswerTable | None = None
        self._answers: dict[str, AnswerTable] = {}  # of the last evaluation, by prefix
        super().__init__(*args, **kwargs)
        self.add_callback(Patience())
        if self._selects():
            self._chosen_set()

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; first answer the questions that the best evaluation is chosen on."""
        if self._selects():
            self._before = self._answers_before(bool(resume_from_checkpoint))
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        if self._selects() and self.state.best_model_checkpoint is None:
            logger.warning(
                "no saved evaluation was the best and unharmed: the last weights are kept"
            )
        return result

    def _selects(self) -> bool:
        return self.args.load_best_model_at_end and self.eval_dataset is not None

    def _chosen_set(self) -> tuple[str, Any]:
        """Prefix and questions of the metric that the best evaluation is chosen by."""
        name = self.args.metric_for_best_model.removeprefix("eval_")
        if not isinstance(self.eval_dataset, dict):
            return "eval", self.eval_dataset
        for key, questions in self.eval_dataset.items():
            if name.startswith(f"{key}_"):
                return f"eval_{key}", questions
        raise InputError(
            f"metric_for_best_model {name!r} names no evaluation set, expected one of "
            + ", ".join(f"eval_{key}_nll" for key in self.eval_dataset)
        )

    def _answers_before(self, resumed: bool) -> AnswerTable:
        path = Path(self.args.output_dir) / BEFORE
        questions = self._chosen_set()[1]
        if resumed:
            if not path.is_file():
                raise InputError(
                    f"{path}: is missing; expected the answers before training beside the "
                    "checkpoints, which the best one is compared with"
                )
            return AnswerTable.load(path)
        table: AnswerTable = self.score(questions)
        if self.args.should_save:
            table.save(path)
        return table

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self._before is None:
            return bool(super()._determine_best_metric(metrics, trial))
        found = verdict(self._before, self._answers[self._chosen_set()[0]], seed=self.args.seed)
        if found.label in ("harmed", "gamed"):
            logger.warning("step %d: not taken as the best, %s", self.state.global_step, found)
            better = False
        else:
            better = bool(super()._determine_best_metric(metrics, trial))
        patience = next(c for c in self.callback_handler.callbacks if isinstance(c, Patience))
        patience.waited = 0 if better else patience.waited + 1
        limit = self.args.early_stopping_patience
        if limit is not None and patience.waited >= limit:
            logger.warning(
                "step %d: %d evaluations without a better one; stopping",
                self.state.global_step,
                patience.waited,
            )
            self.control.should_training_stop = True
        return better
