"""Other rectifiers on a record, and the price of each step: against vectors, and against the rule that is run."""

import json
import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import geffect
from geffect import api
from geffect.core.gram import norm
from geffect.core.price import ascent_price, step_price
from geffect.errors import GeffectError
from geffect.record.reader import grams
from geffect.rectifiers.gru import rectify
from geffect.reports.simulation import AS_IT_WAS, simulated
from tests.conftest import Command, config

NAMES = ("forget", "retain", "applied")
SETS = {"forget": "builtin:authors/forget[:8]", "retain": "builtin:authors/retain[:8]"}
CONFLICT = {**SETS, "learning_rate": 3e-3, "steps": 5, "batch_size": 8, "save_gradients": ["objective", "retain"]}


@pytest.fixture(scope="module")
def run(known: Path, tmp_path_factory: pytest.TempPathFactory) -> geffect.Run:
    """Plain gradient ascent on a model that knows both sets, fast enough to conflict."""
    out = tmp_path_factory.mktemp("simulated") / "run"
    return api.unlearn(config(known, out, **CONFLICT, prediction=4, target={"others": "builtin:authors/heldout[:4]"}))


def test_the_effects_are_those_of_the_combined_vectors(run: geffect.Run) -> None:
    """GRU's projection of the saved gradients, flattened, scaled to the length of the objective's."""
    from safetensors.torch import load_file

    rows = geffect.simulate(run.path, ["gru(decay=0)"]).query("target == 'retain'").to_dict("records")
    by_step = {(row["step"], row["rule"]): row for row in rows}
    changed = 0
    for step in range(5):
        folder = run.path / "gradients" / f"step-{step}"
        gradients = {name: load_file(folder / f"{name}.safetensors") for name in ("objective", "retain")}
        names = sorted(gradients["retain"])
        objective, retain = (
            torch.cat([each[name].double().flatten() for name in names]) for each in gradients.values()
        )
        made = rectify(objective, retain)
        changed += int(not torch.equal(made, objective))
        made *= objective.norm() / made.norm()
        for rule, vector in ((AS_IT_WAS, objective), ("gru(decay=0)", made)):
            found = by_step[step, rule]
            assert found["effect"] == pytest.approx(
                -float(vector @ retain), rel=1e-4, abs=1e-6 * float(retain @ retain)
            )
            cosine = float(vector @ objective / (vector.norm() * objective.norm()))
            assert found["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert changed >= 1  # some step did conflict


def test_at_the_start_it_is_what_the_rule_does(run: geffect.Run, known: Path, tmp_path: Path) -> None:
    """The rule itself, run from the same weights: the same direction at step 0, others later."""
    ruled = api.unlearn(config(known, tmp_path / "run", **CONFLICT, rectifier="gru(decay=0)"))
    simulated_steps = geffect.simulate(run.path, ["gru(decay=0)"]).query("rule != @AS_IT_WAS")
    done = geffect.simulate(ruled.path, []).set_index(["step", "target"])["effect"]
    lengths = {}
    for path in (run.path, ruled.path):
        for step, gram in grams(path):
            name = "rectified" if "rectified" in gram.names else "objective"
            lengths[path, step] = norm(gram.total(), gram.names, name)
    for step in (0, 4):
        ratio = lengths[ruled.path, step] / lengths[run.path, step]
        rows = simulated_steps.query("step == @step and target == 'forget'")
        expected = done[step, "forget"] / ratio
        close = rows["effect"].iloc[0] == pytest.approx(expected, rel=1e-5)
        assert close == (step == 0)


def test_a_scope_has_coefficients_of_its_own(run: geffect.Run) -> None:
    """PCGrad by tensor against the saved gradients, tensor by tensor; by layer it lies between the two."""
    from safetensors.torch import load_file

    rows = geffect.simulate(run.path, ["pcgrad(scope=parameter)", "pcgrad(scope=layer)"]).to_dict("records")
    by_rule = {(row["step"], row["rule"]): row["effect"] for row in rows if row["target"] == "retain"}
    for step in range(5):
        folder = run.path / "gradients" / f"step-{step}"
        objective, retain = (load_file(folder / f"{name}.safetensors") for name in ("objective", "retain"))
        made = {name: rectify(objective[name].flatten().double(), retain[name].flatten().double()) for name in retain}
        length = math.sqrt(sum(float(each.double().square().sum()) for each in objective.values()))
        scale = length / math.sqrt(sum(float(each.square().sum()) for each in made.values()))
        expected = -scale * sum(float(made[name] @ retain[name].flatten().double()) for name in made)
        assert by_rule[step, "pcgrad(scope=parameter)"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert by_rule[step, "pcgrad(scope=layer)"] <= 1e-6


def test_groups_add_up_to_the_whole(run: geffect.Run) -> None:
    whole = geffect.simulate(run.path, ["gru"]).set_index(["step", "rule", "target"])["effect"]
    parts = geffect.simulate(run.path, ["gru"], by="group").groupby(["step", "rule", "target"])["effect"].sum()
    assert parts.sort_index().to_numpy() == pytest.approx(whole.sort_index().to_numpy(), rel=1e-9)
    assert {"others"} <= {*whole.index.get_level_values("target")}


def test_the_shell_prints_a_rule_a_line(run: geffect.Run, invoke: Command) -> None:
    ended = invoke("compare", str(run.path), "--simulate", "gru", "--simulate", "gru(cos_clip=-0.5)")
    assert ended.code == 0, ended.err
    assert all(text in ended.out for text in (AS_IT_WAS, "gru(cos_clip=-0.5)", "others", "cosine"))
    told = json.loads(invoke("compare", str(run.path), "--simulate", "gru", "--json").out)
    assert told["run"][1]["retain"] == pytest.approx(simulated(run.path, ["gru"])["retain"].iloc[1])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("grail", "'grail' cannot be simulated"),
        ("none", "'none' cannot be simulated"),
        ("sago", "'sago' cannot be simulated"),  # entry by entry
        ("grux", "'grux' is not a rectifier"),
    ],
)
def test_what_cannot_be_simulated_is_said(rule: str, message: str, run: geffect.Run) -> None:
    with pytest.raises(GeffectError) as caught:
        geffect.simulate(run.path, [rule])
    assert str(caught.value).startswith(message)


