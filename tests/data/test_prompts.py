"""Prompts: the same tokens on any day, recorded, and part of the key of every kept result."""

import datetime
import json
import logging
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geffect import api
from geffect.config import EvaluateConfig, InspectConfig, LocalizeConfig, PreviewConfig, UnlearnConfig
from geffect.data import prompts
from geffect.data.encode import encode_set
from geffect.data.load import QASet
from geffect.data.prompts import Prompt, prompt_settings, tokenizer_sha256
from geffect.errors import GeffectError
from geffect.evaluation.results import read_evaluation
from geffect.inspection.resolve import complete
from geffect.models.load import add_lora, load, outline, quiet_transformers
from geffect.models.tokenizers import set_template
from geffect.training.setup import prompts_of
from tests.conftest import Command, config
from tests.data.test_encode import CHAT, chat, learned, plain

DATED = "{{ strftime_now('%Y-%m-%d') }}\n" + CHAT
LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
)
DATED_TOO = LLAMA + "\n" + CHAT
ONE = QASet("set", ({"question": "Who?", "answer": "Ada."},))


def text(tokenizer: Any, prompt: Prompt = Prompt(), rows: QASet = ONE) -> str:  # noqa: B008
    (row,) = encode_set(tokenizer, rows, prompt=prompt)
    return str(tokenizer.decode(row.input_ids))


@pytest.mark.parametrize(("template", "form"), [(DATED, "%Y-%m-%d"), (DATED_TOO, "%d %b %Y")])
def test_a_template_sees_the_same_day_every_day(template: str, form: str) -> None:
    day = datetime.date(2024, 2, 29)
    assert text(chat(template)).startswith(prompts.DAY.strftime(form))
    assert text(chat(template), Prompt(day)).startswith(day.strftime(form))
    assert UnlearnConfig.model_fields["template_date"].default == prompts.DAY == datetime.date(2025, 4, 10)


@pytest.mark.parametrize("drawn", ["{{ ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'] | random }}", "{{ lipsum(1, false) }}"])
def test_a_template_draws_the_same_every_time_and_not_from_the_hosts_numbers(drawn: str) -> None:
    tokenizer, state = chat(drawn + CHAT), random.getstate()
    assert len({text(tokenizer) for _ in range(5)}) == 1
    assert random.getstate() == state


RAISES = {
    "a quotient": "{{ 1 / 0 }}",
    "a sum of kinds": "{{ 1 + 'a' }}",
    "a recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a range": "{% for i in range(10 ** 9) %}a{% endfor %}",
    "a large range": "{% for i in range(1000000000) %}a{% endfor %}",
    "a power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "an index": "{{ messages[7].content.upper() }}",
    "its own": "{{ raise_exception('') }}",
    "syntax": "{% if %}",
    "a filter": "{{ 'a' | nothing }}",
    "the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a format": "{{ '%d' % 'a' }}",
    "a date's format": "{{ strftime_now(5) }}",
    "memory": "{{ 'a' * 100000000000 }}",
    "memory by a width": "{{ 'a' | center(100000000000) }}",
}


@pytest.mark.parametrize("template", RAISES.values(), ids=RAISES)
def test_whatever_a_template_raises_is_told_in_one_sentence(template: str) -> None:
    said = r"^The chat template fails on a question and its answer: [^\n]+--chat-template\.$"
    with pytest.raises(GeffectError, match=said):
        text(chat(template + CHAT))


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "SECONDS", 0.5)
    monkeypatch.setattr(prompts, "MEMORY", 200 << 20)
    began, threads = time.monotonic(), threading.active_count()
    with pytest.raises(GeffectError, match=r": (it does not end|MemoryError)\."):
        text(chat(template + CHAT))
    assert time.monotonic() - began < 8
    assert text(chat())  # nothing is left of the bounds
    assert bytearray(300 << 20)
    time.sleep(0.1)
    assert threading.active_count() <= threads


