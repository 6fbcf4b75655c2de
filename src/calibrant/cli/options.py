"""Options that several verbs share, and the configuration file behind them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from calibrant.errors import InputError, shown
from calibrant.files import read_yaml
from calibrant.prompts import LetterStyle, LetterTokens, Prompt, PromptFormat, ShotChoice

F = TypeVar("F", bound=Callable[..., Any])


def _read_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make the file's values the defaults of this command; flags win, unknown keys are errors."""
    if path is None:
        return
    try:
        values = read_yaml(path)
    except InputError as error:
        raise click.BadParameter(str(error)) from error
    if not isinstance(values, dict):
        raise click.BadParameter(f"{path}: expected a mapping of option names to values")
    if values.get("command") == ctx.command.name and isinstance(values.get("settings"), dict):
        values = values["settings"]  # the config.yaml of an earlier run
    known = {}  # every name an option goes by -> the option
    for p in ctx.command.params:
        if p is not parameter:
            for name in (p.name, *(o.lstrip("-") for o in p.opts)):
                known[str(name).replace("-", "_")] = p
    defaults = {}
    for key, value in values.items():
        option = known.get(str(key).replace("-", "_"))
        if option is None:
            raise click.BadParameter(
                f"{path}: unknown key {shown(key)}; expected of {', '.join(sorted(known))}"
            )
        if value is None:
            continue
        several = option.multiple or option.nargs == -1
        values_of = value if several and isinstance(value, list) else [value]
        for each in values_of:
            if expected := _unfit(option, each):
                raise click.BadParameter(f"{path}: {key} is {shown(each)}, expected {expected}")
        defaults[option.name] = values_of if several else value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _unfit(option: click.Parameter, value: Any) -> str:
    """What is expected of an option, "" if the value from YAML is that: 3.5 is not taken for 3."""
    if isinstance(option.type, click.types.UnprocessedParamType | _PromptType):
        return ""
    if getattr(option, "is_flag", False):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(value, bool | list | dict):
        return "one value"
    if isinstance(option.type, click.types.IntParamType) and isinstance(value, float):
        return "a whole number"
    return ""


class Number(click.FloatRange):
    """A finite number within limits; NaN would pass click's own test, being on no side of one."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Refuse what is no such number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class _Place(click.types.StringParamType):
    """A file, a folder or a name on the Hub: text, which the shell completes as a path."""

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        """Leave it to the shell."""
        return [CompletionItem(incomplete, type="file")]


PLACE = _Place()
SHARE = Number(0, 1, min_open=True, max_open=True)


def config_option(function: F) -> F:
    """``--config FILE.yaml``."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="YAML file of option values; flags win over it.",
    )(function)