def vectors(seed: int, size: int) -> torch.Tensor:
    """Three vectors in a space of so many dimensions."""
    return torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 9))
def test_no_step_of_the_same_gain_and_length_is_cheaper(seed: int, size: int) -> None:
    """A thousand drawn steps Δ with ⟨g_f, Δ⟩ = B and ‖Δ‖ = R lie between the two ends, which are reached."""
    forget, retain, applied = vectors(seed, size)
    found = step_price(torch.stack([forget, retain, applied]) @ torch.stack([forget, retain, applied]).T, NAMES)
    gain, length = -float(forget @ applied), float(applied.norm())
    assert found["gain"] == pytest.approx(gain)
    assert found["harm"] == pytest.approx(-float(retain @ applied))
    along = gain / (forget @ forget) * forget
    rest = math.sqrt(max(0.0, length**2 - float(along @ along)))
    others = torch.randn(1000, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    others = torch.cat([others, retain[None], -retain[None]])
    others = others - (others @ forget / (forget @ forget))[:, None] * forget
    others = along + rest * others / others.norm(dim=1, keepdim=True)
    harms = others @ retain
    slack = 1e-9 * length * float(retain.norm())
    assert harms.min() >= found["cheapest"] - slack
    assert harms.max() <= found["dearest"] + slack
    assert float(harms[-1]) == pytest.approx(found["cheapest"], abs=slack)
    assert float(harms[-2]) == pytest.approx(found["dearest"], abs=slack)
    assert -1e-9 <= found["efficiency"] <= 1 + 1e-9


def test_what_is_free_harms_nothing() -> None:
    """At the gain ``free`` the cheapest step has no harm, just below it a gift, just above it a price."""
    forget, retain = torch.tensor([2.0, 0.0, 0.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    length = 0.5
    free = length * 2 * math.sin(math.pi / 4)
    for share, sign in ((0.9, -1), (1.1, 1)):
        gain = share * free
        step = torch.tensor([gain / 2, 0.0, math.sqrt(length**2 - (gain / 2) ** 2)]).double()
        three = torch.stack([forget, retain, -step])
        found = step_price(three @ three.T, NAMES)
        assert found["free"] == pytest.approx(free)
        assert math.copysign(1, found["cheapest"]) == sign
    apart = torch.stack([forget, -forget, -forget / 4])
    assert step_price(apart @ apart.T, NAMES)["free"] == pytest.approx(0.5 * 2)


def test_the_price_before_any_step_is_that_of_ascent_and_of_the_best_step_of_its_length() -> None:
    """Over drawn steps of ascent's length: none without harm forgets more than the free share, the best forgets it."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        forget, retain = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
        pair = torch.stack([forget, retain])
        found = ascent_price(pair @ pair.T, ("forget", "retain"))
        assert found is not None
        step = forget / forget.norm() ** 2  # forgets one nat
        assert found.harm == pytest.approx(float(step @ retain), rel=1e-12)
        drawn = torch.randn(4000, 4, generator=generator, dtype=torch.float64)
        drawn *= step.norm() / drawn.norm(dim=-1, keepdim=True)
        assert float((drawn @ forget)[drawn @ retain <= 0].max()) <= found.free + 1e-12
        best = step - max(found.harm, 0) * retain / float(retain @ retain)
        best *= step.norm() / best.norm()
        assert float(best @ forget) == pytest.approx(found.free, rel=1e-12)
        assert float(best @ retain) <= 1e-12
    assert ascent_price([[0.0, 0.0], [0.0, 1.0]], ("forget", "retain")) is None


def test_a_run_tells_its_price(run: geffect.Run) -> None:
    frame = run.price()
    assert list(frame["step"]) == [0, 1, 2, 3, 4]
    effects = run.effects().groupby(["step", "target"])["effect"].sum()
    for row in frame.to_dict("records"):
        assert row["gain"] == pytest.approx(effects[row["step"], "forget"])
        assert row["harm"] == pytest.approx(effects[row["step"], "retain"])
        assert row["cheapest"] <= row["harm"] + 1e-9
        assert row["harm"] <= row["dearest"] + 1e-9
    groups = run.price("group")
    assert groups.groupby("step")["gain"].sum().to_numpy() == pytest.approx(frame["gain"].to_numpy())
    with pytest.raises(GeffectError, match="by is 'layers'"):
        run.price("layers")


def test_a_record_without_an_update_has_no_price(known: Path, tmp_path: Path) -> None:
    plain = api.unlearn(config(known, tmp_path / "run", **SETS, steps=1))
    with pytest.raises(GeffectError, match="has no price"):
        plain.price()
