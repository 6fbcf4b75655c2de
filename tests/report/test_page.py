"""The page: what it says, that untrusted text stays text, and how large it is."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import EVIL, UNSEEN, evil_questions, evil_table, made_up, open_folder, restoration

from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.diagnosis.collapse import collapse
from calibrant.diagnosis.report import evaluate
from calibrant.metrics import risk_coverage_from_confidence
from calibrant.questions import Question
from calibrant.report import Table, prepare_confidence, reliability_of_report
from calibrant.report.collapse import write_collapse
from calibrant.report.drawings import draw_confidence, draw_plane, draw_reliability, prepare_risk
from calibrant.report.figures import PlanePoint, plot_plane, prepare_plane, svg_text
from calibrant.report.folder import write_evaluation, write_restoration
from calibrant.report.page import Claim, Page, Section, page_text, shown, worst_mistakes
from calibrant.report.svg import _thinned, of_figure


class Reader(HTMLParser):
    """Elements and texts of a page, as a browser would take them apart."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open, self.unclosed = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    """Page of answers whose names, subjects, questions and options are all hostile."""
    folder = open_folder(tmp_path_factory.mktemp("evil"))
    table = evil_table()
    write_evaluation(
        folder,
        evaluate(table, n_resamples=50),
        title=EVIL,
        answers=table,
        questions=evil_questions(),
    )
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_verdict_comes_first_and_every_part_is_there(tmp_path):
    table = made_up(400, power=2.5)
    report = evaluate(table, n_resamples=100)
    write_evaluation(open_folder(tmp_path), report, title="m, letter, arc", answers=table)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Reader(text)
    seen = " ".join(page.texts)
    assert report.finding().label == "over-confident"
    assert seen.index("Over-confident") < seen.index("Confidence against truth")
    for part in ("Options, one by one", "Subjects", "Most confident mistakes", "All numbers",
                 "How this was made"):  # fmt: skip
        assert part in seen
    assert not page.unclosed
    assert not page.open
    headings = [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert {svg["aria-labelledby"], svg["aria-describedby"]} <= set(ids)
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))


def test_the_page_asks_for_nothing_outside_itself(evil_page):
    page = Reader(evil_page)
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        href = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert href.startswith(("#", "data:text/csv")), href
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "@import" not in evil_page
    assert not re.search(r"url\((?!#)", evil_page)


def test_hostile_text_stays_text(evil_page):
    page = Reader(evil_page)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not page.all("b")[0].get("id")
    assert not page.unclosed
    seen = " ".join(page.texts)
    assert "<script>alert(1)</script>" in seen
    assert "\u202e" not in evil_page
    assert "\x1b" not in evil_page
    assert "\x00" not in evil_page
    assert "⟨U+202E⟩" in seen  # an override in a question is shown, not obeyed
    for c in UNSEEN:
        assert c not in evil_page
        assert f"⟨U+{ord(c):04X}⟩" in seen
    assert "مرحبا" in seen
    assert "x" * 1000 not in evil_page
    assert "(10,000 characters)" in seen


def test_hostile_text_stays_text_in_markdown(tmp_path):
    """Names come from files and folders: no HTML, link, image or table cell is made of them."""
    table, name = evil_table(), f"{EVIL}![i](http://x) `c` *d*"
    report = evaluate(table, n_resamples=20)
    folders = [open_folder(tmp_path / x) for x in "erc" if not (tmp_path / x).mkdir()]
    write_evaluation(folders[0], report, title=name, answers=table)
    write_restoration(
        folders[1], title=name, tables={name: {name: table}}, reports={name: {name: report}},
        verdicts={}, domains={name: "in"}, costs={name: {}}, questions={}, notes=(name,),
    )  # fmt: skip
    stages = {name: collapse(None, table, n_resamples=20)}
    write_collapse(folders[2], tables={name: table}, reports=stages)
    for folder in folders:
        text = (folder / "report.md").read_text(encoding="utf-8")
        assert "\\<script\\>" in text
        assert not re.search(r"(?<!\\)[<>`]", text)
        assert not re.search(r"(?<!\\)\[i", text)
        assert "\u202e" not in text
        assert "\x1b" not in text


def test_a_script_cannot_be_smuggled_through_a_name():
    name = '</script><script>alert(1)</script>"onload="x'
    page = Page(name, name, (Claim(name, name, name),), (Section("a", (name,)),), (name,))
    read = Reader(page_text(page))
    assert len(read.all("script")) == 1
    assert not read.unclosed
    assert " ".join(read.texts).count(name) >= 6


@pytest.mark.parametrize(
    ("cell", "safe"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("\t=1+1", "'=1+1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("\uff0b1\uff0d1", "'\uff0b1\uff0d1"),
        ("\uff0dA1", "'\uff0dA1"),
        ("\uff20A1", "'\uff20A1"),
        ("-0.25", "-0.25"),
        ("a,b", '"a,b"'),
        ('say "a"\nb', '"say ""a"" b"'),
    ],
)
def test_csv_has_no_formulas_and_no_broken_rows(cell, safe):
    text = Table(("name", "x"), ((cell, "1"),)).to_csv()
    assert text == f"name,x\n{safe},1\n"


def test_long_and_hidden_text_is_shown_as_what_it_is():
    assert shown("y" * 10_000, 40) == "y" * 20 + " … " + "y" * 20 + " (10,000 characters)"
    assert shown("tab\tand\nline", 40) == "tab\tand\nline"
    assert shown("\ud800\x07", 40) == "⟨U+D800⟩⟨U+0007⟩"
    assert shown(UNSEEN, 40) == "".join(f"⟨U+{ord(c):04X}⟩" for c in UNSEEN)
    assert shown("می\u200cخواهم 👩\u200d⚕", 40) == "می\u200cخواهم 👩\u200d⚕"


def test_the_most_confident_mistakes_are_found_with_their_questions():
    probs = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.99, 0.01]]
    before = AnswerTable.from_probs(probs, [1, 0, 1, 0], ids=list("abcd"))
    after = AnswerTable.from_probs([[0.5, 0.5]] * 4, [1, 0, 1, 0], ids=list("dcba")[::-1])
    questions = {
        i: Question(i, f"which {i}?", ("yes", "no"), k)
        for i, k in zip("abcd", [1, 0, 1, 0], strict=True)
    }
    found = worst_mistakes({"before": before, "after": after}, questions, most=2)
    assert [(m.id, m.question, m.label, m.predicted) for m in found] == [
        ("a", "which a?", 1, 0),
        ("b", "which b?", 0, 1),
    ]
    assert found[0].probabilities["before"] == pytest.approx([0.9, 0.1])
    assert found[0].probabilities["after"] == pytest.approx([0.5, 0.5])
    assert worst_mistakes({"before": before}, None) == ()


def heights(svg, fill):
    return [float(h) for h in re.findall(rf'height="([\d.]+)" fill="{fill}"', svg)]


def test_bars_and_marks_are_where_the_numbers_are():
    table = AnswerTable.from_probs([[0.95, 0.05]] * 40 + [[0.55, 0.45]] * 10, [0] * 40 + [1] * 10)
    data = reliability_of_report(evaluate(table, n_resamples=20))
    picture = draw_reliability(data, None, name="r", most=int(data.count.max()))
    grey, pale = heights(picture.svg, "#8c8c8c"), heights(picture.svg, "#cfe3f0")
    assert grey[1] / grey[0] == pytest.approx(4, abs=0.1)  # 40 questions beside 10
    assert len(pale) == 1  # none of the ten is right: a bar of height 0
    assert pale[0] == pytest.approx(
        340 - 46 - 12, abs=0.1
    )  # all of the forty are: the whole height
    assert picture.data.rows[9][1:4] == ("40", "0.95", "1")
    histogram = prepare_confidence(table.confidence, table.correct)
    up_down = draw_confidence(histogram, name="c", most=(40, 10))
    (blue,), (hatched,) = heights(up_down.svg, "#0072B2"), heights(up_down.svg, r"url\(#c-hatch\)")
    assert blue / hatched == pytest.approx(4, abs=0.1)


def test_the_plane_shows_the_regimes():
    points = [PlanePoint("before", 0.6, 0.3), PlanePoint("cft", 0.7, 0.05)]
    picture = draw_plane(
        points, name="p", title="t", tolerance=0.03, critical=(0.72, 0.8),
        trained=[PlanePoint("cft", 0.95, 0.1)],
    )  # fmt: skip
    for words in ("calibratable", "non-calibratable", "open: training questions"):
        assert words in picture.svg
    assert picture.data.rows[2][:2] == ("cft", "training")


def test_risk_coverage_is_the_share_of_wrong_answers_from_each_confidence_on():
    rng = np.random.default_rng(0)
    confidence = np.round(rng.random(300), 2)  # with ties
    correct = rng.random(300) < confidence
    curve = risk_coverage_from_confidence(confidence, correct)
    for coverage, risk, threshold in zip(*curve, strict=True):
        given = confidence >= threshold
        assert coverage == pytest.approx(given.mean())
        assert risk == pytest.approx(1 - correct[given].mean())
    thin = prepare_risk(confidence, correct)
    assert thin.coverage[-1] == 1
    assert thin.risk[-1] == pytest.approx(1 - correct.mean())
    assert len(thin.coverage) <= 100


def test_a_page_of_100_000_questions_is_small(tmp_path):
    table = made_up(100_000, power=2.0)
    report = evaluate(table, n_resamples=20)
    write_evaluation(open_folder(tmp_path), report, title="large", answers=table)
    assert (tmp_path / "report.html").stat().st_size < 300_000


@pytest.mark.slow
def test_a_page_of_all_methods_is_under_a_megabyte(tmp_path):
    """`--method all`: 17 methods, 5 test sets and the training questions, 800 of each."""
    assert restoration(tmp_path, methods=17, sets=5, n=800).stat().st_size < 1_000_000


def test_of_many_methods_the_first_and_the_best_are_drawn_and_all_are_in_the_tables(tmp_path):
    text = restoration(tmp_path, methods=7, sets=4, n=150).read_text(encoding="utf-8")
    drawn = re.findall(r"Reliability diagram of ([^<]+)<", text)
    # A method's sharpness falls with its number: the last ones are nearest to the truth.
    best = ["before", *(f"method-{i} (2,000 labels)" for i in (4, 5, 6))]
    assert drawn == best * 4
    assert "Drawn are the first method and those with the lowest NLL" in text
    numbers = text[text.index('<h2 id="all-numbers"') :]
    for i in range(1, 7):
        assert numbers.count(f'<th scope="col">method-{i} (2,000 labels)</th>') >= 4
    few = restoration(tmp_path, methods=3, sets=2, n=60).read_text(encoding="utf-8")
    assert len(re.findall(r"Reliability diagram of", few)) == 6
    assert "Drawn are the first method" not in few


def test_a_thinned_line_stays_where_it_was():
    x = np.linspace(0, 300, 400)
    y = 100 + 80 * np.sin(x / 40) + np.where(x > 150, 20, 0)
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    kept = _thinned(points)
    assert len(kept) < 100
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert np.abs(np.interp(x, *np.array(kept).T) - y).max() < 0.2


def test_a_comparison_shows_both_runs_and_their_mistakes(tmp_path, capsys):
    questions = evil_questions()
    before, after = evil_table(), evil_table(power=0.5)
    for name, table in (("before", before), ("after", after)):
        (tmp_path / name).mkdir()
        table.save(tmp_path / name / "answers.parquet")
    file = tmp_path / "questions.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"id": q.id, "question": q.question, "choices": list(q.choices), "answer": q.answer}
        for q in questions
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    arguments = ["compare", str(tmp_path / "before"), str(tmp_path / "after"), "--questions",
                 str(file), "--output-dir", str(tmp_path / "run")]  # fmt: skip
    assert run(arguments) == 0
    assert "report.html" in capsys.readouterr().out
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    page = Reader(text)
    assert not page.unclosed
    assert "mistakes" in [a.get("class") for a in page.all("ol")]
    assert len([a for a in page.all("svg") if "reliability" in a["aria-labelledby"]]) == 2
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["settings"]["questions"] == [str(file)]


def test_answers_get_the_texts_of_their_own_questions_only(tmp_path, capsys):
    made_up(50).save(tmp_path / "answers.parquet")
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "0", "question": "q", "choices": ["a", "b"], "answer": 0}\n')
    arguments = ["evaluate", "--answers", str(tmp_path / "answers.parquet"), "--questions",
                 str(other)]  # fmt: skip
    assert run(arguments) == 1
    assert "expected the file they were asked from" in capsys.readouterr().err


def test_files_of_the_page_are_installed_with_the_package():
    folder = Path(__file__).parents[2] / "src" / "calibrant" / "report"
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"report/page.*"' in text
    assert {p.name for p in folder.glob("page.*")} == {
        "page.css", "page.html.j2", "page.js", "page.py",
    }  # fmt: skip


def test_a_matplotlib_figure_joins_the_page_under_its_policy():
    figure = plot_plane(prepare_plane([PlanePoint("a <b>", 0.6, 0.3), PlanePoint("c", 0.7, 0.1)]))
    first, second = (
        of_figure(key, svg_text(figure), title="<script>", description="d")
        for key in ("one", "two")
    )
    page = Reader(first + second)
    assert not page.unclosed
    assert not page.all("style")
    assert not page.all("script")
    assert not [a for _, a in page.elements if "style" in a]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([\w.-]+)', first)
    assert used
    assert set(used) <= set(ids)
    assert 'stroke="#0072b2"' in first
