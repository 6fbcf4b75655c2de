"""Bad inputs, and what is said about each: what, where, and what was expected.

Data of `test_bad_inputs.py`. Messages are given without the part that repeats the section's file.
"""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

# fmt: off

GOOD = '{"question": "1 + 1 = ?", "choices": ["1", "2"], "answer": 1}\n'
CSV = "evaluate MODEL --questions q.csv"
ASK = "evaluate MODEL --questions q.jsonl"
LOG_NAME = "samples_t_2026-01-01T00-00-00.000000.jsonl"


def parquet(**columns):
    """A Parquet file of these columns."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def own(metadata=None, drop=(), **columns):
    """A Parquet file like an answer table of ours, but for what is given."""
    good = {
        "id": ["a", "b"], "option_logprobs": [[-0.1, -2.0], [-0.5, -0.9]],
        "option_mass": [0.9, None], "label": [0, 1], "task": ["", ""], "group": ["a", "b"],
    }
    columns = {name: column for name, column in (good | columns).items() if name not in drop}
    metadata = {"format_version": 2, "provenance": {}} if metadata is None else metadata
    text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({b"calibrant": text}), buffer)
    return buffer.getvalue()


def log(**changes):
    """A line of lm-eval's samples, but for what is given; `...` leaves a field out."""
    good = {
        "doc_id": 0, "target": "1", "filter": "none", "acc": 1.0,
        "filtered_resps": [["-2.5", "False"], ["-0.5", "True"]],
        "arguments": {
            "gen_args_0": {"arg_0": "q", "arg_1": " A"}, "gen_args_1": {"arg_0": "q", "arg_1": " B"}
        },
    }
    row = {name: value for name, value in (good | changes).items() if value is not ...}
    return json.dumps(row) + "\n"


def restored(calibrator=None, **settings):
    """A restored model's folder ``run``, but for what is given; `...` leaves a field out."""
    good = {
        "method": "temperature", "model": "none", "prompt": "letter", "dtype": "float32",
        "gguf_file": None,
    }
    row = {name: value for name, value in (good | settings).items() if value is not ...}
    return {"run/restored.json": json.dumps(row), "run/calibrator.json": calibrator or scaling()}


def scaling(**changes):
    """A calibrator.json of temperature scaling, but for what is given."""
    good = {"kind": "temperature", "format_version": 1, "temperature": 2.0, "n_questions": 9}
    return json.dumps(good | changes)

# A line of text that would be 9 ** 9 words.
LAUGHS = "limit: [&a [x,x,x,x,x,x,x,x,x]" + "".join(
    f", &{name} [{', '.join(['*' + chr(ord(name) - 1)] * 9)}]" for name in "bcdefghi"
) + "]"

# The second line of q.jsonl; its message after "q.jsonl: line 2: ".
ROWS = [
    ('{"question": "x"', 'invalid JSON at character 16'),
    ('[1, 2]', '[1, 2] is of type list, expected a JSON object'),
    ('"text"', '"text" is of type str, expected a JSON object'),
    ('null', 'null is of type nothing, expected a JSON object'),
    ('42', '42 is of type int, expected a JSON object'),
    ('NaN', 'NaN is of type decimal number, expected a JSON object'),
    ('{}', 'question: is missing, expected text'),
    ('{"question": "x", "question": "y", "choices": ["a", "b"], "answer": 0}',
     'question: the field occurs twice in one object, expected once'),
    ('{"question": "x", "choices": ["a", "b"]}',
     'answer: is missing, expected the 0-based index of the right option, or its letter'),
    ('{"question": "x", "answer": 0}', 'choices: is missing, expected a list of 2 to 26 strings'),
    ('{"choices": ["a", "b"], "answer": 0}', 'question: is missing, expected text'),
    ('{"a":' * 3000, 'invalid JSON ('),
    ('{"question": ' + '9' * 5000 + '}', 'invalid JSON ('),
    ('{"question": "", "choices": ["a", "b"], "answer": 0}', 'question: is empty, expected text'),
    ('{"question": "  \\n", "choices": ["a", "b"], "answer": 0}',
     'question: is empty, expected text'),
    ('{"question": 7, "choices": ["a", "b"], "answer": 0}',
     'question: 7 is of type int, expected a string'),
    ('{"question": null, "choices": ["a", "b"], "answer": 0}', 'question: is null, expected text'),
    ('{"question": ["x"], "choices": ["a", "b"], "answer": 0}',
     'question: ["x"] is of type list, expected a string'),
    ('{"question": "\\ud800", "choices": ["a", "b"], "answer": 0}',
     'question: character 0 is not valid Unicode (an invalid UTF-8 byte or half a '
     'surrogate pair), expected UTF-8 text'),
    ('{"question": "x", "choices": [], "answer": 0}', 'choices: 0 options, expected 2 to 26'),
    ('{"question": "x", "choices": ["a"], "answer": 0}', 'choices: 1 option, expected 2 to 26'),
    ('{"question": "x", "answer": 0, "choices": [' + ', '.join(['"a"'] * 27) + ']}',
     'choices: 27 options, expected 2 to 26'),
    ('{"question": "x", "choices": ["a", ""], "answer": 0}',
     'choices: option 1 (0-based): is empty, expected text'),
    ('{"question": "x", "choices": ["a", 3], "answer": 0}',
     'choices: option 1 (0-based): 3 is of type int, expected a string'),
    ('{"question": "x", "choices": ["a", null], "answer": 0}',
     'choices: option 1 (0-based): null is of type nothing, expected a string'),
    ('{"question": "x", "choices": "ab", "answer": 0}',
     'choices: "ab" is of type str, expected a list of 2 to 26 strings'),
    ('{"question": "x", "choices": {"a": 1, "b": 2}, "answer": 0}',
     'choices: {"a": 1, "b": 2} is of type object, expected a list of 2 to 26 strings'),
    ('{"question": "x", "choices": ["a", "b"], "answer": 2}',
     'answer: 2 is out of range, expected 0 to 1 (0-based, 2 options)'),
    ('{"question": "x", "choices": ["a", "b"], "answer": -1}',
     'answer: -1 is out of range, expected 0 to 1 (0-based, 2 options)'),
    ('{"question": "x", "choices": ["a", "b"], "answer": 0.0}',
     'answer: 0.0 is of type decimal number, expected an integer from 0 to 1 or a letter '
     'from A to B'),
    ('{"question": "x", "choices": ["a", "b"], "answer": true}',
     'answer: true is of type boolean, expected an integer from 0 to 1 or a letter from A '
     'to B'),
    ('{"question": "x", "choices": ["a", "b"], "answer": "C"}',
     'answer: "C", expected an integer from 0 to 1 or a letter from A to B'),
    ('{"question": "x", "choices": ["a", "b"], "answer": "AB"}',
     'answer: "AB", expected an integer from 0 to 1 or a letter from A to B'),
    ('{"question": "x", "choices": ["a", "b"], "answer": ""}',
     'answer: "", expected an integer from 0 to 1 or a letter from A to B'),
    ('{"question": "x", "choices": ["a", "b"], "answer": "1"}',
     'answer: "1", expected an integer from 0 to 1 or a letter from A to B'),
    ('{"question": "x", "choices": ["a", "b"], "answer": [0]}',
     'answer: [0] is of type list, expected an integer from 0 to 1 or a letter from A to B'),
    ('{"question": "x", "choices": ["a", "b"], "answer": null}',
     'answer: is null, expected the 0-based index of the right option, or its letter'),
    ('{"question": "x", "choices": ["B", "A"], "answer": "B"}',
     "answer: 'B' is the letter of option 1 and the text of option 0, expected the "
     '0-based index, which has one meaning'),
    ('{"question": "x", "choices": ["a", "b"], "answer": 0, "id": ""}',
     'id: is empty, expected text'),
    ('{"question": "x", "choices": ["a", "b"], "answer": 0, "id": 1.5}',
     'id: 1.5 is of type decimal number, expected a string'),
    ('{"question": "x", "choices": ["a", "b"], "answer": 0, "id": ["a"]}',
     'id: ["a"] is of type list, expected a string'),
    ('{"question": "x", "choices": ["a", "b"], "answer": 0, "id": " "}',
     'id: is empty, expected text'),
    ('{"question": "x", "choices": ["a", "b"], "answer": 0, "subject": 3}',
     'subject: 3 is of type int, expected a string'),
    ('{"question": "x", "choices": ["a", "b"], "answer": 0, "subject": "\\udfff"}',
     'subject: character 0 is not valid Unicode (an invalid UTF-8 byte or half a '
     'surrogate pair), expected UTF-8 text'),
]