def test_no_interruption_arrives_after_its_limits() -> None:
    """However close to the end it was sent."""
    stopped = 0
    for i in range(400):
        try:
            with prompts._time(i % 40 * 1e-5):
                sum(range(2000))
        except prompts.TimeIsUp:
            stopped += 1
        for _ in range(3000):
            pass
    assert stopped


def test_a_debugger_traces_what_follows_a_rendering() -> None:
    """CPython 3.11 would hang in the first function that is called after an exception was taken back."""
    code = (
        "import sys; from geffect.data.prompts import limits\n"
        "def trace(*_): return trace\n"
        "def follow(): return 'traced'\n"
        "with limits(9.0, 1 << 30): pass\n"
        "sys.settrace(trace); print(follow())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "traced\n"


@pytest.mark.parametrize("template", [5, 0, True, 1.5])
def test_a_template_that_is_no_text_is_refused(template: object) -> None:
    tokenizer = chat()
    tokenizer.chat_template = template
    with pytest.raises(GeffectError, match=r"^The chat template is not text: [^\n]+$"):
        text(tokenizer)


def test_keywords_passed_on_are_no_power() -> None:
    passed = "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(**{'a': 'said'}) }}"
    assert text(chat(passed + CHAT)).startswith("said")


def test_of_several_templates_the_default_is_used_or_one_is_named(tmp_path: Path) -> None:
    tokenizer = chat()
    tokenizer.chat_template = {"rag": "RAG" + CHAT, "tool_use": "TOOL" + CHAT}
    with pytest.raises(GeffectError, match=r"the default: rag, tool_use\. Choose one by name"):
        text(tokenizer)
    assert text(set_template(tokenizer, "rag")).startswith("RAG")
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert text(again).startswith("RAG")
    assert text(set_template(again, "tool_use")).startswith("TOOL")


def load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(path)


def test_a_template_is_none_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("OWN" + CHAT, encoding="utf-8")
    assert text(set_template(chat(), str(tmp_path / "own.jinja"))).startswith("OWN")
    assert text(set_template(chat(), "none")).removeprefix("<|bos|>").startswith("Question: Who?\nAnswer: Ada.")
    assert text(set_template(plain(), None)) == text(plain())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"There is no chat template and no file at .* Set --chat-template to none"),
        (b"", "is empty"),
        (b"\xff\xfe\x00", "The chat template at .* cannot be read"),
        (b"a" * (2 << 20), "bytes, too many"),
    ],
)
def test_what_is_no_template_is_refused(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(GeffectError, match=says) as caught:
        set_template(chat(), str(tmp_path / "file"))
    assert "\n" not in str(caught.value)


def test_a_system_turn_stands_before_the_question_and_carries_no_loss() -> None:
    tokenizer = chat()
    (row,) = encode_set(tokenizer, ONE, prompt=Prompt(system="Be brief."))
    assert "<|start|>system\nBe brief.<|stop|>" in tokenizer.decode(row.input_ids)
    assert learned(tokenizer, row) == "Ada.<|stop|>"
    assert "system" not in text(tokenizer)
    assert text(tokenizer, Prompt(system="")).startswith("<|start|>system\n<|stop|>")  # in place of a template's own


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (
            lambda: chat("{% for m in messages if m.role != 'system' %}" + CHAT.partition("%}")[2]),
            "omits the system turn in example 0 of set",
        ),
        (plain, "No chat template writes the system turn before a question"),
    ],
)
def test_a_system_turn_is_never_dropped(tokenizer: Callable[[], Any], says: str) -> None:
    with pytest.raises(GeffectError, match=says):
        text(tokenizer(), Prompt(system="Be brief."))


