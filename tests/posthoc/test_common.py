"""The order of options changes nothing it must not, and every calibrator survives a file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import sharpened, table_of

from calibrant import posthoc
from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc import LABELLED, REFERENCED, DirichletScaling, VectorScaling

BLIND = [c for name, c in {**LABELLED, **REFERENCED}.items() if name not in ("vector", "dirichlet")]
EVERY = [*LABELLED.values(), *REFERENCED.values()]


def permuted(table, orders):
    """The same questions with option ``orders[i, j]`` in column j."""
    return replace(
        table,
        logprobs=np.take_along_axis(table.logprobs, orders, axis=1),
        labels=(orders == table.labels[:, None]).argmax(axis=1),
    )


def fitted(calibrator, table):
    """Fit on a table; its reference is another model of the same questions."""
    reference = table.with_logprobs(table.logprobs * 0.5)
    return calibrator().fit(table, reference)


@st.composite
def tables_and_orders(draw):
    """Questions with 2 to 5 options, in two orders: each its own, padding stays at the end."""
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    n, k = draw(st.integers(30, 80)), draw(st.integers(2, 5))
    n_options = rng.integers(2, k + 1, n)
    n_options[0] = k
    table, _ = sharpened(
        n=n, k=k, sharpness=draw(st.sampled_from([0.5, 1.0, 3.0])), seed=seed, n_options=n_options
    )
    keys = rng.random((n, k)) + 9 * (np.arange(k) >= n_options[:, None])
    return table, keys.argsort(axis=1)


@settings(max_examples=15, deadline=None)
@given(tables_and_orders())
@pytest.mark.parametrize("calibrator", BLIND)
def test_permuting_options_permutes_the_answer(calibrator, world):
    table, orders = world
    other = permuted(table, orders)
    try:
        ours = fitted(calibrator, table).transform(table)
    except posthoc.NoOptimumError:
        with pytest.raises(posthoc.NoOptimumError):
            fitted(calibrator, other)
        return
    theirs = fitted(calibrator, other).transform(other)
    expected = np.take_along_axis(ours.probs(), orders, axis=1)
    assert theirs.probs() == pytest.approx(expected, abs=1e-9)
    assert (ours.predictions == table.predictions).all()
    assert (theirs.predictions == other.predictions).all()
    assert (ours.probs() > 0).sum(axis=1).tolist() == table.n_options.tolist()


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 100))
@pytest.mark.parametrize("calibrator", [VectorScaling, DirichletScaling])
def test_permuting_the_letters_permutes_what_knows_letters(calibrator, order, seed):
    table, _ = sharpened(n=200, bias=[1.0, 0, 0, -1.0], seed=seed)
    orders = np.tile(order, (200, 1))
    other = permuted(table, orders)
    ours, theirs = calibrator().fit(table), calibrator().fit(other)
    assert theirs.weight == pytest.approx(ours.weight[np.ix_(order, order)], abs=1e-7)
    assert theirs.transform(other).probs() == pytest.approx(
        ours.transform(table).probs()[:, order], abs=1e-8
    )


@pytest.mark.parametrize("calibrator", EVERY)
def test_rows_do_not_depend_on_each_other(calibrator):
    table, _ = sharpened(n=300)
    done = fitted(calibrator, table)
    rows = np.random.default_rng(0).permutation(300)[:50]
    alone = done.transform(table.select(rows)).logprobs
    assert alone == pytest.approx(done.transform(table).logprobs[rows], rel=1e-12)


@pytest.mark.parametrize("calibrator", EVERY)
def test_a_calibrator_survives_a_file(calibrator, tmp_path):
    table, _ = sharpened(n=300, bias=[0.5, 0, 0, 0])
    done = fitted(calibrator, table)
    done.save(tmp_path / "calibrator.json")
    again = posthoc.load(tmp_path / "calibrator.json")
    assert type(again) is calibrator
    assert again.to_dict() == done.to_dict()
    assert (again.transform(table).logprobs == done.transform(table).logprobs).all()
    assert again.transform(table).provenance["calibrator"] == calibrator.kind


@pytest.mark.parametrize("calibrator", EVERY)
def test_nothing_works_before_fit(calibrator, tmp_path):
    table, _ = sharpened(n=3)
    with pytest.raises(InputError, match=f"{calibrator.kind}: transform before fit"):
        calibrator().transform(table)
    with pytest.raises(InputError, match="save before fit"):
        calibrator().save(tmp_path / "calibrator.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("calibrator", EVERY)
def test_several_rows_of_one_question_are_refused(calibrator):
    table = replace(
        table_of(np.array([[0.2, 0.0], [0.4, 0.0]]), [0, 1], ids=("q#0", "q#1")),
        orders=np.array([[0, 1], [1, 0]]),
    )
    with pytest.raises(InputError, match=r"(several|different) orders"):
        fitted(calibrator, table)


def test_names_are_the_kinds():
    assert {name: c.kind for name, c in {**LABELLED, **REFERENCED}.items()} == {
        name: name for name in {**LABELLED, **REFERENCED}
    }


GOOD = {"kind": "temperature", "temperature": 2.0, "n_questions": 3}
ISOTONIC = {"kind": "isotonic", "thresholds": [0.3, 0.6], "values": [0.2, 0.7], "n_questions": 3}
BINNING = {"kind": "scaling-binning", "n_bins": 2, "slope": 1.0, "intercept": 0.0, "edges": [0.5],
           "values": [0.3, 0.7], "n_questions": 3}  # fmt: skip
VECTOR = {"kind": "vector", "l2": 1.0, "weight": [1.0, 1.0], "bias": [0.0, 0.0], "n_questions": 3}


PRIDE = {"kind": "pride", "prior": {"2": [0.25, 0.75]}, "n_questions": 3}


def test_a_file_without_a_version_is_the_first_version(tmp_path):
    path = tmp_path / "calibrator.json"
    path.write_text(json.dumps(GOOD))
    table = AnswerTable.from_probs([[0.9, 0.1]], [0])
    assert posthoc.load(path).transform(table).confidence == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "kind None, expected one of temperature, "),
        ({**GOOD, "kind": "platt"}, "kind 'platt', expected one of temperature, "),
        ({**GOOD, "kind": ["vector"]}, "kind .'vector'., expected one of"),
        ({**GOOD, "format_version": 2}, "calibrator format 2, this version reads up to 1; upgrade"),
        ({**GOOD, "temperature": 0}, "temperature 0, expected a finite number above 0"),
        ({**GOOD, "temperature": "2"}, "temperature '2', expected a number"),
        ({**GOOD, "temperature": True}, "temperature True, expected a number"),
        ({**GOOD, "temperature": float("nan")}, "temperature nan, expected a finite number"),
        ({**GOOD, "n_questions": 0}, "n_questions 0, expected a positive whole number"),
        ({"kind": "temperature", "temperature": 2.0}, "n_questions None, expected a positive"),
        ({**ISOTONIC, "values": [0.2]}, r"values \[0.2\], expected finite numbers of shape \(2,\)"),
        ({**ISOTONIC, "values": [0.7, 0.2]}, "values, expected rising numbers between 0 and 1"),
        ({**ISOTONIC, "values": [0.7, 1.2]}, "values, expected rising numbers between 0 and 1"),
        ({**ISOTONIC, "thresholds": [0.6, 0.6]}, "thresholds, expected rising confidences"),
        ({**ISOTONIC, "thresholds": "no"}, r"thresholds 'no', expected .* shape \(any,\)"),
        ({**ISOTONIC, "thresholds": [], "values": []}, "values, expected rising numbers"),
        ({**BINNING, "edges": []}, r"edges \[\], expected finite numbers of shape \(1,\)"),
        ({**BINNING, "values": [0.3, 0.0]}, "values, expected numbers between 0 and 1"),
        ({**BINNING, "slope": None}, "slope None, expected a number"),
        ({**VECTOR, "weight": [[1.0, 0], [0, 1.0]]}, r"weight .* of shape \(2,\)"),
        ({**VECTOR, "bias": [0.0]}, "bias of 1 options, expected 2 to 1,000"),
        ({**VECTOR, "kind": "dirichlet"}, r"weight .* of shape \(2, 2\)"),
        ({**PRIDE, "prior": {}}, "prior {}, expected named numbers"),
        ({**PRIDE, "prior": {"3": [0.5, 0.5]}}, r"3 \[0.5, 0.5\], expected finite .* \(3,\)"),
        ({**PRIDE, "prior": {"2": [0.5, 0.6]}}, "prior of 2 options, expected as many positive"),
        ({**PRIDE, "prior": {"two": [0.5, 0.6]}}, r"two \[0.5, 0.6\], expected finite"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, content, message):
    path = tmp_path / "calibrator.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=f"calibrator.json: {message}"):
        posthoc.load(path)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json: cannot be read"):
        posthoc.load(tmp_path / "absent.json")