# Command, files, message.
QUESTION_FILES = [
    ('evaluate MODEL --questions none.jsonl', {},
     'none.jsonl: no such file, and not a Hub data set id either (owner/name:split); '
     'expected questions as .jsonl, .jsonl.gz, .csv, .csv.gz, .parquet'),
    ('evaluate MODEL --questions none.csv', {},
     'none.csv: no such file, and not a Hub data set id either (owner/name:split); '
     'expected questions as .jsonl, .jsonl.gz, .csv, .csv.gz, .parquet'),
    ('evaluate MODEL --questions none', {},
     'none: no such file, and not a Hub data set id either (owner/name:split); expected '
     'questions as .jsonl, .jsonl.gz, .csv, .csv.gz, .parquet'),
    (ASK, {'q.jsonl': ''},
     'q.jsonl: is empty, expected at least one question'),
    (ASK, {'q.jsonl': '\n \n\n'},
     'q.jsonl: is empty, expected at least one question'),
    (ASK, {'q.jsonl': b'\xff\xfe{\x00'},
     'q.jsonl: line 1: byte 0 is not valid UTF-8'),
    (ASK, {"q.jsonl": GOOD.encode() + b'{"question": "\xe9"}\n'},
     'q.jsonl: line 2: byte 14 is not valid UTF-8'),
    (ASK, {"q.jsonl": gzip.compress(GOOD.encode())},
     'q.jsonl: is gzip-compressed, expected a name that ends in .gz'),
    ('evaluate MODEL --questions q.jsonl.gz', {'q.jsonl.gz': GOOD},
     'q.jsonl.gz: damaged or truncated gzip'),
    ("evaluate MODEL --questions q.jsonl.gz", {"q.jsonl.gz": gzip.compress(GOOD.encode())[:40]},
     'q.jsonl.gz: damaged or truncated gzip'),
    ('evaluate MODEL --questions q.txt', {'q.txt': GOOD},
     'q.txt: unknown file type, expected one of .jsonl, .jsonl.gz, .csv, .csv.gz, .parquet'),
    ('evaluate MODEL --questions q.json', {'q.json': f'[{GOOD}]'},
     'q.json: unknown file type, expected one of .jsonl, .jsonl.gz, .csv, .csv.gz, '
     '.parquet'),
    ('evaluate MODEL --questions .', {'q.jsonl': GOOD},
     '.: is a folder, expected a file: .jsonl, .jsonl.gz, .csv, .csv.gz, .parquet'),
    ('evaluate MODEL --questions q.jsonl:test', {'q.jsonl': GOOD},
     'q.jsonl:test: no such file, and not a Hub data set id either (owner/name:split); '
     'expected questions as .jsonl, .jsonl.gz, .csv, .csv.gz, .parquet'),
    ('evaluate MODEL --questions allenai/ai2_arc:test', {},
     'allenai/ai2_arc:test: expected one of allenai/ai2_arc/ARC-Easy:SPLIT, '
     'allenai/ai2_arc/ARC-Challenge:SPLIT'),
    (CSV, {'q.csv': 'question,A,B,answer\n'},
     'q.csv: no valid question, expected at least one'),
    (CSV, {'q.csv': 'question,A,A,answer\nx,1,2,0\n'},
     "q.csv: column 'A' occurs twice in the header"),
    (CSV, {'q.csv': 'question,A,C,answer\nx,1,2,0\n'},
     "q.csv: column 'B' is missing between the option columns"),
    (CSV, {'q.csv': 'question,A,B,choice_1,choice_2,answer\nx,1,2,3,4,0'},
     'q.csv: options are given twice, expected only one of: a column choices, columns '
     'choice_1, choice_2, ..., columns A, B, ...'),
    (CSV, {'q.csv': 'question,A,B,answer\nx,1,2\n'},
     'q.csv: line 2: 3 cells, expected 4 as in the header'),
    (CSV, {'q.csv': 'question,A,B,answer\n"x,1,2,0\n'},
     'q.csv: line 2: invalid CSV'),
    (CSV, {'q.csv': 'question,A,B,answer\nx"y"z"",1,"2"3,0\n'},
     'q.csv: line 2: invalid CSV'),
    (CSV, {'q.csv': 'question,choices,answer\nx,nonsense,0\n'},
     'q.csv: line 2: choices: "nonsense" is of type str, expected a JSON list of strings'),
    (CSV, {'q.csv': 'question,choices,answer\nx,"[1, 2]",0\n'},
     'q.csv: line 2: choices: option 0 (0-based): 1 is of type int, expected a string'),
    (CSV, {'q.csv': 'question,A,B,answer\nx,1,,0\n'},
     'q.csv: line 2: choices: 1 option, expected 2 to 26'),
    (CSV, {'q.csv': 'question,A,B,C,answer\nx,1,,3,0\n'},
     'q.csv: line 2: choices: option 1 (0-based): is empty, expected text'),
    (CSV, {'q.csv': 'text,label\nx,pos\n'},
     'q.csv: line 2: question: is missing, expected text'),
    (CSV, {'q.csv': 'question,A,B,answer\nx,1,2,9999999999\n'},
     'q.csv: line 2: answer: "9999999999", expected an integer from 0 to 1 or a letter '
     'from A to B'),
    (CSV, {'q.csv': 'question,A,B,answer\nx,1,2,x\n'},
     'q.csv: line 2: answer: "x", expected an integer from 0 to 1 or a letter from A to B'),
    (CSV, {'q.csv': 'a,b\n1,2\n'},
     'q.csv: line 2: question: is missing, expected text'),
    (CSV, {'q.csv': b'question,A,B,answer\nx,\xff,2,0\n'},
     'q.csv: line 2: choices: option 0 (0-based): character 0 is not valid Unicode (an '
     'invalid UTF-8 byte or half a surrogate pair), expected UTF-8 text'),
    (CSV + ' --choices pos', {'q.csv': 'text,label\nx,pos\n'},
     'choices: 1 option, expected 2 to 26'),
    (CSV + ' --choices pos,pos', {'q.csv': 'text,label\nx,pos\n'},
     "choices: ('pos', 'pos'), expected different label words"),
    (CSV + ' --choices pos,', {'q.csv': 'text,label\nx,pos\n'},
     'choices: option 1 (0-based): is empty, expected text'),
    (CSV + ' --choices pos,neg', {'q.csv': 'text,label\nx,bad\n'},
     'q.csv: line 2: answer: "bad", expected one of [\'pos\', \'neg\']'),
    (CSV + ' --choices pos,neg', {'q.csv': 'text,label,choices\nx,pos,"[""a"",""b""]"\n'},
     'q.csv: line 2: choices: ["a", "b"] is of type list, but all questions are to have '
     "the options ['pos', 'neg']; expected rows without options of their own"),
    (CSV + ' --choices 1,0', {'q.csv': 'text,label\nx,1\n'},
     'q.csv: line 2: answer: 1 is the label of option 0 and the 0-based index of another, '
     'expected labels that are not numbers'),
    ('evaluate MODEL --questions q.parquet', {'q.parquet': 'PAR1 no'},
     'q.parquet: cannot be read as Parquet'),
    ('evaluate MODEL --questions q.parquet', {'q.parquet': b''},
     'q.parquet: cannot be read as Parquet'),
]