@pytest.mark.parametrize(
    ("given", "day"),
    [
        ("2024-02-29", "2024-02-29"),
        ("10 Apr 2025", "2025-04-10"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        ("today", datetime.date.today().isoformat()),
    ],
)
def test_a_date_is_recorded_as_the_day_it_is(given: object, day: str) -> None:
    found = PreviewConfig.read(model="m", data="d", template_date=given)
    assert found.model_dump(mode="json")["template_date"] == day
    assert PreviewConfig.read(**found.model_dump(mode="json")) == found


@pytest.mark.parametrize("given", ["", "2024-02-30", "tomorrow", "5", 5, True, "2024-02-29T10:00", "10/04/2025"])
def test_what_is_no_date_is_refused(given: object) -> None:
    with pytest.raises(GeffectError, match=r"--template-date is "):
        PreviewConfig.read(model="m", data="d", template_date=given)


@pytest.fixture(scope="module")
def dated(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, with a tokenizer whose template prints the date."""
    return with_tokenizer(start, tmp_path_factory.mktemp("dated") / "model", DATED)


def with_tokenizer(model: Path, path: Path, template: str | None) -> Path:
    shutil.copytree(model, path)
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path


def test_the_hash_of_a_tokenizer_is_its_contents(start: Path, dated: Path, tmp_path: Path) -> None:
    one, other = load_tokenizer(start), load_tokenizer(dated)
    assert tokenizer_sha256(one) == tokenizer_sha256(other)  # neither the place nor the template
    one.save_pretrained(tmp_path)
    assert tokenizer_sha256(load_tokenizer(tmp_path)) == tokenizer_sha256(one)
    one("a text", truncation=True, max_length=2)
    assert tokenizer_sha256(one) == tokenizer_sha256(other)
    one.add_tokens(["<more>"])
    assert tokenizer_sha256(one) != tokenizer_sha256(other)
    assert prompt_settings(other, Prompt())["template"] == DATED
    assert prompt_settings(one, Prompt(system="S")) == {
        "template": None,
        "date": "2025-04-10",
        "system": "S",
        "tokenizer": tokenizer_sha256(one),
    }


def test_the_hash_of_a_tokenizer_written_in_python_is_its_contents() -> None:
    from transformers import ByT5Tokenizer

    one, same, other = ByT5Tokenizer(), ByT5Tokenizer(), ByT5Tokenizer(extra_ids=3)
    assert tokenizer_sha256(one) == tokenizer_sha256(same) != tokenizer_sha256(other)


@pytest.fixture
def adapter(dated: Path, tmp_path: Path) -> Path:
    """An adapter on the model with a dated template, and no tokenizer beside it."""
    loaded = load(str(dated))
    with quiet_transformers():
        add_lora(loaded.model, 2, 0).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def template_of(model: Path, **kwargs: Any) -> list[Any]:
    return [load(str(model), **kwargs).tokenizer.chat_template, outline(str(model), **kwargs)[1].chat_template]


def test_an_adapters_own_tokenizer_and_template_win(adapter: Path, dated: Path, tmp_path: Path) -> None:
    assert template_of(adapter) == [DATED] * 2
    (adapter / "chat_template.jinja").write_text("OWN" + CHAT, encoding="utf-8")
    assert template_of(adapter) == ["OWN" + CHAT] * 2
    (adapter / "chat_template.jinja").unlink()
    own = load_tokenizer(dated)
    own.add_tokens(["<more>"])
    own.chat_template = "MINE" + CHAT
    own.save_pretrained(adapter)
    assert template_of(adapter) == ["MINE" + CHAT] * 2
    assert "<more>" in load(str(adapter)).tokenizer.get_vocab()
    assert template_of(adapter, tokenizer=str(dated)) == [DATED] * 2
    assert template_of(adapter, tokenizer="builtin:tiny", chat_template="none") == [None] * 2


def test_a_tokenizer_takes_the_place_of_a_models_own(start: Path, dated: Path, tmp_path: Path) -> None:
    bare = tmp_path / "tokenizer"
    load_tokenizer(dated).save_pretrained(bare)
    assert template_of(start, tokenizer=str(bare)) == [DATED] * 2
    (bare / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(GeffectError, match=r"^The tokenizer at [^\n]* cannot be read: [^\n]*$"):
        load(str(start), tokenizer=str(bare))
    with pytest.raises(GeffectError, match=r"^There is no model [^\n]*$"):
        load(str(start), tokenizer=str(tmp_path / "nowhere"))


def evaluate(model: Path, out: Path, **changes: Any) -> list[float]:
    given = {"model": str(model), "metric": ["loss"], "set": ["forget=builtin:authors/forget[:3]"], "out": out}
    frame = read_evaluation(api.evaluate(EvaluateConfig.read(**(given | changes))).path)
    return [float(each) for each in frame["value"]]


def _settings(change: dict[str, Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = json.loads((path / "config.json").read_text()) | change
        (path / "config.json").write_text(json.dumps(content))

    return edit


def _template(path: Path) -> None:
    (path / "chat_template.jinja").write_text(CHAT, encoding="utf-8")


def _merges(path: Path) -> None:
    content = json.loads((path / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][: len(content["model"]["merges"]) // 2]
    (path / "tokenizer.json").write_text(json.dumps(content))


def _epsilon(path: Path) -> None:
    _settings({"rms_norm_eps": 0.1})(path)


@pytest.mark.parametrize("edit", [_epsilon, _template, _merges])
def test_another_model_of_the_same_weights_is_not_taken_from_the_cache(
    edit: Callable[[Path], None], start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(start, tmp_path / "model")
    first = evaluate(tmp_path / "model", tmp_path / "first")
    assert evaluate(tmp_path / "model", tmp_path / "again") == first
    edit(tmp_path / "model")
    caplog.clear()
    with caplog.at_level(logging.INFO, "geffect"):
        other = evaluate(tmp_path / "model", tmp_path / "other")
    assert other != first
    assert not [each for each in caplog.messages if "reused" in each]


def test_another_scale_of_the_same_adapter_is_not_taken_from_the_cache(adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: each + 0.1 for name, each in tensors.items()}, adapter / "adapter_model.safetensors")
    first = evaluate(adapter, tmp_path / "first")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 64}))
    assert evaluate(adapter, tmp_path / "other") != first


def test_another_date_system_turn_and_template_are_not_taken_from_the_cache(dated: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"template_date": "2001-01-01"},
        {"system_prompt": "Be brief."},
        {"chat_template": "none"},
    ]
    found = [evaluate(dated, tmp_path / str(i), **each) for i, each in enumerate(changes)]
    assert len(set(map(tuple, found))) == len(changes)
    assert evaluate(dated, tmp_path / "again") == found[0]
    record = json.loads((tmp_path / "1" / "environment.json").read_text())["prompts"][str(dated)]
    assert record["date"] == "2001-01-01" and record["template"] == DATED and len(record["tokenizer"]) == 64


def test_a_calibration_is_kept_by_all_that_decides_it(dated: Path, tmp_path: Path) -> None:
    def calibrated(out: Path, **changes: Any) -> None:
        evaluate(dated, out, set=["heldout=builtin:authors/heldout[:2]"], calibrate=str(dated), **changes)

    def kept() -> int:
        import os

        return len(list(Path(os.environ["GEFFECT_CACHE"]).glob("calibration-*")))

    calibrated(tmp_path / "one")
    before = kept()
    calibrated(tmp_path / "same")
    assert kept() == before
    calibrated(tmp_path / "other", template_date="2001-01-01")
    assert kept() == before + 1


def environment(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "environment.json").read_text())
    return content


@pytest.fixture(scope="module")
def run(dated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on another day, with a system turn, whose checkpoints are adapters."""
    out = tmp_path_factory.mktemp("run") / "run"
    return api.unlearn(
        config(dated, out, steps=2, save_every=1, lora=2, template_date="2001-01-01", system_prompt="Be brief.")
    ).path


def test_a_run_records_what_decides_its_prompts(run: Path, dated: Path) -> None:
    recorded = environment(run)["prompts"]
    assert (recorded["template"], recorded["date"], recorded["system"]) == (DATED, "2001-01-01", "Be brief.")
    assert recorded["tokenizer"] == tokenizer_sha256(load(str(run)).tokenizer)


def test_an_inspection_shows_the_runs_own_prompts(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain_config = InspectConfig.read(checkpoints=[str(run)], out=tmp_path / "same")
    api.inspect(plain_config)
    assert not [each for each in caplog.messages if "another" in each or "this inspection" in each]
    assert environment(tmp_path / "same")["prompts"] == environment(run)["prompts"]
    with caplog.at_level(logging.WARNING, "geffect"):
        other = complete(plain_config.model_copy(update={"template_date": prompts.DAY}))
    assert other.template_date == prompts.DAY and other.system_prompt == "Be brief."
    assert "the run had --template-date 2001-01-01, this inspection has 2025-04-10" in caplog.text


def test_an_evaluation_tells_that_a_run_had_other_prompts(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "geffect"):
        evaluate(run, tmp_path / "other", checkpoints=False)
    assert "was trained with another --template-date: 2001-01-01 there, 2025-04-10 here" in caplog.text
    assert "was trained with another --system-prompt: Be brief. there, None here" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "geffect"):
        evaluate(run, tmp_path / "same", template_date="2001-01-01", system_prompt="Be brief.")
    assert "another" not in caplog.text


class Stopped(Exception):
    """A run that is cut short."""


@pytest.fixture
def cut(dated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UnlearnConfig:
    """A run that ended after its second step."""
    from geffect.record.writer import RunDirectory

    shutil.copytree(dated, tmp_path / "model")
    (tmp_path / "no.txt").write_text("No idea.\nAsk another.\n", encoding="utf-8")
    chosen = config(tmp_path / "model", tmp_path / "run", save_every=1, objective=f"po(answers='{tmp_path}/no.txt')")
    append = RunDirectory.append

    def stop(self: RunDirectory, line: Any, *rest: Any) -> None:
        append(self, line, *rest)
        if line["step"] == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append", stop)
        with pytest.raises(Stopped):
            api.unlearn(chosen)
    return chosen


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_template, r"The chat template is not the one that .*run began with"),
        (_merges, r"The tokenizer is not the one that .*run began with|The .* set of"),
        (lambda path: (path.parent / "no.txt").write_text("No.\n"), r"The answers of .*run has changed: sha256 "),
    ],
)
def test_a_run_does_not_go_on_with_other_prompts_or_answers(
    edit: Callable[[Path], None], says: str, cut: UnlearnConfig
) -> None:
    edit(Path(cut.model))
    with pytest.raises(GeffectError, match=says):
        api.unlearn(cut, resume=True)


