"""The report: what it says, what it refuses, and how it behaves in a real browser, offline."""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geffect import api
from geffect.config import InspectConfig, ReportConfig
from geffect.errors import UNSEEN, GeffectError
from geffect.record.reader import read_environment, read_lines
from geffect.record.schema import CONFIG, ENVIRONMENT
from geffect.reports import page as page_module
from geffect.reports.colored import Scale, contrast, ink_on, layer_maps, token_texts
from geffect.reports.context import cautions, facts, with_texts
from geffect.reports.outcome import outcome, worst_examples
from geffect.reports.page import MARK
from geffect.reports.price import cheapest_harm, price, price_by_part
from tests.conftest import Command, config

WIDTHS = {"desktop": (1280, 800), "phone": (375, 740)}


@pytest.fixture(scope="module")
def runs(known: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve steps with a prediction, without and with GRU; the first set's name is not a kind one."""
    path = tmp_path_factory.mktemp("reported")
    evil = path / "<script>alert(1)</script>.json"
    evil.parent.mkdir(parents=True)
    evil.write_text(json.dumps([{"question": f"<b>Q{i}</b>?", "answer": "<img src=x>"} for i in range(8)]))
    settings: dict[str, Any] = {"steps": 12, "evaluate_every": 4, "save_every": 12, "prediction": 4}
    return [
        api.unlearn(config(known, path / "GA", forget=str(evil), **settings)).path,
        api.unlearn(config(known, path / "GA+GRU", rectifier="gru", **settings)).path,
    ]


@pytest.fixture(scope="module")
def inspected(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second run's checkpoints with effects on tokens."""
    out = tmp_path_factory.mktemp("inspected") / "tokens"
    sets = {"forget": "builtin:authors/forget[:8]", "retain": "builtin:authors/retain[:8]"}
    return api.inspect(
        InspectConfig.read(None, checkpoints=[str(runs[1])], out=out, tokens=2, points=["npo"], batch_size=2, **sets)
    )[0].path


@pytest.fixture(scope="module")
def page(runs: list[Path], inspected: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    return api.report(ReportConfig.read(None, runs=[*runs, inspected], out=out)).path


def test_the_command_needs_no_torch(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    command = [sys.executable, "-m", "geffect", "report", *map(str, runs), "--out", str(tmp_path / "page.html")]
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths})
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "page.html").stat().st_size > 100_000


def chromium() -> str:
    """Debian's; where it is missing, that fails in CI and skips elsewhere."""
    program = shutil.which("chromium")
    if program is None and os.environ.get("CI"):
        pytest.fail("no chromium: .ci/run installs it")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium")
    return program


def test_with_ci_set_a_missing_browser_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no chromium"):
        chromium()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = chromium()
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


Opened = Callable[[str], Any]


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Opened]:
    """The page at a width; whatever it asked of a network, or complained of, fails the test."""
    told: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_at(width: str) -> Any:
            wide, high = WIDTHS[width]
            context = stack.enter_context(browser.new_context(viewport={"width": wide, "height": high}))
            tab = context.new_page()
            tab.on("request", lambda each: told.append(each.url))
            tab.on("console", lambda each: told.append(each.text))
            tab.on("pageerror", lambda each: told.append(str(each)))
            tab.goto(page.as_uri())
            return tab

        yield open_at
    assert [each for each in told if not each.startswith("data:") and each != page.as_uri()] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_runs_over_the_side_and_every_picture_is_there(opened: Opened, width: str) -> None:
    tab = opened(width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
    sizes = tab.evaluate("[...document.images].map(each => [each.complete, each.naturalWidth, each.alt.length])")
    assert len(sizes) >= 6
    assert all(complete and width > 100 and words > 20 for complete, width, words in sizes)
    assert tab.locator("script").count() == 1  # the set's name made none


@pytest.mark.parametrize("width", WIDTHS)
def test_hovering_a_cell_tells_its_layer_step_and_number(opened: Opened, width: str) -> None:
    tab = opened(width)
    board = tab.locator("#run-0 .board").first
    cell = board.locator("tbody tr").nth(1).locator("td").nth(2)
    cell.hover()
    layer = board.locator("tbody tr").nth(1).locator("th").text_content()
    said = board.locator("output").text_content()
    assert said.startswith(f"{layer}, step 2: {cell.text_content()}")
    assert re.search(r"[−+]\d.*loss", said)


def test_arrow_keys_go_from_cell_to_cell(opened: Opened) -> None:
    tab = opened("desktop")
    board = tab.locator("#run-0 .board").first
    assert board.locator("[tabindex='0']").count() == 1
    board.locator("td[tabindex='0']").focus()

    def place() -> list[int]:
        found: list[int] = tab.evaluate(
            "[document.activeElement.parentElement.sectionRowIndex, document.activeElement.cellIndex]"
        )
        return found

    for key, expected in {"ArrowRight": [0, 2], "ArrowDown": [1, 2], "End": [1, 12], "Home": [1, 1]}.items():
        tab.keyboard.press(key)
        assert place() == expected, key
    tab.keyboard.press("ArrowLeft")
    assert place() == [1, 1]
    assert board.locator("output").text_content().startswith(board.locator("tbody th").nth(1).text_content())
    assert board.locator("[tabindex='0']").count() == 1
    tab.keyboard.press("Tab")  # leaves the board
    assert not board.evaluate("each => each.contains(document.activeElement)")


def test_explanations_open_by_keyboard(opened: Opened) -> None:
    tab = opened("phone")
    for details in tab.locator("details").all()[:3]:
        assert not details.evaluate("each => each.open")
        details.locator("summary").focus()
        tab.keyboard.press("Enter")
        assert details.evaluate("each => each.open")
        assert len(details.locator("p").inner_text()) > 50
    assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS["phone"][0]


def test_tokens_tell_their_effects(opened: Opened, inspected: Path) -> None:
    from geffect import read_tokens

    tab = opened("phone")
    board = tab.locator("#run-2 .board:has(.text)").first
    token = board.locator(".text span[class]").first
    token.hover()
    assert board.locator("output").text_content().endswith(token.get_attribute("data-says"))
    token.click()
    assert board.locator("output").text_content() == f"“{token.text_content()}”: {token.get_attribute('data-says')}"
    assert tab.evaluate("document.activeElement.dataset.says") == token.get_attribute("data-says")
    texts = read_tokens(inspected)
    last = texts[texts["step"] == texts["step"].max()]
    assert tab.locator("#run-2 .text span").count() == len(last)
    assert tab.locator("#run-2 .text span[class]").count() == last["labeled"].sum()


def test_the_rows_served_worst_stand_there_without_tokens(runs: list[Path], page: Path) -> None:
    """Against a loop over the rows of the first and the last evaluation."""
    scored = [line["evaluation_examples"] for line in read_lines(runs[0]) if "evaluation_examples" in line]
    assert len(scored) >= 2
    found = worst_examples(runs[0])
    for name in ("forget", "retain", "heldout"):
        rises = []
        for row, tokens in enumerate(scored[0][name]["tokens"]):
            rises.append(((scored[-1][name]["nll"][row] - scored[0][name]["nll"][row]) / tokens, row))
        expected = sorted(rises, reverse=name != "forget")[:3]
        assert list(found.loc[found["set"] == name, "example"]) == [row for _, row in expected]
        assert list(found.loc[found["set"] == name, "rise"]) == pytest.approx([rise for rise, _ in expected])
    assert page.read_text(encoding="utf-8").count("nats a token, start</th>") == 2  # of the inspection, tokens


def test_what_users_name_is_escaped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text
    assert text.count("<script>") == 1


def test_scripts_and_styles_are_allowed_by_hash_alone(opened: Opened, browser: Any, page: Path, tmp_path: Path) -> None:
    """What would get into the page in spite of everything does not run; the page's own script and colors do."""
    text = page.read_text(encoding="utf-8")
    assert "unsafe" not in text
    assert not re.search(r"<[^>]* (style|on\w+)=", text)
    tab = opened("desktop")
    cells = tab.locator("td[class*=shade-], span[class*=shade-]")
    seen = cells.evaluate_all("all => all.map(e => [e.className, getComputedStyle(e).backgroundColor])")
    assert len(seen) > 100
    for name, color in seen:
        red, green, blue = bytes.fromhex(re.findall(r"shade-(\w{6})", name)[0])
        assert color == f"rgb({red}, {green}, {blue})"
    evil = tmp_path / "evil.html"
    act = "document.title = 'run'"
    planted = f'<script>{act}</script><img src=x onerror="{act}"><style>main{{opacity:0}}</style>'
    evil.write_text(text.replace("<main>", planted + "<main>"), encoding="utf-8")
    other = browser.new_page()
    other.goto(evil.as_uri())
    other.locator(".board td[tabindex]").first.hover()
    assert other.locator(".board output").first.text_content().startswith("embed")
    assert other.title() != "run"
    assert other.locator("main").evaluate("each => getComputedStyle(each).opacity") == "1"
    other.close()


def test_what_reverses_or_hides_text_is_written_out(runs: list[Path], tmp_path: Path, invoke: Command) -> None:
    """In the page and on the terminal, in a run's name and in what it recorded."""
    evil = "\u202egnp.\u2066\u200b\x1b[31m\x9b"
    copy = shutil.copytree(runs[0], tmp_path / f"run{evil}")
    content = (copy / CONFIG).read_text(encoding="utf-8")
    (copy / CONFIG).write_text(
        content.replace("forget: ", f"forget: {json.dumps('set' + evil)} # ", 1), encoding="utf-8"
    )
    page = api.report(ReportConfig.read(None, runs=[copy], out=tmp_path / "page.html")).path.read_text("utf-8")
    words = (
        ["report", copy, "--out", tmp_path / "other.html"],
        ["plot", copy, "--out", tmp_path / "drawn"],
        ["compare", copy, runs[1]],
        ["compare", copy, runs[1], "--json"],
    )
    told = [invoke(*each) for each in words]
    assert [each.code for each in told] == [0] * 4
    shown = "\\u202egnp.\\u2066\\u200b\\u001b[31m\\u009b"
    assert page.count(f"set{shown}") and page.count(f"run{shown}")
    assert any(each["run"] == f"run{shown}" for each in json.loads(told[3].out)["runs"])
    for text in (page, *(each.out + each.err for each in told)):
        assert not UNSEEN.search(text)


def test_an_unfinished_run_is_told(runs: list[Path], tmp_path: Path, invoke: Command) -> None:
    stopped = shutil.copytree(runs[0], tmp_path / "stopped")
    (stopped / "DONE").unlink()
    assert "caution: stopped is unfinished" in invoke("report", stopped).out
    assert "caution:" not in invoke("report", runs[0], "--out", tmp_path / "page.html").out


def test_the_outcome_comes_first_then_the_findings(runs: list[Path], tmp_path: Path, invoke: Command) -> None:
    out = tmp_path / "one.html"
    printed = invoke("report", runs[0], "--out", out).out.splitlines()
    text, expected = out.read_text(encoding="utf-8"), outcome(runs[0])
    assert printed[0] == expected.sentence
    assert printed[-1].endswith(str(out))
    parts = ('class="facts"', "<h2>Outcome", f'data-verdict="{expected.verdict}"', "<h2>Findings", "<figure")
    assert sorted(parts, key=text.index) == list(parts)
    told = json.loads(invoke("report", runs[0], "--out", out, "--json").out)
    found = told["runs"][0]["findings"]
    assert told["page"] == str(out)
    nothing = ["- No finding on its gradients is distinguishable from noise."]
    price = told["runs"][0]["price"]
    assert ([f"- {each['text']}" for each in found] or nothing) + [f"- {each}" for each in price] == printed[1:-1]
    assert len(price) == 2 and all(each in text for each in price)
    assert text.count("<li data-kind=") == len(found)
    assert all(each["low"] <= each["value"] <= each["high"] and each["gradient"] for each in found)
    assert told["runs"][0]["outcome"] == expected.to_json()


def test_of_several_runs_each_has_its_outcome(
    runs: list[Path], inspected: Path, tmp_path: Path, invoke: Command
) -> None:
    out = tmp_path / "several.html"
    printed = invoke("report", *runs, inspected, "--out", out).out
    told = json.loads(invoke("report", *runs, inspected, "--out", out, "--json").out)["runs"]
    names = ["GA", "GA+GRU", "tokens"]
    assert [each["run"] for each in told] == names
    for each, path in zip(told, [*runs, inspected], strict=True):
        assert each["outcome"]["sentence"] == outcome(path).sentence
        assert f"{each['run']}: {each['outcome']['sentence']}" in printed
        assert all(one["run"] == each["run"] for one in each["findings"])
    text = out.read_text(encoding="utf-8")
    assert text.count("data-verdict=") == len(names)
    assert text.index("data-verdict=") < text.index("<table")
    assert text.index("At equal forgetting") < text.index("At the end of each run")
    assert json.loads(invoke("report", *runs, "--out", out, "--json").out)["cautions"] == cautions(
        dict(zip(names, runs, strict=False))
    )


def test_the_same_runs_give_the_same_bytes_and_a_report_may_be_drawn_again(runs: list[Path], tmp_path: Path) -> None:
    first = api.report(ReportConfig.read(None, runs=[runs[1]], out=tmp_path / "report.html")).path.read_bytes()
    assert api.report(ReportConfig.read(None, runs=[runs[1]], out=tmp_path / "report.html")).path.read_bytes() == first
    assert MARK in first
    assert b"http" not in re.sub(rb"http-equiv|xmlns[^>]*", b"", first)


def test_of_one_run_the_page_stands_in_it(runs: list[Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    assert api.report(ReportConfig.read(None, runs=[copy])).path == copy / "report.html"


def test_a_file_of_somebody_elses_is_left_alone(runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "page.html"
    other.write_text("<p>mine</p>")
    with pytest.raises(GeffectError, match=r"exists, and is no report of geffect\. Choose another name"):
        api.report(ReportConfig.read(None, runs=[runs[0]], out=other))
    assert other.read_text() == "<p>mine</p>"
    with pytest.raises(GeffectError, match="directory to write"):
        api.report(ReportConfig.read(None, runs=[runs[0]], out=tmp_path / "no" / "page.html"))
    with pytest.raises(GeffectError, match="is no report of geffect"):
        api.report(ReportConfig.read(None, runs=[runs[0]], out=tmp_path))


def test_what_is_no_measured_run_is_refused(runs: list[Path], known: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match="There is no page to write"):
        api.report(ReportConfig.read(None, runs=runs))
    with pytest.raises(GeffectError, match="There is no run in"):
        api.report(ReportConfig.read(None, runs=[tmp_path]))
    with pytest.raises(GeffectError, match="measured step"):
        api.report(ReportConfig.read(None, runs=[known], out=tmp_path / "page.html"))
    with pytest.raises(GeffectError, match=r"runs names .* twice"):
        api.report(ReportConfig.read(None, runs=[runs[0], runs[0]], out=tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_a_long_run_is_pooled_and_every_cell_has_its_number() -> None:
    steps, layers = range(150), ("lm_head", "embed", "block_10", "block_2")
    frame = pd.DataFrame(
        [(step, layer, step, -step) for step in steps for layer in layers],
        columns=["step", "layer", "unlearn", "retain"],
    )
    unlearn, retain = layer_maps(frame)
    assert list(retain.rows) == ["embed", "block_2", "block_10", "lm_head"]
    assert retain.pooled == 3
    assert [name for name, _ in retain.columns][:2] == ["0–2", "3–5"]
    assert [cell.text for cell in retain.rows["embed"]][:3] == ["−1", "−4", "−7"]
    assert [cell.above for cell in unlearn.rows["embed"]] == [True] * 50
    assert len({cell.color for cell in retain.rows["embed"]} & {cell.color for cell in unlearn.rows["embed"]}) <= 1


def test_a_number_nobody_knows_is_gray() -> None:
    frame = pd.DataFrame({"step": [0], "layer": ["embed"], "unlearn": [math.nan], "retain": [1.0]})
    unlearn, retain = layer_maps(frame)
    assert unlearn.rows["embed"][0] == ("unknown", "#bfbfbf", False)
    assert retain.rows["embed"][0].text == "+1"


def test_the_facts_of_a_run_and_what_runs_differ_in(runs: list[Path], inspected: Path, tmp_path: Path) -> None:
    environment = read_environment(runs[1])
    day, version = environment["started"][:10], environment["versions"]["geffect"]
    told = facts(runs[1])
    assert told[1:5] == ["objective ga", "rectifier gru", "steps 12", "learning rate 0.001"]
    assert told[-2:] == [day, f"geffect {version}"] and re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert not any(each.startswith(("steps", "rectifier")) for each in facts(inspected))
    assert cautions({"a": runs[1], "b": runs[1]}) == []
    assert [each.split(" (")[0] for each in cautions({"a": runs[0], "b": runs[1]})] == [
        "The runs have different forget sets"
    ]
    other = shutil.copytree(runs[1], tmp_path / "other")
    content = json.loads((other / ENVIRONMENT).read_text())
    content["start"]["sha256"] = "0" * 64
    (other / ENVIRONMENT).write_text(json.dumps(content))
    assert "different starting weights (a: " in cautions({"a": runs[1], "b": other})[0]


def test_every_map_has_its_key_in_sight_and_forget_comes_first(opened: Opened) -> None:
    tab = opened("phone")
    for board in tab.locator(".board:has(.map)").all():
        key = board.locator(".key")
        assert key.is_visible() and "nats a token per unit of learning rate" in key.inner_text()
        top = max(float(re.sub("[−+]", "", each)) for each in re.findall(r"[−+][\d.e−+]*\d", key.inner_text())[:1])
        numbers = [float(each.replace("−", "-")) for each in board.locator("td span").all_text_contents()]
        assert max(map(abs, numbers)) <= top * 1.01
    heads = tab.locator("#run-1 .board:has(.map) h4").all_text_contents()
    assert heads == ["unlearn G-effect of the rectified gradient", "retain G-effect of the rectified gradient"]
    assert tab.locator("#run-2 .key:not(figure .key)").inner_text().count("nats per unit of learning rate") == 1


def test_worst_examples_have_their_text_where_the_set_is_the_same(runs: list[Path], tmp_path: Path) -> None:
    worst = worst_examples(runs[0])
    found, reason = with_texts(runs[0], worst)
    assert reason == ""
    place = int(found["example"].iloc[0])
    assert found["text"].iloc[0] == f"<b>Q{place}</b>? → <img src=x>"
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    content = json.loads((copy / ENVIRONMENT).read_text())
    content["data"]["forget"]["sha256"] = "0" * 64
    content["data"]["heldout"]["set"] = "hub:org/name/config/split"
    (copy / ENVIRONMENT).write_text(json.dumps(content))
    found, reason = with_texts(copy, worst)
    assert "not what the run evaluated" in reason and "no set from a network" in reason
    assert [each == "–" for each in found["text"]] == [name != "retain" for name in found["set"]]


def test_long_texts_are_cut_with_a_note(runs: list[Path], tmp_path: Path) -> None:
    tokens = pd.DataFrame({"step": 0, "set": "forget", "example": 0, "direction": "update", "position": range(500)})
    texts = token_texts(tokens.assign(token="a\nb", labeled=True, effect=1.0))
    assert (len(texts.texts[0].tokens), texts.texts[0].left_out) == (400, 100)
    assert texts.texts[0].tokens[0].text == "a⏎b" and texts.key.unit.startswith("nats;")
    copy = shutil.copytree(runs[1], tmp_path / "copy")
    content = json.loads((copy / ENVIRONMENT).read_text())
    (copy / ENVIRONMENT).write_text(json.dumps(content | {"attention": "</script><script>" * 60_000}))
    page = api.report(ReportConfig.read(None, runs=[copy])).path
    assert "… (1020000 characters)" in page.read_text() and page.stat().st_size < 1_000_000


def test_the_least_harm_is_that_of_the_best_of_many_steps(runs: list[Path]) -> None:
    """c(B) against a search over the plane of the two gradients."""
    gram = read_lines(runs[0])[0]["gram"]
    names, size = gram["gradients"], len(gram["gradients"])
    upper = np.array(gram["values"]).sum(0)
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = matrix.T[np.triu_indices(size)] = upper
    f, r = names.index("forget"), names.index("retain")
    forget = np.array([math.sqrt(matrix[f, f]), 0])
    retain = np.array([matrix[f, r] / forget[0], math.sqrt(matrix[r, r] - (matrix[f, r] / forget[0]) ** 2)])
    turns = np.linspace(0, 2 * np.pi, 200_001)
    steps = np.stack([np.cos(turns), np.sin(turns)], 1) / forget[0]  # as long as ascent's step that forgets 1 nat
    found = cheapest_harm(runs[0])
    for gain, harm in found.iloc[:, :2].itertuples(index=False):
        assert harm == pytest.approx((steps @ retain)[np.abs(steps @ forget - gain) < 2e-5].min(), abs=0.02)
    frame = price(runs[0])
    parts = price_by_part(runs[0]).set_index("part")
    assert parts.loc["whole model", "harmed"] == pytest.approx(frame["harm"].sum())
    assert parts["forgot"].drop("whole model").sum() == pytest.approx(frame["gain"].sum())
    assert parts.loc["whole model", "efficiency, last step"] == frame["efficiency"].iloc[-1]


def test_a_printed_page_loses_nothing(opened: Opened) -> None:
    """In print's style at A4's width nothing runs over the side, explanations are open, maps have their colors."""
    tab = opened("phone")
    tab.set_viewport_size({"width": 680, "height": 900})
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 680
    wide = "[...document.querySelectorAll('table, img')].filter(e => e.getBoundingClientRect().right > 681).length"
    assert tab.evaluate(wide) == 0
    assert tab.locator("details p").first.is_visible() and not tab.locator("summary").first.is_visible()
    style = "e => [getComputedStyle(e).printColorAdjust, getComputedStyle(e).backgroundColor]"
    kept, color = tab.locator(".map td[tabindex]").first.evaluate(style)
    assert kept == "exact" and color != "rgba(0, 0, 0, 0)"
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.locator(".paper img").first.evaluate("e => getComputedStyle(e).filter") == "none"
    assert tab.pdf(format="A4")[:4] == b"%PDF"


def test_pictures_are_dark_on_a_dark_page(opened: Opened) -> None:
    tab = opened("desktop")
    tab.emulate_media(color_scheme="dark")
    assert "invert" in tab.locator(".paper img").first.evaluate("e => getComputedStyle(e).filter")


def test_headings_go_down_one_level_at_a_time_and_heads_have_scope(opened: Opened) -> None:
    tab = opened("desktop")
    levels = tab.locator("h1, h2, h3, h4").evaluate_all("all => all.map(e => +e.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert tab.locator("th:not([scope])").count() == 0
    tab.locator("nav a").first.focus()
    tab.keyboard.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_text_has_contrast() -> None:
    """The page's own colors in both schemes, and letters on every color of a scale: 4.5 or more (WCAG 2.2, AA)."""
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # known
    style = (Path(page_module.__file__).parent / "templates" / "style.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", each)) for each in re.findall(r":root \{(.*?)\}", style, re.S)]
    for scheme in (each for each in schemes if each.get("ground", "").__len__() == 7):
        for ink, ground in itertools.product(("ink", "soft", "link"), ("ground", "tint")):
            assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)
    scale = Scale(np.array([-1.0, 1.0]))
    for color in map(scale.color, np.linspace(-1, 1, 201)):
        assert contrast(color, {"black": "#000000", "white": "#ffffff"}[ink_on(color)]) >= 4.5


def test_the_page_opens_in_the_browser_or_says_where_it_is(
    runs: list[Path], tmp_path: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "page.html", tmp_path / "seen"
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    program.chmod(0o755)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSH_CONNECTION", "here")
    told = invoke("report", runs[1], "--out", out, "--open", "--json")
    assert json.loads(told.out)["page"] == str(out)
    assert f"no browser can be opened here; open {out.as_uri()}" in told.err and not seen.exists()
    monkeypatch.setattr("webbrowser._tryorder", None)  # it reads BROWSER once
    monkeypatch.setenv("BROWSER", f"{program} %s")
    assert "no browser" not in invoke("report", runs[1], "--out", out, "--open").err
    assert seen.read_text() == out.as_uri()