# Parquet files of questions; the message after "q.parquet: ".
QUESTION_PARQUET = [
    (parquet(question=["x"], choices=[["a", "b"]], answer=[5]), "row 1: answer: 5 is out of range"),
    (parquet(question=["x"], choices=[["a", None]], answer=[0]),
     "row 1: choices: option 1 (0-based): null is of type nothing, expected a string"),
    (parquet(question=[1], choices=[["a", "b"]], answer=[0]),
     "row 1: question: 1 is of type int, expected a string"),
    (parquet(question=["x"], answer=[0]), "row 1: choices: is missing, expected a list of 2 to 26"),
    (parquet(question=pa.array([], pa.string()), choices=pa.array([], pa.list_(pa.string())),
             answer=pa.array([], pa.int64())), "is empty, expected at least one question"),
    (parquet(question=["x"] * 50, choices=[["a", "b"]] * 50, answer=[0] * 50)[:-60],
     "cannot be read as Parquet"),
]

# Parquet tables of probabilities; the message after "t.parquet: ".
TABLE_PARQUET = [
    (parquet(label=[0], p_0=[0.5]), "has one option column, p_0; expected two or more"),
    (parquet(label=[0], p_0=[0.5], p_1=[0.9]), "row 1: the probabilities [0.5, 0.9] have the sum"),
    (parquet(label=["x"], p_0=[0.5], p_1=[0.5]), "row 1, column label: 'x', expected 0 to 1"),
    (parquet(label=[[1]], p_0=[0.5], p_1=[0.5]), "row 1, column label: [1], expected 0 to 1"),
]