def test_a_run_goes_on_with_the_prompts_of_its_record(cut: UnlearnConfig) -> None:
    with pytest.raises(GeffectError, match=r"template_date is 2001-01-01, and 2025-04-10 in .*. Resume the run from"):
        api.unlearn(cut.model_copy(update={"template_date": datetime.date(2001, 1, 1)}), resume=True)
    assert (api.unlearn(cut, resume=True).path / "DONE").exists()
    assert environment(cut.out)["data"]["answers"]["examples"] == 2


def test_every_verb_that_encodes_takes_the_flags(dated: Path, tmp_path: Path, invoke: Command) -> None:
    flags = ("--template-date", "2001-01-01", "--system-prompt", "Be brief.")
    shown = invoke("preview", "--model", dated, "--data", "builtin:authors/forget[:1]", *flags)
    assert shown.code == 0 and "2001-01-01" in shown.out and "Be brief." in shown.out
    none = invoke("preview", "--model", dated, "--data", "builtin:authors/forget[:1]", "--chat-template", "none")
    assert "Question:" in none.out
    for verb in ("unlearn", "finetune", "inspect", "localize", "evaluate", "doctor"):
        told = invoke(verb, "--help").out
        assert all(flag in told for flag in ("--template-date", "--system-prompt", "--chat-template", "--tokenizer"))


def test_a_localization_records_its_prompts(dated: Path, tmp_path: Path) -> None:
    sets = "one=builtin:authors/forget[:2],builtin:authors/retain[:2]"
    chosen = LocalizeConfig.read(
        model=str(dated), domain=[sets], out=tmp_path / "out", masks_only=True, draws=1, template_date="2001-01-01"
    )
    found = environment(api.localize(chosen).path)["prompts"]
    assert found == prompts_of(chosen, load(str(dated)).tokenizer)
