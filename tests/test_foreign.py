"""Tables of probabilities from elsewhere: what is read, and what is refused."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.foreign import read_table
from calibrant.runs import read_answers


def write(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_probabilities_are_read_as_they_are(tmp_path):
    text = "text,p_1,label,p_0,task,id\nx,.25,0,.75,law,a\n" + '"two\nlines",1,1,0,art,b\n'
    table = read_table(write(tmp_path, text))
    np.testing.assert_allclose(table.probs(), [[0.75, 0.25], [0, 1]], rtol=1e-12)
    assert table.labels.tolist() == [0, 1]
    assert table.ids == ("a", "b")
    assert table.tasks == ("law", "art")
    assert np.isnan(table.option_mass).all()


def test_log_probabilities_need_not_be_normalised(tmp_path):
    text = "label,logprob_A,logprob_B,logprob_C\nC,-3,-inf,-2\nA,-1.5,-.5,\n"
    table = read_table(write(tmp_path, text))
    assert table.logprobs.tolist() == [[-3, -np.inf, -2], [-1.5, -0.5, -np.inf]]
    assert table.labels.tolist() == [2, 0]
    assert table.n_options.tolist() == [3, 2]
    assert table.ids == ("2", "3")  # their lines


def test_csv_gzip_byte_order_mark_and_parquet_are_the_same_table(tmp_path):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), size=50)
    labels = rng.integers(0, 4, size=50)
    columns = {"label": labels, **{f"prob_{k}": probs[:, k] for k in range(4)}}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows = [
        ",".join([str(y), *(repr(float(x)) for x in p)]) for y, p in zip(labels, probs, strict=True)
    ]
    text = "\n".join([",".join(columns), *rows])
    with gzip.open(tmp_path / "a.csv.gz", "wt", encoding="utf-8") as file:
        file.write("\ufeff" + text)
    for name in ("a.parquet", "a.csv.gz"):
        ((key, table),) = read_answers(tmp_path / name).items()
        assert key == "a"
        np.testing.assert_allclose(table.probs(), probs, rtol=1e-12)
        assert (table.labels == labels).all()


def test_our_own_parquet_is_known_by_its_metadata(tmp_path):
    own = AnswerTable.from_probs([[0.7, 0.3]], [0], ids=["q"])
    own.save(tmp_path / "own.parquet")
    ((_, table),) = read_answers(tmp_path / "own.parquet").items()
    assert table.ids == ("q",)
    assert (table.logprobs == own.logprobs).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,A,B\n0,.5,.5\n", "has the columns label, A, B; expected a column label"),
        ("label,logit_0,logit_1\n0,2,1\n", "has the columns label, logit_0, logit_1; expected"),
        ("p_0,p_1\n.5,.5\n", "has the columns p_0, p_1; expected a column label"),
        ("label,p_0,p_1,logprob_0,logprob_1\n", "has options as p and logprob; expected"),
        ("label,p_1,p_2\n0,.5,.5\n", "column 'p_0' is missing, found p_1, p_2; options are coun"),
        ("label,prob_A,prob_C\nA,.5,.5\n", "column 'prob_B' is missing"),
        ("label,p_0\n0,1\n", "one option column, p_0; expected two"),
        ("label,p_0,p_0\n0,.5,.5\n", "column 'p_0' occurs twice"),
        ("label,p_0,p_1\n", "has a header and no rows"),
        ("", "expected a column label"),
        ("label,p_0,p_1\n0,.5,.5\n\n0,.5,.6\n", r"line 4: the probabilities .* the sum 1.1; exp"),
        ("label,p_0,p_1\n0,1.5,-.5\n", "line 2, column p_0: '1.5', expected a probability from 0"),
        ("label,p_0,p_1\n0,nan,.5\n", "line 2, column p_0: 'nan', expected"),
        ("label,p_0,p_1\n0,half,.5\n", "line 2, column p_0: 'half', expected"),
        ("label,p_0,p_1,p_2\n0,.5,,.5\n", "line 2, column p_1: '', expected a probability"),
        ("label,p_0,p_1\n0,1,\n", "line 2, column p_1: is empty, expected two options or more"),
        ("label,logprob_0,logprob_1\n0,2.5,-1\n", r"column logprob_0: '2.5', expected a log-pro"),
        ("label,p_0,p_1\n2,.5,.5\n", "line 2, column label: '2', expected 0 to 1 or A to B"),
        ("label,p_0,p_1\n,.5,.5\n", "line 2, column label: '', expected"),
        ("label,p_0,p_1\n0.0,.5,.5\n", "line 2, column label: '0.0', expected"),
        ("id,label,p_0,p_1\nq,0,.5,.5\nq,0,.5,.5\n", "line 3, column id: 'q' is also the id of li"),
        ("label,p_0,p_1\n0,.5\n", "line 2: 2 cells, expected 3 as in the header"),
        ('label,p_0,p_1\n0,".5,.5\n', "cannot be read"),
    ],
)
def test_what_cannot_be_read_one_way_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_table(write(tmp_path, text))


def test_parquet_rows_are_named_too(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"label": [0, None], "p_0": [0.5, 0.5], "p_1": [0.5, 0.5]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match="row 2, column label: None, expected 0 to 1"):
        read_table(path)
    path.write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_answers(path)


def test_pooling_keeps_every_question_and_refuses_the_same_one_twice():
    a = AnswerTable.from_probs([[0.7, 0.3]], [1], ids=["a"], provenance={"m": 1, "notes": ["x"]})
    b = AnswerTable.from_probs(
        [[0.2, 0.3, 0.5]], [2], ids=["b"], provenance={"m": 1, "d": 2, "notes": ["x", "y"]}
    )
    table = AnswerTable.pool([a, b])
    np.testing.assert_allclose(table.probs(), [[0.7, 0.3, 0], [0.2, 0.3, 0.5]])
    assert table.labels.tolist() == [1, 2]
    assert table.provenance == {"m": 1, "notes": ["x", "y"]}
    with pytest.raises(InputError, match="question id 'a' is in two answer tables"):
        AnswerTable.pool([a, b, a])