# Command, files, message.
TABLES = [
    ('evaluate --answers t.csv', {'t.csv': ''},
     't.csv: is empty, expected a column label, and for each option a column p_0, p_1, … '
     'or prob_A, prob_B, … of probabilities, or logprob_0, … or logprob_A, … of natural '
     'log-probabilities'),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n'},
     't.csv: has a header and no rows; expected at least one question'),
    ('evaluate --answers t.csv', {'t.csv': 'p_0,p_1\n.5,.5\n'},
     't.csv: has the columns p_0, p_1; expected a column label, and for each option a '
     'column p_0, p_1, … or prob_A, prob_B, … of probabilities, or logprob_0, … or '
     'logprob_A, … of natural log-probabilities, and only one of these kinds'),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0\n0,1\n'},
     't.csv: has one option column, p_0; expected two or more'),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_2\n0,.5,.5\n'},
     "t.csv: column 'p_1' is missing, found p_0, p_2; options are counted from 0 or A "
     'without a gap'),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1,logprob_0,logprob_1\n0,.5,.5,-1,-1\n'},
     't.csv: has options as p and logprob; expected a column label, and for each option a '
     'column p_0, p_1, … or prob_A, prob_B, … of probabilities, or logprob_0, … or '
     'logprob_A, … of natural log-probabilities, and only one of these kinds'),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1,p_1\n0,.5,.5,.5\n'},
     "t.csv: column 'p_1' occurs twice in the header"),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n0,.5,.6\n'},
     't.csv: line 2: the probabilities [0.5, 0.6] have the sum 1.1; expected 1 within '
     '0.001'),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n0,-.1,1.1\n'},
     "t.csv: line 2, column p_0: '-.1', expected a probability from 0 to 1"),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n0,nan,.5\n'},
     "t.csv: line 2, column p_0: 'nan', expected a probability from 0 to 1"),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n0,x,.5\n'},
     "t.csv: line 2, column p_0: 'x', expected a probability from 0 to 1"),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n0,2.5,-1.5\n'},
     "t.csv: line 2, column p_0: '2.5', expected a probability from 0 to 1"),
    ('evaluate --answers t.csv', {'t.csv': 'label,logprob_0,logprob_1\n0,-inf,-inf\n'},
     "t.csv: answer table: row 0 (id '2'): logprobs is [-inf, -inf]"),
    ('evaluate --answers t.csv', {'t.csv': 'label,logprob_0,logprob_1\n0,3.1,1.2\n'},
     "t.csv: line 2, column logprob_0: '3.1', expected a log-probability, at most 0 "
     '(logits are not)'),
    ('evaluate --answers t.csv', {'t.csv': 'label,logprob_0,logprob_1\n0,-inf,-inf\n'},
     "answer table: row 0 (id '2'): logprobs is [-inf, -inf], expected at least one "
     'finite score'),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n2,.5,.5\n'},
     "t.csv: line 2, column label: '2', expected 0 to 1 or A to B"),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\nC,.5,.5\n'},
     "t.csv: line 2, column label: 'C', expected 0 to 1 or A to B"),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n-1,.5,.5\n'},
     "t.csv: line 2, column label: '-1', expected 0 to 1 or A to B"),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n,.5,.5\n'},
     "t.csv: line 2, column label: '', expected 0 to 1 or A to B"),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n0,.5\n'},
     't.csv: line 2: 2 cells, expected 3 as in the header'),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n0,1,\n'},
     't.csv: line 2, column p_1: is empty, expected two options or more'),
    ('evaluate --answers t.csv', {'t.csv': 'id,label,p_0,p_1\na,0,.5,.5\na,1,.5,.5\n'},
     "t.csv: line 3, column id: 'a' is also the id of line 2"),
    ('evaluate --answers t.csv', {'t.csv': 'label,p_0,p_1\n"0,.5,.5\n'}, 't.csv: cannot be read'),
    ('evaluate --answers t.csv', {'t.csv': b'label,p_0,p_1\n\xff,.5,.5\n'},
     't.csv: cannot be read'),
    ('evaluate --answers t.csv.gz', {'t.csv.gz': 'label,p_0,p_1\n0,.5,.5\n'},
     't.csv.gz: damaged or truncated gzip'),
    ('evaluate --answers t.parquet', {'t.parquet': 'no'}, 't.parquet: cannot be read as Parquet'),
    ('evaluate --answers none.parquet', {},
     'none.parquet: no such file or folder; expected a run folder, a file of answers, or '
     'lm-eval output'),
    ('evaluate --answers none', {},
     'none: no such file or folder; expected a run folder, a file of answers, or lm-eval '
     'output'),
    ('evaluate --answers t.txt', {'t.txt': 'x'},
     't.txt: unknown file type; expected an answer table as .csv, .csv.gz, .parquet, or '
     "lm-eval's samples_TASK_DATE.jsonl"),
    ('evaluate --answers .', {},
     '.: holds no answer table; expected a run folder with answers.parquet or answers/, a '
     'folder of lm-eval output with samples_*.jsonl, or a file: Parquet, CSV or '
     'samples_*.jsonl'),
    ('evaluate --answers t.csv t.csv', {'t.csv': 'label,p_0,p_1\n0,.5,.5\n'},
     't.csv: there is another table of t; expected each once'),
]

# Answer tables of calibrant itself, newer, older or damaged; the message after "t.parquet: ".
OWN = [
    (own({'format_version': 3, 'provenance': {}}),
     'answer table format 3, this version reads up to 2; upgrade calibrant'),
    (own({'format_version': 99}),
     'its metadata are damaged; expected an answer table written by calibrant'),
    (own({'provenance': {}}),
     'its metadata are damaged; expected an answer table written by calibrant'),
    (own({'format_version': 'new', 'provenance': {}}),
     'its metadata are damaged; expected an answer table written by calibrant'),
    (own({'format_version': 1}),
     'its metadata are damaged; expected an answer table written by calibrant'),
    (own([]), 'its metadata are damaged; expected an answer table written by calibrant'),
    (own(b'{'), 'its metadata are damaged; expected an answer table written by calibrant'),
    (own(b'\xff\xfe'), 'its metadata are damaged; expected an answer table written by calibrant'),
    (own({'format_version': True, 'provenance': {}}),
     'its metadata are damaged; expected an answer table written by calibrant'),
    (own({'format_version': 2, 'provenance': [1]}),
     'its metadata are damaged; expected an answer table written by calibrant'),
    (own({'format_version': 0, 'provenance': {}}),
     'its metadata are damaged; expected an answer table written by calibrant'),
    (own(drop=['label']), "answer table lacks the column(s) ['label']"),
    (own(drop=['option_logprobs', 'group']),
     "answer table lacks the column(s) ['group', 'option_logprobs']"),
    (own(label=[0, 7]), "answer table: row 1 (id 'b'): label is 7, expected 0 to n_options - 1"),
    (own(label=[0, None]), 'column label holds int64 with 1 missing, expected whole numbers'),
    (own(label=['a', 'b']), 'column label holds string with 0 missing, expected whole numbers'),
    (own(label=[0.5, 1.0]), 'column label holds double with 0 missing, expected whole numbers'),
    (own(id=['a', 'a']), "answer table: id 'a' occurs more than once; expected unique"),
    (own(id=['a', None]), 'column id holds string with 1 missing, expected strings'),
    (own(id=[1, 2]), 'column id holds int64 with 0 missing, expected strings'),
    (own(option_logprobs=[[-0.1, -2.0], []]),
     "answer table: row 1 (id 'b'): n_options is 0, expected 2 to 2"),
    (own(option_logprobs=[[-0.1, -2.0], None]),
     'column option_logprobs holds list<element: double> with 1 missing, expected lists '
     'of decimal numbers'),
    (own(option_logprobs=[['x'], ['y']]),
     'column option_logprobs holds list<element: string> with 0 missing, expected lists '
     'of decimal numbers'),
    (own(option_logprobs=[1.0, 2.0]),
     'column option_logprobs holds double with 0 missing, expected lists of decimal '
     'numbers'),
    (own(option_mass=[1.5, 0.1]),
     "answer table: row 0 (id 'a'): option_mass is 1.5, expected 0 to 1, or NaN where "
     'unknown'),
    (own(option_mass=['a', 'b']),
     'column option_mass holds string with 0 missing, expected decimal numbers'),
    (own(order=[[0, 1], [0, 0]]),
     "answer table: row 0 (id 'a'): order is [0, 1], expected a permutation of 0 to 1, "
     "and an id like 'question#0'"),
    (own(order=[[0, 1], [1, 0]]),
     "answer table: row 0 (id 'a'): order is [0, 1], expected a permutation of 0 to 1, "
     "and an id like 'question#0'"),
    (own(order=[[0], [1]]),
     "answer table: row 0 (id 'a'): order is [0, -1], expected a permutation of 0 to 1, "
     "and an id like 'question#0'"),
    (own(task=[None, None]), 'column task holds null with 2 missing, expected strings'),
    (own(group=[None, 'a']), 'column group holds string with 1 missing, expected strings'),
    (own(option_logprobs=[[-0.1, -2.0], [float("nan"), -1.0]]),
     "answer table: row 1 (id 'b'): logprobs is [nan, -1.0], expected numbers below +inf"),
    (own(option_logprobs=[[-0.1, -2.0], [float("inf"), -1.0]]),
     "answer table: row 1 (id 'b'): logprobs is [inf, -1.0], expected numbers below +inf"),
    (own(option_logprobs=[[float("-inf")] * 2] * 2),
     "answer table: row 0 (id 'a'): logprobs is [-inf, -inf], expected at least one finite score"),
    (own()[:-30], "cannot be read as Parquet"),
]