class _PromptType(click.Choice[str]):
    """A format's name; the mapping that a run's config.yaml keeps is taken as it is."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return Prompt.of(value)
        return Prompt.of(super().convert(value, param, ctx))


def _separator(ctx: Any, parameter: Any, value: str | None) -> str | None:
    return None if value is None else value.replace("\\n", "\n")


def _labels(ctx: Any, parameter: Any, value: Any) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else value or ()
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise click.BadParameter(
            f"{shown(value)}, expected label words; in YAML, words such as yes, no and 1 in quotes"
        )
    return tuple(word.strip() for word in words)


def _orders(ctx: Any, parameter: Any, value: Any) -> str | int | None:
    if value is None or value in ("cyclic", "all"):
        return value  # type: ignore[no-any-return]
    if str(value).isdecimal() and len(str(value)) < 9 and int(value) > 0:
        return int(value)
    raise click.BadParameter(f"{shown(value)} is not cyclic, all or a number from 1")


permutations_option = click.option(
    "--permutations",
    callback=_orders,
    metavar="cyclic|all|N",
    help="Ask with the options in several orders, N random ones, and average.",
)

choices_option = click.option(
    "--choices",
    type=click.UNPROCESSED,  # a run's config.yaml holds a list
    callback=_labels,
    metavar="A,B,…",
    help="Label words all questions share, for files of texts and labels.",
)

_SETTINGS = ("letter_tokens", "letter_style", "separator", "system_prompt")


def model_options(function: F) -> F:
    """How the model is loaded, and how it is asked: one `Prompt` in the argument ``prompt``."""

    @wraps(function)
    def command(
        *args: Any,
        prompt: Prompt,
        few_shot: str | None,
        shots: int,
        shot_choice: ShotChoice,
        **others: Any,
    ) -> Any:
        chosen: dict[str, Any] = {name: others.pop(name) for name in _SETTINGS}
        given = {name: value for name, value in chosen.items() if value is not None}
        prompt = replace(prompt, **given)
        if few_shot is not None:
            from calibrant.questions import load_questions

            pool = load_questions(few_shot, choices=others.get("choices") or None)
            prompt = prompt.with_examples(pool, shots, shot_choice, seed=others["seed"])
        return function(*args, prompt=prompt, **others)

    return _model_options(command)  # type: ignore[return-value]


def _model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option(
                "--prompt",
                type=_PromptType(get_args(PromptFormat)),
                default="letter",
                show_default=True,
                help="How a question is asked.",
            ),
            click.option(
                "--letter-style",
                type=click.Choice(get_args(LetterStyle)),
                help="How options are listed.  [default: A., or (A) if the tokenizer needs it]",
            ),
            click.option(
                "--separator",
                callback=_separator,
                help="What stands before the answer, \\n for a new line.  [default: by tokenizer]",
            ),
            click.option(
                "--letter-tokens",
                type=click.Choice(get_args(LetterTokens)),
                help="merged: 'A' and ' A' are one letter; single: as lm-eval.  [default: merged]",
            ),
            click.option("--system-prompt", help="System message of chat-letter."),
            click.option(
                "--few-shot",
                type=PLACE,
                help="File or Hub id[:split] of answered examples to show.",
            ),
            click.option(
                "--shots",
                default=5,
                show_default=True,
                type=click.IntRange(1),
                help="Examples shown with --few-shot.",
            ),
            click.option(
                "--shot-choice",
                type=click.Choice(get_args(ShotChoice)),
                default="fixed",
                show_default=True,
                help="The same examples for all questions, or of each one's subject.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                default="auto",
                show_default=True,
                help="auto: float32 on a CPU, bfloat16 elsewhere.",
            ),
            click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps …"),
            click.option("--gguf-file", help="Name of a GGUF file inside the model's folder."),
        )
    ):
        function = option(function)
    return function


SERVER_OPTIONS = ("tokenizer", "api_key_env", "top_logprobs", "concurrency", "timeout")
LOCAL_OPTIONS = (
    "dtype", "device", "gguf_file", "device_map", "quantize", "trust_remote_code", "compare_base",
)  # fmt: skip


def loading_options(function: F) -> F:
    """More ways to load a model that is only asked, not trained."""
    for option in reversed(
        (
            click.option(
                "--device-map",
                type=click.Choice(["auto"]),
                help="auto: spread a model that is too large for one device over all.",
            ),
            click.option("--quantize", type=click.Choice(["nf4"]), help="Linear layers in 4 bits."),
            click.option(
                "--trust-remote-code", is_flag=True, help="Run code that comes with the model."
            ),
        )
    ):
        function = option(function)
    return function


def server_options(function: F) -> F:
    """How a served model is asked."""
    for option in reversed(
        (
            click.option("--server", help="OpenAI-compatible API that serves MODEL, http://…/v1."),
            click.option(
                "--tokenizer", help="Of the served model: exact letters (vLLM), and cloze."
            ),
            click.option("--api-key-env", help="Environment variable with the server's key."),
            click.option(
                "--top-logprobs",
                type=click.IntRange(1),
                default=20,
                show_default=True,
                help="Likeliest tokens to ask a server for.",
            ),
            click.option(
                "--concurrency",
                type=click.IntRange(1),
                default=16,
                show_default=True,
                help="Requests at a time.",
            ),
            click.option(
                "--timeout",
                type=Number(0, min_open=True),
                default=60.0,
                show_default=True,
                help="Seconds for one reply.",
            ),
        )
    ):
        function = option(function)
    return function


def refuse_unused(*, served: bool) -> None:
    """Raise `click.UsageError` for a flag that a served model, or one here, has no use for."""
    ctx = click.get_current_context()
    for name in LOCAL_OPTIONS if served else SERVER_OPTIONS:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            flag = "--" + name.replace("_", "-")
            goes = "is for a model loaded here, not with --server" if served else "needs --server"
            raise click.UsageError(f"{flag} {goes}")


# What `calibrant evaluate --answers` has a use for; the rest says how a model is asked.
_OF_ANSWERS = (
    "model", "questions", "answers", "lm_eval_metric", "choices", "output_dir", "seed", "quiet",
    "as_json", "config", "show_prompts",
)  # fmt: skip


def refuse_with_answers() -> None:
    """Raise `click.UsageError` for a flag about asking, where the answers are there already."""
    ctx = click.get_current_context()
    for parameter in ctx.command.params:
        name = str(parameter.name)
        given = ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and name not in _OF_ANSWERS and ctx.params.get(name):
            raise click.UsageError(f"{parameter.opts[0]} goes with MODEL, not with --answers")


def output_option(default: str) -> Callable[[F], F]:
    """``--output-dir``."""

    def add(function: F) -> F:
        return click.option(
            "--output-dir",
            type=PLACE,
            default=default,
            show_default=True,
            help="Run folder; an unfinished run of the same settings is gone on with.",
        )(function)

    return add


seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),  # what NumPy's oldest generators take
    default=0,
    show_default=True,
    help="Of everything random.",
)
