"""The benchmarks' machinery on a very small model: structure and equalities, never seconds."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from analysis.benchmarks import __main__ as command
from analysis.benchmarks import evaluating, growth, localizing, memory, monitoring, peers, records, steps, tokens
from analysis.benchmarks.drawing import OURS, PLAIN, slope
from analysis.benchmarks.published import FlatProjection, ThreeBackwards, backward_per_sequence, backward_per_token
from analysis.benchmarks.setting import Setting
from analysis.benchmarks.table import BUDGETS, Finding, read_findings, table
from analysis.benchmarks.timing import StandardErrors, interleave
from geffect.api import builtin_tiny
from geffect.core.forward import forward
from geffect.core.gram import Gram
from geffect.core.layers import Layout, trainable_parameters
from geffect.core.token_effects import token_effects
from geffect.models.scoring import Likelihood
from geffect.record.frames import read
from geffect.record.reader import read_lines
from geffect.record.writer import RunDirectory, layout_to_json
from tests.support.cases import CASES
from tests.support.steps import make_batches

UNTRAINED = "builtin:tiny-untrained"
DESIGN = [
    "ga",
    "gru diagnostics",
    "wga",
    "npo",
    "tnpo",
    "memory",
    "memory gradient",
    "tokens",
    "tokens by group",
    "tokens speed",
    "localize",
    "help",
    "demo first",
    "demo",
    "suite",
]


@pytest.fixture(params=["llama", "llama-tied"])
def setting(request: pytest.FixtureRequest) -> Setting:
    model = CASES[request.param]()
    return Setting(request.param, model, make_batches(model))


def gradient(setting: Setting) -> torch.Tensor:
    return torch.cat([
        p.grad.flatten() for p in trainable_parameters(setting.model).values() if p.grad is not None
    ]).clone()


def test_the_published_script_begins_with_our_g_effects(setting: Setting) -> None:
    measured = setting.stepping("ga")()
    setting.clear()
    script = ThreeBackwards(setting)
    script()
    assert measured.gram is not None
    total, rows = measured.gram.total(), measured.gram.names
    for name, found in script.g_effects().items():
        assert found == pytest.approx(float(total[rows.index("objective"), rows.index(name)]), rel=1e-5)
    assert all(p.grad is None for p in setting.model.parameters())


def test_the_published_projection_is_ours(setting: Setting) -> None:
    ours, theirs = setting.stepping("ga", "gru", measure=False), FlatProjection(setting)
    for _ in range(2):
        ours()
        expected = gradient(setting)
        setting.clear()
        theirs()
        assert torch.linalg.norm(gradient(setting) - expected) < 1e-5 * torch.linalg.norm(expected)
        setting.clear()


def test_backward_passes_find_the_token_effects(setting: Setting) -> None:
    direction = setting.direction()
    effects = token_effects(setting.model, setting.batches["forget"], direction)
    by_row = torch.tensor(backward_per_sequence(setting, direction))
    assert torch.allclose(by_row, effects.by_example(), rtol=1e-4, atol=1e-6)
    first = effects.total[0][effects.labeled[0]]
    assert torch.allclose(torch.tensor(backward_per_token(setting, direction, 99)), first, rtol=1e-4, atol=1e-6)


def test_a_plain_step_is_the_sum_of_both_gradients(setting: Setting) -> None:
    setting.plain("forget", "retain")()
    both = gradient(setting)
    setting.clear()
    torch.stack([setting.mean_nll(name) for name in ("forget", "retain")]).sum().backward()
    assert torch.allclose(both, gradient(setting), atol=1e-6)


def test_steps_and_tokens_have_their_findings(setting: Setting) -> None:
    found, seconds = steps.benchmark(setting, 1)
    assert {each.key for each in found} >= {
        "bare",
        "ga",
        "gru",
        "gru diagnostics",
        "wga",
        "npo",
        "tnpo",
        "every",
        "tenth",
    }
    assert all(len(each) == 1 for each in seconds.values())
    assert {each.key: each.published is not None for each in found}["ga"]
    told, _ = tokens.benchmark(setting, 1)
    assert [each.key for each in told] == ["tokens", "tokens by group", "tokens speed", "tokens speed long"]
    assert "510 labeled tokens" in told[-1].note
    assert all(p.grad is None for p in setting.model.parameters())


def test_a_monitored_step_is_timed_beside_its_passes(setting: Setting) -> None:
    found, seconds = monitoring.benchmark(setting, 1)
    assert [each.key for each in found] == ["monitor", "monitor run"]
    assert set(seconds) == {"plain", "step", "measured", "added"}
    assert all(p.grad is None for p in setting.model.parameters())
    encoded = monitoring.examples(setting, "forget")
    assert len(encoded) == len(setting.batches["forget"]["input_ids"])


def test_peers_do_our_work(setting: Setting) -> None:
    with torch.no_grad():
        setting.batches["forget"]["ref_nll"] = forward(setting.model, setting.batches["forget"]).nll
    gradients = []
    for step in (peers.preference(setting), setting.stepping(peers.NPO)):
        step()
        gradients.append(gradient(setting))
        setting.clear()
    theirs, ours = gradients
    assert torch.linalg.norm(theirs - ours) < 1e-5 * torch.linalg.norm(ours)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_all_examples_have_our_effects(setting: Setting) -> None:
    direction = setting.direction()
    effects = token_effects(setting.model, setting.batches["forget"], direction).by_example()
    found = torch.tensor(peers.examples_by_vmap(setting, direction)())
    assert torch.allclose(found, effects.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_peer_that_is_not_installed_is_a_row_that_says_so(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "is_installed", lambda package: not package)
    found, seconds = peers.benchmark(setting, 1)
    assert [each.key for each in found] == list(peers.PAIRS)
    assert not {"PCGrad", "UPGrad", "opacus"} & set(seconds)
    with (console := Console(width=300)).capture() as text:
        console.print(table(found))
    lines = text.get().splitlines()
    told = {key: next(line for line in lines if BUDGETS[key].what in line) for key in peers.PAIRS}
    absent = {key for key, line in told.items() if "not installed" in line}
    assert absent == {"peer pcgrad", "peer upgrad", "peer opacus"}


def test_the_forward_pass_beside_an_evaluation_finds_its_loss() -> None:
    timed = evaluating.variants("builtin:tiny")
    loss, scores = (timed[name]() for name in ("forward", "evaluation"))
    assert isinstance(loss, torch.Tensor) and isinstance(scores, Likelihood)
    assert len(scores.example_nll) == evaluating.EXAMPLES
    assert float(loss) == pytest.approx(scores.loss, rel=1e-4)  # log_softmax in float32 is the coarser


def test_variants_take_turns() -> None:
    calls: list[str] = []
    found = interleave({name: partial(calls.append, name) for name in "abc"}, 2)
    assert "".join(calls) == "cab" + "abc" + "bca"
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys("abc", 2)


def test_the_table_holds_every_budget_and_says_what_was_missed() -> None:
    assert set(DESIGN) <= set(BUDGETS)
    budgets = ["≤ 1.05 ×", "≤ 1.05 ×", "≤ 1.4 ×", "≤ 1.4 ×", "≤ 1.4 ×", "≤ 1.1 ×"]
    assert [BUDGETS[key].told for key in DESIGN[:6]] == budgets
    missed = Finding("ga", "builtin:tiny", StandardErrors(1.2, 1.1, 1.3, 3), StandardErrors(2.0, 1.9, 2.1, 3))
    fast = Finding("tokens speed", "builtin:tiny", StandardErrors.of([150.0]))
    assert (missed.line()["met"], fast.line()["met"]) == (False, True)
    with (console := Console(width=300)).capture() as text:
        console.print(table([missed, fast]))
    lines = text.get().splitlines()
    assert all(any(budget.what in line for line in lines) for budget in BUDGETS.values())
    line = next(line for line in lines if BUDGETS["ga"].what in line)
    assert all(told in line for told in ("1.2 × (1.1–1.3)", "≤ 1.05 ×", "2 × (1.9–2.1)", " no "))
    assert sum("not run" in line for line in lines) == len(BUDGETS) - 2


def test_a_long_record_is_read_apart_and_runs_are_compared() -> None:
    found, numbers = records.benchmark(1, steps=3, compared=2)
    assert [each.key for each in found] == ["record", "record memory", "compare"]
    assert set(numbers) >= {f"compare {n}" for n in records.RUNS}
    assert len(records.smollm2_layout().layers) == 274  # 272 tensors of the model: the tied one stands three times


def test_a_synthetic_record_is_one_of_ours(tmp_path: Path) -> None:
    run = records.synthesize(tmp_path / "run", 3, records.smollm2_layout(6))
    frame = read(run)
    pairs = len(records.ROWS) * (len(records.ROWS) + 1) // 2
    assert len(frame) == 3 * 6 * pairs  # six groups, the tied one among them
    lines = read_lines(run)
    own = sum(each[0] for each in lines[1]["gram"]["values"])
    first = frame[(frame["step"] == 1) & (frame["gradient"] == "objective") & (frame["other"] == "objective")]
    assert float(first["inner"].sum()) == pytest.approx(own, rel=1e-8)


def test_steps_of_other_gradients_lie_in_one_frame(tmp_path: Path) -> None:
    layout = Layout({"a": "embed", "b": "block_0"}, {"a": 1, "b": 1}, 1)
    names_by_step = (("forget", "retain"), ("forget",), ("forget",), ("forget", "retain"))
    with RunDirectory(tmp_path / "run") as run:
        run.create({}, {"parameters": layout_to_json(layout)})
        for step, names in enumerate(names_by_step):
            values = {name: torch.full((len(names),) * 2, step + i, dtype=torch.float64) for i, name in enumerate("ab")}
            run.append({"step": step, "gram": Gram(names, values)})
    frame = read(tmp_path / "run", by="parameter")
    expected = [
        (step, parameter, row, other, step + i)
        for step, names in enumerate(names_by_step)
        for i, parameter in enumerate("ab")
        for k, row in enumerate(names)
        for other in names[k:]
    ]
    columns = ["step", "parameter", "gradient", "other", "inner"]
    expected_frame = pd.DataFrame(expected, columns=columns).astype({"inner": float})
    pd.testing.assert_frame_equal(frame, expected_frame)


def test_growth_is_fitted_and_drawn(tmp_path: Path) -> None:
    sizes = {"tokens": (4, 8), "layers": (1, 2), "examples": (1, 2), "steps": (2, 4)}
    found, _ = growth.benchmark(1, tmp_path, sizes)
    assert [each.key for each in found] == [f"growth, {axis}" for axis in sizes]
    frame = pd.read_csv(tmp_path / "growth.csv")
    assert list(frame["what"].unique()) == [OURS, PLAIN]
    assert (tmp_path / "growth.png").stat().st_size > 0
    assert slope(pd.DataFrame({"size": [1, 2, 4], "seconds": [1.0, 4.0, 16.0]})) == 2.0


def command_line(*arguments: Any) -> Any:
    app = Typer(pretty_exceptions_enable=False)
    app.command()(command.main)
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command_keeps_what_its_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    told = command_line("--json", file, "--model", UNTRAINED, "--only", "tokens", "--repeats", 1, "--examples", 2)
    assert told.exit_code == 0, told.output
    more = command_line("--json", file, "--model", UNTRAINED, "--only", "localize", "--repeats", 1, "--examples", 2)
    assert more.exit_code == 0, more.output
    found = json.loads(file.read_text())
    assert list(found) == [f"tokens, {UNTRAINED}", f"localize, {UNTRAINED}"]
    expected = ["tokens", "tokens by group", "tokens speed", "tokens speed long", "localize", "localize masks"]
    assert [each.key for each in read_findings(found)] == expected
    each = found[f"localize, {UNTRAINED}"]
    assert {"threads", "clock", "versions", "findings", "seconds"} <= set(each)
    assert set(each["seconds"]) == set(localizing.passes(UNTRAINED, 2))


def test_an_unknown_name_is_one_line() -> None:
    told = command_line("--only", "stepz")
    assert told.exit_code == 2
    assert "'stepz'" in told.output


def test_peak_memory_is_above_the_loaded_model() -> None:
    found = memory.measure("ga", str(builtin_tiny(UNTRAINED)), 2)
    assert found["peak"] > found["loaded"] > found["gradient"] > 1e6