# Content of an lm-eval log; the message after its name.
LOGS = [
    (log(doc_id=...), 'line 1: lacks doc_id; expected a row of lm-eval --log_samples'),
    (log(target=...), 'line 1: lacks target; expected a row of lm-eval --log_samples'),
    (log(arguments=...), 'line 1: lacks arguments; expected a row of lm-eval --log_samples'),
    (log(filtered_resps=[['-1', 'x']]),
     'line 1: 2 continuations and 1 log-likelihoods; expected one for each of 2 or more '
     'options'),
    (log(filtered_resps=['text']),
     'line 1: arguments and filtered_resps are not those of a multiple-choice task'),
    (log(filtered_resps=[['nan', 'x'], ['-1', 'x']]),
     'line 1: filtered_resps: a log-likelihood is NaN or +inf; expected numbers'),
    (log(filtered_resps=[['x', 'x'], ['-1', 'x']]),
     'line 1: arguments and filtered_resps are not those of a multiple-choice task'),
    (log(filter='strict'), "holds only the filter(s) strict; expected rows of the filter 'none'"),
    (log(acc=10**400), 'line 1: acc 1000000000'),
    (log(acc=float("nan")), 'line 1: acc nan, expected a number from 0 to 1'),
    (log(doc_id="\ud800"), "line 1: doc_id '\\ud800', expected a number"),
    (log(filtered_resps=[[10**400, 'x'], ['-1', 'x']]),
     'line 1: arguments and filtered_resps are not those of a multiple-choice task'),
    (log(acc=0.0),
     "line 1: target '1', read as an index, does not give the logged metrics {'acc': "
     "0.0}; expected a task with one right option and lm-eval's own metrics"),
    (log(target='5'),
     "line 1: target '5' is neither an index, nor the text of one of the 2 options, nor "
     'its letter; expected one right option'),
    (log(filtered_resps=[['t']], arguments={'gen_args_0': {'arg_0': 'q', 'arg_1': {'until': []}}}),
     'line 1: arguments and filtered_resps are not those of a multiple-choice task'),
    (log(arguments=[1, 2]),
     'line 1: arguments and filtered_resps are not those of a multiple-choice task'),
    (log(filtered_resps=[['inf', 'x'], ['-1', 'x']]),
     'line 1: filtered_resps: a log-likelihood is NaN or +inf; expected numbers'),
    (log(doc_id=[1]), 'line 1: doc_id [1], expected a number'),
    ('', "holds no row; expected rows of the filter 'none'"),
    ('{\n', 'line 1: invalid JSON'),
    ('[1]\n', 'line 1: expected a JSON object, a row of lm-eval --log_samples'),
    (b'\xff\n', 'cannot be read'),
]

