import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrant.answers import AnswerTable
from calibrant.diagnosis.report import evaluate
from calibrant.diagnosis.verdict import verdict
from calibrant.errors import InputError
from calibrant.posthoc import TemperatureScaling


def ragged(n=50, seed=0):
    """Answers with 2 to 6 options, awkward numbers, unknown masses and foreign text."""
    rng = np.random.default_rng(seed)
    n_options = rng.integers(2, 7, size=n)
    scores = rng.normal(size=(n, 6)) * 10.0 ** rng.integers(-8, 3, size=(n, 6))
    scores[0, 0] = -np.inf  # a real option of probability 0
    scores[np.arange(6) >= n_options[:, None]] = -np.inf
    mass = np.where(rng.random(n) < 0.5, np.nan, rng.random(n))
    return AnswerTable(
        ids=tuple(f"q{i}\u2028é" for i in range(n)),
        logprobs=scores,
        labels=rng.integers(0, n_options),
        n_options=n_options,
        option_mass=mass,
        tasks=tuple(rng.choice(["", "law", "日本"], size=n)),
        groups=tuple(f"g{i // 2}" for i in range(n)),
        provenance={"model": "m", "nested": {"a": [1, 2.5, None]}},
    )


def test_parquet_round_trips_exactly(tmp_path):
    table = ragged()
    table.save(tmp_path / "a.parquet")
    again = AnswerTable.load(tmp_path / "a.parquet")
    for name in ("logprobs", "labels", "n_options", "option_mass"):
        first, second = getattr(table, name), getattr(again, name)
        assert first.dtype == second.dtype
        assert first.tobytes() == second.tobytes(), name
    for name in ("ids", "tasks", "groups", "provenance"):
        assert getattr(table, name) == getattr(again, name)


def permuted():
    """Two questions of 3 and 2 options, in two orders each."""
    return replace(
        AnswerTable.from_probs(
            [[0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.9, 0.1, 0], [0.6, 0.4, 0]],
            [0, 0, 1, 1],
            ids=["a#0", "a#1", "b#c#0", "b#c#1"],
            n_options=[3, 3, 2, 2],
        ),
        orders=[[0, 1, 2], [2, 0, 1], [0, 1, -1], [1, 0, -1]],
    )


def test_orders_survive_selection_new_scores_and_the_file(tmp_path):
    table = permuted()
    assert table.questions == ("a", "a", "b#c", "b#c")
    assert table.select([3, 1]).orders.tolist() == [[1, 0, -1], [2, 0, 1]]
    assert (table.with_logprobs(table.logprobs / 2).orders == table.orders).all()
    table.save(tmp_path / "a.parquet")
    again = AnswerTable.load(tmp_path / "a.parquet")
    assert again.orders.dtype == np.int64
    assert (again.orders == table.orders).all()
    with pytest.raises(ValueError, match="read-only"):
        again.orders[0, 0] = 1


def test_a_plain_table_is_written_for_older_versions_too_a_permuted_one_is_not(tmp_path):
    for table, version in ((ragged(), 1), (permuted(), 2)):
        table.save(tmp_path / "a.parquet")
        notes = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"calibrant"])
        assert notes["format_version"] == version


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ([[0, 1, 2]], r"orders have shape \(1, 3\) of int64, expected \(4, 3\)"),
        (
            [[0, 1, 1], [2, 0, 1], [0, 1, -1], [1, 0, -1]],
            r"row 0 \(id 'a#0'\): order is \[0, 1, 1\]",
        ),
        ([[0, 1, 2], [2, 0, 1], [2, 0, -1], [1, 0, -1]], r"row 2 .*permutation of 0 to 1"),
        ([[0, 1, 2], [2, 0, 1], [0, 1, -1], [1, -1, 0]], r"row 3 .*permutation of 0 to 1"),
    ],
)
def test_orders_that_are_no_permutations_are_refused(orders, message):
    with pytest.raises(InputError, match=message):
        replace(permuted(), orders=orders)


