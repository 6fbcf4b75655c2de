"""Model cards: huggingface_hub reads them, the numbers are right, hostile names stay text."""

import ast
import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import yaml
from pages import EVIL, made_up

from calibrant.cli.restore import _write_cards
from calibrant.diagnosis.report import evaluate
from calibrant.diagnosis.verdict import verdict
from calibrant.report.card import CardFacts, model_card, write_card
from calibrant.restore import RestoreSettings


@pytest.fixture(scope="module")
def measured():
    before, after = made_up(400, power=3), made_up(400)
    reports = {"arc": {"before": evaluate(before, n_resamples=50),
                       "cft": evaluate(after, n_resamples=50)}}  # fmt: skip
    return reports, {"arc": verdict(before, after, n_resamples=50)}


def facts(**changes):
    values = {
        "model": "org/base", "method": "cft", "kind": "adapter", "prompt": {"format": "letter"},
        "train": ("allenai/openbookqa:train", "data/own.jsonl"), "n_train": 400,
        "settings": {"epochs": 1.0, "strength": None}, "versions": {"calibrant": "0.1"},
    }  # fmt: skip
    return CardFacts(**values | changes)


def test_the_hub_library_accepts_the_card_and_reads_every_number(measured):
    hub = pytest.importorskip("huggingface_hub")
    reports, verdicts = measured
    text = model_card(facts(), reports, verdicts, picture="reliability.png")
    # Raises if model-index is not as the Hub wants it.
    card = hub.ModelCard(text, ignore_metadata_errors=False)
    found = {r.metric_type: r.metric_value for r in card.data.eval_results}
    report = reports["arc"]["cft"]
    assert found["accuracy"] == pytest.approx(report["accuracy"].value, abs=1e-6)
    assert found["expected_calibration_error"] == pytest.approx(report["conf_ece"].value, abs=1e-6)
    assert len(found) == 6
    assert {r.task_type for r in card.data.eval_results} == {"multiple-choice"}
    assert card.data.model_name == "base-cft"
    data = card.data.to_dict()
    assert (data["base_model"], data["library_name"]) == ("org/base", "peft")
    assert data["license"] == "unknown"
    assert data["datasets"] == ["allenai/openbookqa"]
    assert hub.ModelCardData(**{k: v for k, v in data.items() if k != "model-index"})
    assert verdicts["arc"].label in text
    assert "![Reliability diagrams, before and after](reliability.png)" in text
    assert "strength" not in text


@pytest.mark.parametrize("refusal", ["", "license: not one we know"])
def test_the_hubs_own_validation_gets_the_card_and_is_heard(measured, monkeypatch, refusal):
    """`ModelCard.validate` as the library has it, its server played here."""
    hub, httpx = pytest.importorskip("huggingface_hub"), pytest.importorskip("httpx2")
    text, asked = model_card(facts(), *measured), []

    def server(request):
        asked.append((request.method, request.url.path, json.loads(request.content)))
        return httpx.Response(400 if refusal else 200, text=refusal or "ok")

    client = httpx.Client(transport=httpx.MockTransport(server))
    monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: client)
    card = hub.ModelCard(text, ignore_metadata_errors=False)
    with pytest.raises(ValueError, match=refusal) if refusal else nullcontext():
        card.validate()
    ((method, path, body),) = asked
    assert (method, path, body["repoType"]) == ("POST", "/api/validate-yaml", "model")
    front = yaml.safe_load(body["content"].split("---")[1])
    assert front["model-index"][0]["name"] == "base-cft"
    assert {m["type"] for m in front["model-index"][0]["results"][0]["metrics"]} >= {
        "accuracy", "expected_calibration_error",
    }  # fmt: skip


def test_the_base_models_licence_is_taken_over(measured, tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: gemma\nlicense_link: https://ai.google.dev/gemma\n---\n"
    )
    text = model_card(facts(model=str(tmp_path)), *measured)
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["license_name"]) == ("other", "gemma")
    assert "base_model" not in head  # a folder here is nothing to the Hub
    assert "The base model's: gemma (https://ai.google.dev/gemma)." in text


@pytest.mark.parametrize("head", ["---\n: [\n---\n", "---\n- a\n---\n", "no head", "\xff"])
def test_a_broken_card_of_the_base_model_is_no_licence(measured, tmp_path, head):
    (tmp_path / "README.md").write_bytes(head.encode("latin-1"))
    text = model_card(facts(model=str(tmp_path)), *measured)
    assert "fill in `license` above" in text