# Commands with exit code 2.
USAGE = [
    ("compare", "Missing argument 'RUNS...'"),
    ("restore MODEL --train a --eval b --method magic",
     "Invalid value for '--method': 'magic' is not one of"),
    (ASK + ' --config none.yaml', "'--config': none.yaml: cannot be read as YAML"),
    (ASK + ' --config .', "'--config': .: cannot be read as YAML"),
    ('', 'Usage: calibrant [OPTIONS] COMMAND'),
    ('nonsense', "No such command 'nonsense'."),
    ('evaluate', 'expected MODEL with --questions, or --answers alone'),
    ('evaluate MODEL', 'expected MODEL with --questions, or --answers alone'),
    ('evaluate --questions q.jsonl', 'expected MODEL with --questions, or --answers alone'),
    ('evaluate A B --questions q.jsonl', 'expected MODEL with --questions, or --answers alone'),
    ('evaluate MODEL --questions q.jsonl --answers t.csv',
     'expected MODEL with --questions, or --answers alone'),
    ('evaluate --answers t.csv --limit 3', '--limit goes with MODEL, not with --answers'),
    ('evaluate --answers t.csv --skip-invalid', '--skip-invalid goes with MODEL, not with'),
    ('evaluate --answers t.csv --permutations cyclic',
     '--permutations goes with MODEL, not with --answers'),
    ('evaluate --answers t.csv --server http://x/v1', '--server goes with MODEL, not with'),
    ('evaluate --answers t.csv --prompt cloze', '--prompt goes with MODEL, not with --answers'),
    ('evaluate MODEL --questions q.jsonl --limit 0',
     "Invalid value for '--limit': 0 is not in the range x>=1."),
    ('evaluate MODEL --questions q.jsonl --limit x',
     "Invalid value for '--limit': 'x' is not a valid integer range."),
    ('evaluate MODEL --questions q.jsonl --prompt poem',
     "Invalid value for '--prompt': 'poem' is not one of 'letter', 'chat-letter', "
     "'labels', 'cloze', 'cloze-char', 'cloze-sum', 'cloze-pmi'."),
    ('evaluate MODEL --questions q.jsonl --nonsense',
     "No such option '--nonsense'. (Did you mean one of: '--answers', '--seed'?)"),
    ('evaluate MODEL --questions q.jsonl --dtype int8',
     "Invalid value for '--dtype': 'int8' is not one of 'auto', 'float32', 'bfloat16', "
     "'float16'."),
    ('evaluate MODEL --questions q.jsonl --permutations none',
     "Invalid value for '--permutations': 'none' is not cyclic, all or a number from 1"),
    ('evaluate MODEL --questions q.jsonl --permutations 0',
     "Invalid value for '--permutations': '0' is not cyclic, all or a number from 1"),
    ('evaluate MODEL --questions q.jsonl --debias 2',
     "Invalid value for '--debias': 2.0 is not in the range 0<x<=1."),
    ('evaluate MODEL --questions q.jsonl --debias .5 --permutations all',
     'expected --permutations or --debias, not both'),
    ('evaluate MODEL --questions q.jsonl --concurrency 3', '--concurrency needs --server'),
    ('evaluate MODEL --questions q.jsonl --server http://x/v1 --quantize nf4',
     '--quantize is for a model loaded here, not with --server'),
    ('evaluate MODEL --questions q.jsonl --server http://x/v1 --timeout 0',
     "Invalid value for '--timeout': 0.0 is not in the range x>0."),
    ('evaluate MODEL --questions q.jsonl --shots 0',
     "Invalid value for '--shots': 0 is not in the range x>=1."),
    ('evaluate --answers t.csv --show-prompts 1', '--show-prompts goes with MODEL and --questions'),
    ('evaluate --answers t.csv --lm-eval-metric f1',
     "Invalid value for '--lm-eval-metric': 'f1' is not one of 'acc', 'acc_norm', "
     "'acc_bytes', 'acc_mutual_info'."),
    ('evaluate MODEL --questions q.jsonl --seed x',
     "Invalid value for '--seed': 'x' is not a valid integer range."),
    ('evaluate MODEL --questions q.jsonl --gguf-file',
     "Option '--gguf-file' requires an argument."),
    ('collapse --base a', "Missing option '--aligned'."),
    ('collapse --base none --aligned t.csv',
     'none: holds no answers; to ask it as a model, give --questions'),
    ('collapse --aligned b', "Missing option '--base'."),
    ('diagnose --train a', "Missing option '--test'."),
    ('diagnose --train a --test b --margin 2',
     "Invalid value for '--margin': 2.0 is not in the range 0<x<1."),
    ('restore MODEL --train q.jsonl', "Missing option '--eval'."),
    ('restore --train a --eval b', "Missing argument 'MODEL'."),
    ('restore MODEL --train a --eval b --batch-size 0',
     "Invalid value for '--batch-size': 0 is not in the range x>=1."),
    ('restore MODEL --train a --eval b --lora-rank -1',
     "Invalid value for '--lora-rank': -1 is not in the range x>=0."),
    ('restore MODEL --train a --eval b --overlap ignore',
     "Invalid value for '--overlap': 'ignore' is not one of 'drop', 'error', 'keep'."),
    ('restore MODEL --train a --eval b --strength -1',
     "Invalid value for '--strength': -1.0 is not in the range x>=0."),
    ('predict', "Missing argument 'RUN'."),
    ('predict run', "Missing option '--questions'."),
    ('predict run --questions q.jsonl', "Missing option '--output'."),
    ('predict run --questions q.jsonl --output p.csv --max-risk 1',
     "Invalid value for '--max-risk': 1.0 is not in the range 0<x<1."),
    ('predict run --questions q.jsonl --output p.csv --max-risk x',
     "Invalid value for '--max-risk': 'x' is not a valid float range."),
    ('compare t.csv u.csv --tolerance 2',
     "Invalid value for '--tolerance': 2.0 is not in the range 0<=x<=1."),
    ('compare t.csv u.csv --tolerance nan',
     "Invalid value for '--tolerance': nan is not a finite number."),
    ('evaluate --answers t.csv --seed -1',
     "Invalid value for '--seed': -1 is not in the range 0<=x<=4294967295."),
    ('restore MODEL --train a --eval b --epochs 0',
     "Invalid value for '--epochs': 0.0 is not in the range x>0."),
    ('restore MODEL --train a --eval b --learning-rate inf',
     "Invalid value for '--learning-rate': inf is not a finite number."),
    ('restore MODEL --train a --eval b --calibration-fraction 1',
     "Invalid value for '--calibration-fraction': 1.0 is not in the range 0<x<1."),
    ('evaluate MODEL --questions q.jsonl --permutations ²',
     "Invalid value for '--permutations': '²' is not cyclic, all or a number from 1"),
    ('evaluate --answers t\udcff.csv', "answers 't\\udcff.csv'\": not UTF-8, expected text"),
    ('plan', 'expected --ece-change, --tolerance or both'),
    ('plan --ece-change 0', "Invalid value for '--ece-change': 0.0 is not in the range 0<x<1."),
    ('plan --tolerance 2', "Invalid value for '--tolerance': 2.0 is not in the range 0<x<1."),
    ('plan --tolerance .1 --options 1',
     "Invalid value for '--options': 1 is not in the range x>=2."),
    ('export', "Missing argument 'RUN'."),
    ('export a', "Missing argument 'FOLDER'."),
    ('export a b c', 'Got unexpected extra argument (c)'),
]

