"""The page in a real browser: it loads alone, sorts, saves, turns dark, prints, can be reached."""

import io
import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import SIZES, start
from pages import EVIL, evil_questions, evil_table, made_up, open_folder, restoration

from calibrant.diagnosis.report import evaluate
from calibrant.diagnosis.verdict import verdict
from calibrant.report.figures import SERIES
from calibrant.report.folder import write_comparison, write_evaluation
from calibrant.report.sections import Measured
from calibrant.report.tables import difference_table


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = start(tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("saved"))
    yield one
    one.driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A comparison of hostile answers, before and after."""
    before, after = evil_table(), evil_table(power=0.5)
    runs = {"set": {EVIL: Measured(before, evaluate(before, n_resamples=50)),
                    "after": Measured(after, evaluate(after, n_resamples=50))}}  # fmt: skip
    judged = verdict(before, after, n_resamples=50)
    folder = open_folder(tmp_path_factory.mktemp("page"))
    write_comparison(
        folder,
        runs,
        {"set": {"after": judged}},
        [difference_table(judged, name=EVIL, before=EVIL, after="after")],
        title=EVIL,
        questions={"set": evil_questions()},
        tolerance=0.03,
    )
    return folder / "report.html"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A report of ordinary answers with twelve subjects."""
    folder = open_folder(tmp_path_factory.mktemp("plain"))
    table = made_up(600, power=2)
    write_evaluation(folder, evaluate(table, n_resamples=50), title="plain", answers=table)
    return folder / "report.html"


def test_a_browser_that_does_not_start_is_skipped_with_the_reason(tmp_path, monkeypatch):
    pytest.importorskip("selenium")
    monkeypatch.setattr("browser.CHROMIUM", "/bin/false")
    monkeypatch.setattr("browser.DRIVER", "/bin/false")
    with pytest.raises(pytest.skip.Exception, match=r"chromium does not start here: .*exited"):
        start(tmp_path, tmp_path)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dark", [False, True])
