"""Many runs against one: p-values, Holm's procedure, and what is marked."""

import json
import math

import numpy as np
import pytest
from scipy.stats import norm

from calibrant import cli
from calibrant.answers import AnswerTable
from calibrant.diagnosis.comparison import COMPARED, compare, holm, p_value, pooled
from calibrant.errors import InputError
from calibrant.metrics.inference import Estimate
from calibrant.report.comparison import change_table, plot_changes, prepare_changes, value_table


def world(n, seed):
    """Calibrated probabilities raised to a power, and labels."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([0.6] * 4, n)
    labels = (rng.random((n, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return p, labels


def table(p, labels, sharpness=1.0):
    q = p**sharpness
    return AnswerTable.from_probs(q / q.sum(axis=1, keepdims=True), labels)


def test_the_p_value_is_the_normal_one_of_the_interval():
    """A normal estimate of known standard error: the p-value of its z."""
    for value, se in ((0.02, 0.01), (-0.3, 0.07), (0.001, 0.01)):
        reach = norm.ppf(0.975) * se
        estimate = Estimate("nll", value, value - reach, value + reach, n=100)
        assert p_value(estimate) == pytest.approx(2 * norm.sf(abs(value) / se), rel=1e-5)


def test_the_p_value_is_below_one_in_twenty_exactly_where_the_interval_leaves_out_zero():
    for low, inside in ((0.001, False), (-0.001, True)):
        assert (p_value(Estimate("nll", 0.1, low, 0.5, n=9)) >= 0.05) == inside
    assert math.isnan(p_value(Estimate("auroc", math.nan, math.nan, math.nan, n=9)))
    assert p_value(Estimate("accuracy", 0.0, -0.01, 0.01, n=9)) == 1.0


def test_holm_steps_down_and_stops_at_the_first_failure():
    # By hand, m = 5: .001 < .01, .012 < .0125, .0166 < .05/3, .03 > .025: stop, though .04 < .05.
    p = [0.04, 0.012, 0.001, 0.03, 0.0166]
    assert holm(p) == [False, True, True, False, True]
    assert holm([0.04, math.nan]) == [True, False]
    assert holm([]) == []


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_one_false_rejection_or_more_comes_once_in_twenty_families(correlation):
    """Eight changes that are none, normal with standard error 1, in 4,000 families."""
    rng = np.random.default_rng(0)
    shared = np.sqrt(correlation) * rng.normal(size=(4000, 1))
    changes = shared + np.sqrt(1 - correlation) * rng.normal(size=(4000, 8))
    false = single = 0
    for family in changes:
        p = [p_value(Estimate("nll", z, z - 1.96, z + 1.96, n=100)) for z in family]
        false += any(holm(p))
        single += min(p) < 0.05
    assert false / 4000 <= 0.05 + 3 * 0.0035
    assert false / 4000 >= (0.035 if correlation == 0 else 0.015), "not more cautious than it says"
    assert single > 2 * false, "without the procedure there are more"


def test_marks_point_the_better_way():
    p, labels = world(3000, 1)
    runs = {"fitted": {"t": table(p, labels)}, "sharper": {"t": table(p, labels, 4.0)}}
    found = compare({"t": table(p, labels, 2.0)}, runs, n_resamples=200)
    for metric in ("conf_ece", "nll", "brier"):
        assert found.marks["t"]["fitted"][metric] == 1, metric
        assert found.marks["t"]["sharper"][metric] == -1, metric
    for run in runs:  # the order of the options and of the questions is what it was
        assert found.marks["t"][run]["accuracy"] == 0
    text = value_table(found, "t").to_markdown()
    assert text.count("▲") >= 3
    assert "fully restored" in text
    changes = change_table(found, "t").to_markdown()
    change = found.verdicts["t"]["fitted"].difference["nll"]
    assert f"{change.value:.3f}".replace("0.", ".") in changes
    figure = plot_changes(prepare_changes(found, ["t"]))
    titles = [axes.get_title() for axes in figure.axes[: len(COMPARED)]]
    assert "accuracy ↑" in titles


def test_runs_without_a_common_test_set_are_refused():
    p, labels = world(30, 2)
    with pytest.raises(InputError, match="shares no test set with before"):
        compare({"a": table(p, labels)}, {"run": {"b": table(p, labels)}})
    with pytest.raises(InputError, match="at least one other run"):
        compare({"a": table(p, labels)}, {})


def test_pooling_keeps_equal_ids_of_different_sets_apart():
    p, labels = world(20, 3)
    both = pooled({"a": table(p, labels), "b": table(p, labels)})
    assert len(both) == 40
    assert both.tasks[0] == "a"
    assert both.tasks[-1] == "b"


def strict(text):
    """JSON as its standard has it: NaN and Infinity are none."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_metrics_that_do_not_exist_are_null_in_json(tmp_path, capsys):
    """No AUROC where all answers are right; no finite NLL where a wrong one had probability 1."""
    right = AnswerTable.from_probs([[0.9, 0.1], [0.2, 0.8]] * 20, [0, 1] * 20)
    hard = AnswerTable.from_probs([[1.0, 0.0], [0.0, 1.0]] * 19 + [[1.0, 0.0]] * 2, [0, 1] * 20)
    for name, table in (("right", right), ("hard", hard)):
        table.save(tmp_path / f"{name}.parquet")
    for before, after, missing in (("right", "right", "auroc"), ("right", "hard", "nll")):
        output = tmp_path / f"{before}-{after}"
        (tmp_path / "copy").mkdir(exist_ok=True)
        AnswerTable.load(tmp_path / f"{after}.parquet").save(tmp_path / "copy" / "answers.parquet")
        command = ["compare", str(tmp_path / f"{before}.parquet"), str(tmp_path / "copy")]
        assert cli.run([*command, "--output-dir", str(output), "--json"]) == 0
        (found,) = strict(capsys.readouterr().out)["comparisons"]
        assert found["p_values"][missing] is None
        assert found["marks"][missing] == 0
        assert found["p_values"]["accuracy"] is not None
        assert strict((output / "report.json").read_text(encoding="utf-8")) == [found]


@pytest.mark.parametrize("text", ["{", "[]", '{"labels": "many"}'])
def test_a_damaged_cost_file_is_one_message(tmp_path, capsys, text):
    table = AnswerTable.from_probs([[0.9, 0.1], [0.2, 0.8]] * 5, [0, 1] * 5)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        table.save(tmp_path / name / "answers.parquet")
    (tmp_path / "b" / "cost.json").write_text(text)
    assert cli.run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cost.json: " in line