# Commands that cannot be carried out; t.csv, u.csv and q.jsonl are good.
VALUES = [
    ("compare a", "a: no such file or folder; expected a run folder, a file of answers"),
    ("compare t.csv", "t.csv: one run alone; expected a second one to compare with it"),
    ('compare t.csv none',
     'none: no such file or folder; expected a run folder, a file of answers, or lm-eval '
     'output'),
    ('compare t.csv u.csv',
     "the two answer tables share no question id (first ids '2' and 'x'); expected tables "
     'of the same questions'),
    ('compare t.csv t.csv --questions none.jsonl --output-dir c',
     't.csv: one run alone; expected a second one'),
    ('compare t.csv u.csv --questions none.jsonl --output-dir c', 'none.jsonl: no such file'),
    ('compare t.csv ./full/../t.csv --questions q.jsonl --output-dir c',
     'q.jsonl: no test set has all its questions there with the same right answers; expected'),
    ('diagnose --train t.csv --test t.csv --questions none.jsonl --output-dir d',
     'none.jsonl: no such file'),
    ('evaluate --answers t.csv full/../t2.csv', "question id '2' is in two answer tables; expected "
     "ids that differ over all tables to be pooled (in a file without ids a row's line is its id)"),
    ('diagnose --train none --test t.csv',
     'none: no such file or folder; expected a run folder, a file of answers, or lm-eval '
     'output'),
    ('collapse --base t.csv --aligned u.csv',
     "the two answer tables share no question id (first ids '2' and 'x'); expected tables "
     'of the same questions'),
    ('plan --tolerance .1 --accuracy .1',
     'accuracy is 0.1 with 4 options, expected at least 2 options and an accuracy between '
     '0.25 and 1'),
    ('plan --ece-change .5', 'ECE is 0.5, expected less than 1 - accuracy, 0.'),
    ('plan --ece-change .2 --ece-before .1',
     'ECE before is 0.1, expected at least the change of 0.2'),
    ('plan --tolerance .1 --answers none',
     'none: no such file or folder; expected a run folder, a file of answers, or lm-eval '
     'output'),
    ('evaluate --answers t.csv --output-dir t.csv', 't.csv: cannot be written'),
    ('evaluate --answers t.csv --output-dir full',
     'full: is not empty and not a run folder; expected a new --output-dir'),
    ('evaluate MODEL --questions q.jsonl --choices a,b',
     'q.jsonl: line 1: choices: ["1", "2"] is of type list, but all questions are to have '
     "the options ['a', 'b']; expected rows without options of their own"),
    ('evaluate MODEL --questions q.jsonl --server localhost',
     "server 'localhost', expected an address as http://localhost:8000/v1"),
    ('evaluate MODEL --questions q.jsonl --server ftp://x/v1',
     "server 'ftp://x/v1', expected an address as http://localhost:8000/v1"),
    ('evaluate MODEL --questions q.jsonl --server http://u:p@x/v1',
     "server 'x': the address holds a name, password or query, which would be written to "
     'the run folder; expected a plain address and the key in an environment variable '
     '(--api-key-env)'),
    ('evaluate MODEL --questions q.jsonl --server http://x/v1 --api-key-env CALIBRANT_NO_SUCH_KEY',
     "environment variable CALIBRANT_NO_SUCH_KEY is not set; expected the server's key in "
     'it'),
    ('evaluate MODEL --questions q.jsonl --few-shot none.jsonl',
     'none.jsonl: no such file, and not a Hub data set id either (owner/name:split); '
     'expected questions as .jsonl, .jsonl.gz, .csv, .csv.gz, .parquet'),
]

# Configuration files, exit code 2.
CONFIGS = [
    ('', "Invalid value for '--config': c.yaml: expected a mapping of option names to values"),
    (': :', "Invalid value for '--config': c.yaml: cannot be read as YAML"),
    ('- a\n', "Invalid value for '--config': c.yaml: expected a mapping of option names to values"),
    ('42', "Invalid value for '--config': c.yaml: expected a mapping of option names to values"),
    ('nonsense: 1\n', "Invalid value for '--config': c.yaml: unknown key 'nonsense'"),
    ('limit: x\n', "Invalid value for '--limit': 'x' is not a valid integer range."),
    ('prompt: poem\n',
     "Invalid value for '--prompt': 'poem' is not one of 'letter', 'chat-letter', "
     "'labels', 'cloze', 'cloze-char', 'cloze-sum', 'cloze-pmi'."),
    ('few-shot: [a, b]\n',
     "Invalid value for '--config': c.yaml: few-shot is ['a', 'b'], expected one value"),
    ('device: [a]\n', "Invalid value for '--config': c.yaml: device is ['a'], expected one value"),
    ('skip-invalid: 3\n',
     "Invalid value for '--config': c.yaml: skip-invalid is 3, expected true or false"),
    ('limit: -1\n', "Invalid value for '--limit': -1 is not in the range x>=1."),
    ('{', "Invalid value for '--config': c.yaml: cannot be read as YAML"),
    ('questions: q.jsonl\nlimit: 3.5\n',
     "Invalid value for '--config': c.yaml: limit is 3.5, expected a whole number"),
    ('command: evaluate\nsettings: 3\n',
     "Invalid value for '--config': c.yaml: unknown key 'command'"),
    ('command: restore\nsettings: {model: x}\n',
     "Invalid value for '--config': c.yaml: unknown key 'command'"),
    ("'\x00'", "Invalid value for '--config': c.yaml: cannot be read as YAML"),
    ("!!python/object/apply:os.system ['touch pwned']\n",
     "Invalid value for '--config': c.yaml: cannot be read as YAML"),
    ('dtype: 3\n',
     "Invalid value for '--dtype': 3 is not one of 'auto', 'float32', 'bfloat16', "
     "'float16'."),
    ('seed: null\nseed: x\n', "Invalid value for '--seed': 'x' is not a valid integer range."),
    (b'\xff', "Invalid value for '--config': c.yaml: cannot be read as YAML"),
    # Found by fuzzing, and by hand beside it.
    ('limit: ' + '[' * 1200, 'cannot be read as YAML: is nested more than 50 deep'),
    ('- ' * 3000, 'cannot be read as YAML: is nested more than 50 deep'),
    ('limit: &a [*a]\n', 'cannot be read as YAML: holds an alias (*name), expected the value'),
    (LAUGHS, 'cannot be read as YAML: holds an alias (*name), expected the value itself'),
    ('# ' + 'x' * (1 << 20), 'cannot be read as YAML: is larger than a megabyte'),
    ('limit: ' + '9' * 5000, 'cannot be read as YAML: ValueError: Exceeds the limit (4300'),
    ('seed: 0x' + 'f' * 5000, 'cannot be read as YAML: ValueError: Exceeds the limit (4300'),
    ('limit: 2026-13-32', 'cannot be read as YAML: ValueError: month must be in 1..12'),
    ('limit: 2026-11-26', "Invalid value for '--limit': '2026-11-26' is not a valid integer range"),
    ('limit: !!int x', 'cannot be read as YAML: ValueError: invalid literal for int()'),
    ("limit: !!int ''", 'cannot be read as YAML: IndexError: string index out of range'),
    ('limit: !!timestamp x', 'cannot be read as YAML: AttributeError'),
    ('limit: !!bool x', "cannot be read as YAML: KeyError: 'x'"),
    ('limit: ' + '1:' * 2000 + '1.0', 'cannot be read as YAML: OverflowError: int too large'),
    ('limit: !!set {a}', "Invalid value for '--limit': \"{'a'}\" is not a valid integer range."),
    ('device: "\\ud800"', 'cannot be read as YAML: UnicodeEncodeError'),
    ('choices: [yes, no]',
     "Invalid value for '--choices': [True, False], expected label words; in YAML, words such as"),
    ('choices: 3', "Invalid value for '--choices': 3, expected label words; in YAML, words such"),
    ('permutations: ²', "Invalid value for '--permutations': '²' is not cyclic, all or a number"),
    ('debias: .nan', "Invalid value for '--debias': nan is not a finite number."),
    ('seed: -1', "Invalid value for '--seed': -1 is not in the range 0<=x<=4294967295."),
]