def test_it_loads_alone_and_fits_the_screen(browser, page, size, dark, tmp_path):
    browser.open(page, size, dark)
    assert browser.problems() == []
    assert browser.requests() == [page.as_uri()]
    wide = browser.run("return document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 150) == dark
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"


def test_hostile_text_runs_nothing(browser, page):
    browser.open(page)
    assert browser.run("return document.querySelectorAll('img, iframe, [onload], #x').length") == 0
    assert browser.run("return document.scripts.length") == 1
    assert browser.run("return document.body.innerText.includes('<script>alert(1)')")
    # The policy holds even if some text got through.
    browser.run("const s = document.createElement('script'); s.textContent = 'window.owned = 1';"
                "document.body.append(s)")  # fmt: skip
    assert browser.run("return window.owned === undefined")
    assert "Content Security Policy" in browser.problems()[0]


def column(browser, heading):
    return browser.run(
        """const table = [...document.querySelectorAll('table[data-sortable]')]
             .find(t => t.tHead.textContent.includes('subject'));
           const k = [...table.tHead.rows[0].cells]
             .findIndex(h => h.innerText.includes(arguments[0]));
           return [...table.tBodies[0].rows].map(r => r.cells[k].textContent.trim())""",
        heading,
    )


def press(browser, heading, how):
    from selenium.webdriver.common.keys import Keys

    button = browser.run(
        """return [...document.querySelectorAll('th button')]
             .find(b => b.textContent.trim() === arguments[0]
                   && b.closest('table').tHead.textContent.includes('subject'))""",
        heading,
    )
    if how == "click":
        browser.run("arguments[0].click()", button)
    else:
        button.send_keys(Keys.ENTER)
    return browser.run("return arguments[0].closest('th').getAttribute('aria-sort')", button)


@pytest.mark.parametrize("how", ["click", "keyboard"])
def test_tables_sort_by_number_and_by_name(browser, plain, how):
    browser.open(plain)
    numbers = [float(x) for x in column(browser, "conf-ECE")]
    assert numbers != sorted(numbers)
    assert press(browser, "conf-ECE", how) == "ascending"
    assert [float(x) for x in column(browser, "conf-ECE")] == sorted(numbers)
    assert press(browser, "conf-ECE", how) == "descending"
    assert [float(x) for x in column(browser, "conf-ECE")] == sorted(numbers)[::-1]
    assert press(browser, "subject", how) == "ascending"
    assert column(browser, "subject") == [f"subject {i}" for i in range(12)]
    assert browser.run("return document.querySelectorAll('[aria-sort]').length") == 1
    assert browser.problems() == []


def test_the_theme_can_be_turned(browser, plain):
    browser.open(plain)
    colour = "return getComputedStyle(document.querySelector('svg [fill=\"#0072B2\"]')).fill"
    light = browser.run(colour)
    assert light == "rgb(0, 114, 178)"
    browser.run("document.querySelector('.toggle').click()")
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    assert browser.run(colour) != light
    assert browser.run("return document.querySelector('.toggle').ariaLabel") == "Use light colours"
    browser.run("document.querySelector('.toggle').click()")
    assert browser.run(colour) == light


def test_a_figure_is_saved_as_svg_that_stands_alone_and_its_data_as_csv(browser, page, plain):
    browser.open(plain)
    tools = "document.querySelector('.tools[data-name=reliability-1-plain]')"
    browser.run(f"{tools}.querySelector('button').click()")
    browser.run(f"{tools}.querySelector('a').click()")
    svg = ElementTree.fromstring(browser.saved("reliability-1-plain.svg"))
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.find("{http://www.w3.org/2000/svg}title").text == "Reliability diagram"
    assert "var(" not in ElementTree.tostring(svg, encoding="unicode")
    lines = browser.saved("reliability-1-plain.csv").splitlines()
    assert lines[0] == "confidence,questions,mean confidence,accuracy,95 % low,95 % high"
    assert sum(int(line.split(",")[1]) for line in lines[1:]) == 600
    assert browser.requests()[0] == plain.as_uri()
    assert {u.split(":")[0] for u in browser.requests()} <= {"data", "blob"}

    browser.open(page)
    browser.run("document.querySelector('.tools[data-name^=risk] a').click()")
    rows = browser.saved("risk-1-set.csv").splitlines()
    assert rows[1].startswith("\"'=<script>") or rows[1].startswith("'=<script>")


def test_every_control_is_reached_by_the_keyboard_and_has_a_name(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    controls = browser.run("return document.querySelectorAll('a, button, summary').length")
    reached = set()
    for _ in range(controls + 60):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        found = browser.run(
            """const a = document.activeElement;
               if (a === document.body) return null;
               const all = [...document.querySelectorAll('a, button, summary')];
               return [all.indexOf(a), getComputedStyle(a).outlineStyle]"""
        )
        if found is None:
            break
        index, outline = found
        assert outline != "none"
        reached.add(index)
    assert reached >= set(range(controls))
    tree = browser.command("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "link", "image", "table", "region", "heading"}
    nodes = [n for n in tree if n.get("role", {}).get("value") in named and not n.get("ignored")]
    # A table inside a named region needs no caption of its own.
    nameless = [n for n in nodes if not n.get("name", {}).get("value")
                and n["role"]["value"] != "table"]  # fmt: skip
    assert not nameless
    assert len([n for n in nodes if n["role"]["value"] == "image"]) >= 10


def test_it_prints_in_light_colours_without_controls(browser, plain, tmp_path):
    browser.open(plain, dark=True)
    browser.command("Emulation.setEmulatedMedia", media="print",
                    features=[{"name": "prefers-color-scheme", "value": "dark"}])  # fmt: skip
    paper = browser.run(
        "return getComputedStyle(document.documentElement).getPropertyValue('--paper')"
    )
    assert paper.strip() == "#ffffff"
    hidden = browser.run("return getComputedStyle(document.querySelector('.tools')).display")
    assert hidden == "none"
    browser.pdf(tmp_path / "page.pdf")
    text = (tmp_path / "page.pdf").read_bytes()
    assert text.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", text)) <= 12
    assert io.BytesIO(text).getbuffer().nbytes > 20_000


# Ratios of WCAG 2.2: 4.5 for text, 3 for large or bold text and for what must be told apart.
CONTRAST = """
const channel = c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
const parts = colour => colour.match(/[\\d.]+/g).map(Number);
const ground = e => {
  for (; e; e = e.parentElement) {
    const [r, g, b, a = 1] = parts(getComputedStyle(e).backgroundColor);
    if (a == 1) return [r, g, b];
  }
  return [255, 255, 255];
};
const low = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
  const drawn = e.ownerSVGElement;
  if (!own || !e.checkVisibility() || (drawn && e.tagName != 'text')) continue;
  const style = getComputedStyle(e), colour = parts(drawn ? style.fill : style.color);
  const [x, y] = [light(colour), light(ground(drawn || e))].sort((a, b) => b - a);
  const ratio = (x + .05) / (y + .05);
  if (ratio < 4.5) low.push([e.tagName, e.textContent.slice(0, 40), ratio]);
}
return low;
"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_stands_out_from_what_it_is_on(browser, page, plain, tmp_path, dark):
    for path in (page, plain, restoration(tmp_path, methods=3, sets=1, n=80)):
        browser.open(path, dark=dark)
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.run(CONTRAST) == []


def luminance(colour):
    linear = linear_of(colour)
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear)


def linear_of(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira and Fernandes 2009, severity 1; on linear RGB.
SEEN_BY = {
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                  [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                    [-0.011820, 0.042940, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                  [0.004733, 0.691367, 0.303900]],
    "most people": np.eye(3),
}  # fmt: skip


def apart(a, b, eyes):
    """CIE 1976 colour difference as these eyes see it; about 2 can just be noticed."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
              [0.0193339, 0.1191920, 0.9503041]]  # fmt: skip
    lab = []
    for colour in (a, b):
        seen = np.clip(np.array(SEEN_BY[eyes]) @ linear_of(colour), 0, 1)
        white = np.array(to_xyz) @ seen / [0.95047, 1, 1.08883]
        f = np.where(white > 216 / 24389, np.cbrt(white), (24389 / 27 * white + 16) / 116)
        lab.append(np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]))
    return float(np.linalg.norm(lab[0] - lab[1]))


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_colours_of_the_page_are_told_apart(browser, plain, eyes):
    """What one figure has side by side: right and wrong, methods in a row, good and bad."""
    for a, b in itertools.combinations([colour for colour, _ in SERIES], 2):
        assert apart(a, b, eyes) > 10, (a, b)
    assert len({mark for _, mark in SERIES}) == len(SERIES)  # and nobody needs the colour
    for dark in (False, True):
        browser.open(plain, dark=dark)
        style = "getComputedStyle(document.documentElement).getPropertyValue('--' + arguments[0])"
        names = ("paper", "ink", "blue", "vermilion", "green", "bar", "grey")
        seen = {name: browser.run(f"return {style}", name).strip() for name in names}
        for a, b in (
            ("blue", "vermilion"),
            ("green", "vermilion"),
            ("blue", "ink"),
            ("bar", "blue"),
        ):
            assert apart(seen[a], seen[b], eyes) > 20, (a, b, dark)
        for name in ("blue", "vermilion", "green", "bar", "grey"):
            x, y = sorted((luminance(seen[name]), luminance(seen["paper"])), reverse=True)
            assert (x + 0.05) / (y + 0.05) >= 3, (name, dark)


@pytest.mark.parametrize("methods", [4, 8, 17])
def test_nothing_is_cut_off_or_folded_in_print(browser, tmp_path, methods):
    """All claims are on paper, and no table is wider than A4 within its margins."""
    path = restoration(tmp_path, methods=methods, sets=3, n=120)
    browser.open(path)
    browser.command("Emulation.setDeviceMetricsOverride", width=718, height=1000,
                    deviceScaleFactor=1, mobile=False)  # fmt: skip
    browser.command("Emulation.setEmulatedMedia", media="print")
    heights = browser.run(
        "return [...document.querySelectorAll('.claim')].map(c => c.getBoundingClientRect().height)"
    )
    assert len(heights) == 3 * (methods - 1)
    assert min(heights) > 20
    wide = browser.run(
        """return [...document.querySelectorAll('table')].filter(t => t.checkVisibility())
             .map(t => t.getBoundingClientRect()).filter(r => r.right > innerWidth + 0.5)
             .map(r => r.right)"""
    )
    assert wide == []
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = browser.run(folded)
    browser.command("Emulation.setEmulatedMedia", media="")
    browser.pdf(tmp_path / "page.pdf")
    assert before > 0
    assert browser.run(folded) == before