def test_hostile_names_stay_text(measured):
    hub = pytest.importorskip("huggingface_hub")
    reports, verdicts = measured
    name = f"{EVIL}\n---\nlicense: mit\n---\n![x](http://x)"
    text = model_card(
        facts(model=name, train=(name,)),
        {name: reports["arc"]},
        {name: verdicts["arc"]},
    )
    head, body = text.split("\n---\n", 1)
    assert yaml.safe_load(head.removeprefix("---\n"))["license"] == "unknown"
    assert hub.ModelCard(text, ignore_metadata_errors=False).data.license == "unknown"
    prose = "".join(body.split("```")[::2])  # in a code block everything is text
    assert "<script" not in prose.replace("\\<script", "")
    assert "![x]" not in prose
    heading = model_card(facts(model="<script>*a*"), {"arc": reports["arc"]}, verdicts)
    assert "\n# \\<script\\>\\*a\\*-cft\n" in heading
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_a_number_that_is_not_finite_is_left_out(measured):
    reports, verdicts = measured
    report = reports["arc"]["cft"]
    odd = type(report).from_dict(report.to_dict())
    estimate = odd["nll"]
    odd.metrics["nll"] = type(estimate)("nll", math.inf, math.nan, math.nan, estimate.n)
    text = model_card(facts(), {"arc": {"before": report, "cft": odd}}, verdicts)
    head = yaml.safe_load(text.split("---\n")[1])
    types = [m["type"] for m in head["model-index"][0]["results"][0]["metrics"]]
    assert "nll" not in types
    assert len(types) == 5


def test_a_calibrators_card_says_how_to_apply_it(measured, tmp_path):
    write_card(tmp_path, facts(kind="calibrator", settings={}), *measured)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "library_name: calibrant" in text
    assert 'cal.posthoc.load("calibrator.json")' in text
    assert (tmp_path / "reliability.png").stat().st_size > 5000


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_weights_trained_at_a_temperature_are_used_with_it(measured, kind):
    reports, verdicts = measured
    reports = {"arc": {"before": reports["arc"]["before"], "tempered-cft": reports["arc"]["cft"]}}
    made = facts(kind=kind, method="tempered-cft", calibrated=True)
    text = model_card(made, reports, verdicts)
    assert "divided by one temperature" in text
    code = text.split("```python\n")[1].split("```")[0]
    ast.parse(code)
    assert 'calibrator = cal.posthoc.load("calibrator.json")' in code
    assert "probabilities = calibrator.transform(answers).probs()" in code
    assert "calibrator" not in model_card(facts(kind=kind), *measured).split("```python")[1]


def test_every_card_knows_the_overlap_and_the_calibrator_beside_it(tmp_path, monkeypatch):
    methods = ("temperature", "cft", "tempered-cft")
    saved = {"model": "m", "prompt": "letter", "dtype": "float32", "gguf_file": None}
    for method in methods:
        folder = tmp_path / method
        (folder / "adapter" if "cft" in method else folder).mkdir(parents=True)
        (folder / "restored.json").write_text(json.dumps(saved | {"method": method}))
        if method != "cft":
            (folder / "calibrator.json").write_text("{}")
    settings = RestoreSettings(model="m", train=("a",), evaluate=("b",), overlap="keep")
    result = SimpleNamespace(
        folder=tmp_path, settings=settings, domains={}, reports={},
        verdicts={m: {} for m in methods}, costs={m: {} for m in methods},
    )  # fmt: skip
    written = {}
    monkeypatch.setattr(
        "calibrant.report.card.write_card", lambda where, facts, *_: written.update({where: facts})
    )
    _write_cards(result)
    card, tuned, tempered = written.values()
    assert [f.settings["overlap"] for f in (card, tuned, tempered)] == ["keep"] * 3
    assert set(card.settings) == {"overlap"}
    assert "epochs" in tuned.settings
    assert (card.calibrated, tuned.calibrated, tempered.calibrated) == (False, False, True)
    assert list(written) == [tmp_path / p for p in (
        "temperature", "cft/adapter", "tempered-cft/adapter")]  # fmt: skip