# The prompt in such a file, exit code 1.
PROMPTS = [
    ('[letter]', "prompt ['letter'], expected a Prompt or the name of a format"),
    ('{format: letter, shots: x}', "prompt shots 'x', expected a whole number"),
    ('{format: letter, separator: 3}', "prompt separator 3, expected text"),
    ('{format: letter, examples: 3}', "prompt examples: 'int' object is not iterable; expected"),
    ('{format: letter, examples: [3]}', "argument after ** must be a mapping, not int; expected"),
    ('{format: letter, examples: [{a: 1}]}', "got an unexpected keyword argument 'a'; expected"),
]

# Arguments after "predict run", files, message.
P = "--questions q.jsonl --output p.csv"
RUNS = [
    (P, {}, "run: no such folder; expected one that calibrant restore made"),
    (P, {"run/x": ""}, "run: holds 0 restored models (none); expected exactly one"),
    (P, {"run/a/restored.json": "{}", "run/b/restored.json": "{}"},
     "run: holds 2 restored models (run/a, run/b); expected exactly one"),
    (P, {"run/restored.json": "{"}, "run/restored.json: cannot be read as JSON"),
    (P, {"run/restored.json": b"\xff"}, "run/restored.json: cannot be read as JSON"),
    (P, {"run/restored.json": '{"a":' * 3000}, "run/restored.json: cannot be read as JSON"),
    (P, {"run/restored.json": "[]"}, "run/restored.json: is no JSON object"),
    (P, {"run/restored.json": "null"}, "run/restored.json: is no JSON object"),
    (P, {"run/restored.json": "{}"}, "run/restored.json: lacks ['dtype', 'gguf_file', 'method',"),
    (P, restored(dtype=...), "run/restored.json: lacks ['dtype']; expected a restored.json of"),
    (P, restored(model=3), "run/restored.json: model 3, expected a restored.json of calibrant"),
    (P, restored(prompt=None), "run/restored.json: prompt None, expected a restored.json"),
    (P, restored(dtype=["x"]), "run/restored.json: dtype ['x'], expected a restored.json"),
    (P, restored(prompt={"format": "letter", "examples": 3}),
     "run/restored.json: prompt examples: 'int' object is not iterable; expected answered"),
    (P, {"run/restored.json": "[" * 100_000}, "run/restored.json: cannot be read as JSON"),
    (P, restored(prompt="poem"), "run/restored.json: prompt format 'poem', expected one of letter"),
    (P, restored(prompt={"format": "letter", "verse": 1}),
     "run/restored.json: prompt: unknown 'verse', expected of"),
    ("--questions q.jsonl --output p.xlsx", restored(),
     "p.xlsx: unknown file type; expected one of .csv, .jsonl, .parquet"),
    ("--questions q.jsonl --output no/p.csv", restored(),
     "no/p.csv: no is no folder that can be written to"),
    ("--questions q.jsonl --output run", restored(), "run: unknown file type; expected one of"),
    ("--questions none.jsonl --output p.csv", restored(), "none.jsonl: no such file"),
    (P + " --max-risk .1", restored(), "report.json: cannot be read as JSON"),
    (P + " --max-risk .1", restored() | {"report.json": '{"sets": {"t": "in"}}'},
     "run/answers/t.parquet: no such file, expected an answer table"),
    (P + " --max-risk .1", restored() | {"report.json": '{"sets": {}}'},
     "report.json: names no test set of the domain; expected the report of the run"),
    (P + " --max-risk .1", restored() | {"report.json": "[]"},
     "report.json: names no test set of the domain; expected the report of the run"),
]

# Content of calibrator.json; the message after "run/calibrator.json: ".
CALIBRATORS = [
    ("{", "cannot be read as JSON"),
    (b"\xff", "cannot be read as JSON"),
    ('{"kind":' * 2000, "cannot be read as JSON"),
    ("[]", "kind None, expected one of temperature, expectation-consistency, vector, dirichlet,"),
    ("null", "kind None, expected one of temperature,"),
    ("{}", "kind None, expected one of temperature,"),
    (scaling(kind="magic"), "kind 'magic', expected one of temperature, expectation-consistency,"),
    (scaling(kind=None), "kind None, expected one of temperature,"),
    (scaling(kind=["temperature"]), "kind ['temperature'], expected one of temperature,"),
    (scaling(format_version=2), "calibrator format 2, this version reads up to 1; upgrade"),
    (scaling(format_version="1"), "calibrator format '1', this version reads up to 1; upgrade"),
    (scaling(temperature=0), "temperature 0, expected a finite number above 0"),
    (scaling(temperature=-1), "temperature -1, expected a finite number above 0"),
    (scaling(temperature="2"), "temperature '2', expected a number"),
    (scaling(temperature=None), "temperature None, expected a number"),
    (scaling(temperature=True), "temperature True, expected a number"),
    (scaling(temperature=float("nan")), "temperature nan, expected a finite number above 0"),
    (scaling(temperature=float("inf")), "temperature inf, expected a finite number above 0"),
    (scaling(temperature=10**400), "temperature 1000000000"),
    (scaling(kind="isotonic", thresholds=[10**400]), "thresholds [1000000000"),
    (scaling(n_questions=0), "n_questions 0, expected a positive whole number"),
    (scaling(n_questions=1.5), "n_questions 1.5, expected a positive whole number"),
    (scaling(kind="vector"), "l2 None, expected a number"),
    (scaling(kind="isotonic"), "thresholds None, expected finite numbers of shape (any,)"),
    (scaling(kind="isotonic", thresholds=["x"]), "thresholds ['x'], expected finite numbers of"),
    (scaling(kind="dirichlet"), "l2 None, expected a number"),
    (scaling(kind="pride"), "prior None, expected named numbers"),
    (scaling(kind="vector", l2=1, bias=[0.5] * 100_000),
     "bias of 100000 options, expected 2 to 1,000"),
    (scaling(kind="pride", prior={"9" * 5000: [0.5]}),
     "99999999"),
    (scaling(kind="scaling-binning"), "n_bins None, expected a positive whole number"),
]