def test_several_permutations_of_a_question_are_not_questions():
    table = permuted()
    calls = (
        lambda: evaluate(table),
        lambda: verdict(ragged(), table),
        lambda: verdict(table, ragged()),
        lambda: TemperatureScaling().fit(table),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"4 rows ask 2 .*calibrant\.permutations\.average"):
            call()
    assert evaluate(table.select([1, 2])).n == 2, "one random order of each question is fine"


def test_a_failed_save_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    ragged(seed=1).save(path)
    old = path.read_bytes()

    def disk_full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", disk_full)
    with pytest.raises(OSError, match="No space left"):
        ragged(seed=2).save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_probabilities_are_a_softmax_over_the_questions_own_options():
    table = AnswerTable.from_probs([[0.5, 0.5, 0], [0.2, 0.3, 0.5]], [0, 1], n_options=[2, 3])
    shifted = table.with_logprobs(table.logprobs + 700.0)  # unnormalised, would overflow
    np.testing.assert_allclose(shifted.probs(), [[0.5, 0.5, 0], [0.2, 0.3, 0.5]], rtol=1e-12)
    assert shifted.confidence.tolist() == pytest.approx([0.5, 0.5])
    assert table.predictions.tolist() == [0, 2]
    assert table.correct.tolist() == [True, False]


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        ([[0.7, 0.3], [0.7, 0.4]], [0, 0], r"row 1: probabilities \[0.7, 0.4\]"),
        ([[0.7, 0.3], [np.nan, 1.0]], [0, 0], "row 1: probabilities"),
        ([[1.2, -0.2]], [0], "row 0: probabilities"),
        ([[2.0, -1.0], [0.5, 0.5]], [0, 0], "logits are not accepted"),
        ([[0.7, 0.3]], [2], r"row 0 \(id '0'\): label is 2, expected 0 to n_options - 1"),
        ([[0.7, 0.3]], [-1], "label is -1"),
        ([[0.7, 0.3]], [0.5], "labels: shape"),
        ([[0.7, 0.3]], [0, 1], "labels has 2 entries, expected 1"),
        (np.zeros((0, 2)), [], r"shape \(0, 2\)"),
        ([[1.0]], [0], r"shape \(1, 1\)"),
    ],
)
def test_bad_input_is_refused_naming_the_first_bad_row(probs, labels, message):
    with pytest.raises(InputError, match=message):
        AnswerTable.from_probs(probs, labels)


def test_duplicate_ids_are_refused():
    with pytest.raises(InputError, match="id 'a' occurs more than once"):
        AnswerTable.from_probs([[0.5, 0.5]] * 3, [0, 0, 0], ids=["a", "b", "a"])


def test_align_pairs_by_id_and_refuses_other_questions():
    a = AnswerTable.from_probs([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 0], ids=list("abc"))
    b = a.select([2, 0])
    left, right = a.align(b)
    assert left.ids == right.ids == ("a", "c")
    assert (left.logprobs == right.logprobs).all()
    other = AnswerTable.from_probs([[0.5, 0.5]], [1], ids=["a"])
    with pytest.raises(InputError, match="question 'a' has label 0 of 2 options in one table"):
        a.align(other)
    with pytest.raises(InputError, match="share no question id"):
        a.align(AnswerTable.from_probs([[0.5, 0.5]], [1], ids=["z"]))


def test_arrays_cannot_be_changed_behind_the_table():
    source = np.log([[0.7, 0.3]])
    table = AnswerTable.from_probs([[0.7, 0.3]], [0]).with_logprobs(source)
    source[0, 0] = 5.0
    assert table.logprobs[0, 0] == np.log(0.7)
    with pytest.raises(ValueError, match="read-only"):
        table.logprobs[0, 0] = 0.0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"\0" * 99])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet"):
        AnswerTable.load(path)


def test_foreign_and_newer_files_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["1"]}), path)
    with pytest.raises(InputError, match="not an answer table written by calibrant"):
        AnswerTable.load(path)
    notes = {b"calibrant": json.dumps({"format_version": 99, "provenance": {}}).encode()}
    pq.write_table(pa.table({"id": ["1"]}).replace_schema_metadata(notes), path)
    with pytest.raises(InputError, match="format 99, this version reads up to 2"):
        AnswerTable.load(path)
