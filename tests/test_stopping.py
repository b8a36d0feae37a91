"""Rules end a run, say why, and choose a checkpoint; a run that goes on keeps them."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from geffect import api
from geffect.errors import GeffectError
from geffect.record.reader import Score, StepLine, read_lines
from geffect.stopping import Accuracy, Collapse, Dear, ForgetLoss, Knee, checkpoint_choice, first_broken, make_rules
from tests.conftest import config


def line(step: int, forget: float, heldout: float, accuracy: float = 1.0, norm: float | None = None) -> StepLine:
    scores = {"forget": Score(forget, 0.5), "heldout": Score(heldout, accuracy)}
    return StepLine(step, scores, norm_objective=norm)


def test_rules_by_hand() -> None:
    assert Accuracy(0.9).broken([line(0, 1, 1, 0.8), line(1, 2, 1, 0.725)]) is None
    assert Accuracy(0.9).broken([line(0, 1, 1, 0.8), line(1, 2, 1, 0.71)]) == (
        "heldout accuracy 0.710 is below 0.9 of the start's 0.800"
    )
    assert Knee(1.0).broken([line(0, 1, 1), line(1, 3, 2)]) is None
    assert Knee(0.4).broken([line(0, 1, 1), line(1, 3, 2)]) == (
        "heldout loss rose by 1, more than 0.4 times the 2 of the forget loss"
    )
    assert Knee(1.0).broken([line(0, 3, 1), line(1, 2, 0.5)]) is None  # neither is harmed
    assert Knee(1.0).broken([line(0, 3, 1), line(1, 2, 1.5)]) is not None  # remembers, and harms
    assert Collapse(0.1).broken([line(0, 1, 1, norm=5.0), line(1, 1, 1, norm=0.6)]) is None
    assert Collapse(0.1).broken([line(0, 1, 1, norm=5.0), line(1, 1, 1, norm=0.4)]) == (
        "the objective's gradient has norm 0.4, below 0.1 of the first's 5"
    )
    assert ForgetLoss(3.0).broken([line(0, 1, 1), line(1, 2.9, 1)]) is None
    assert ForgetLoss(3.0).broken([line(0, 1, 1), line(1, 3, 1)]) == "the forget loss 3 has reached 3"
    for rule in (Accuracy(), Knee(), Collapse(), Dear(), ForgetLoss()):
        assert rule.broken([]) is None
        assert rule.broken([StepLine(0)]) is None
        assert rule.broken([line(0, 1, 1, 0.0, 0.0)]) is None


def test_the_last_checkpoint_before_a_rule_is_broken_is_chosen() -> None:
    rules = make_rules("accuracy(share=0.9)")
    lines = [line(0, 1, 1), line(2, 2, 1, 0.95), line(4, 3, 2, 0.92), line(6, 9, 8, 0.5)]
    assert first_broken(rules, lines) == ("accuracy", Accuracy(0.9).broken(lines))
    assert checkpoint_choice(rules, lines, [2, 4, 6])["checkpoint"] == "checkpoint-4"
    assert checkpoint_choice(rules, lines, [2, 3, 6])["checkpoint"] == "checkpoint-2"
    assert checkpoint_choice(rules, lines, [6]) == {
        "checkpoint": None,
        "reason": "none was saved and evaluated before a rule was broken: lower --save-every",
    }


def test_forgetting_is_dear_once_the_cheapest_step_costs_too_much() -> None:
    """g_f = (1, 0), g_r = (0.6, 0.8), steps of length 1: a step along g_f costs 0.6 a nat, and none is cheaper."""
    vectors = {"forget": (1.0, 0.0), "retain": (0.6, 0.8), "objective": (-1.0, 0.0), "rectified": (-0.8, 0.6)}

    def measured(*names: str) -> StepLine:
        pairs = itertools.combinations_with_replacement(names, 2)
        products = [sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True)) / 2 for a, b in pairs]
        return StepLine.of({"step": 0, "gram": {"gradients": list(names), "values": [products, products]}})

    ascent, free = measured("objective", "forget", "retain"), measured("objective", "forget", "retain", "rectified")
    assert Dear(0.59).broken([ascent, StepLine(1)]) == (
        "a nat of forgetting costs at least 0.6 nats of retain loss at this length of step, more than 0.59"
    )
    assert Dear(0.61).broken([ascent]) is None
    assert Dear(0.01).broken([free]) is None  # gains 0.8 = sin θ, the most that is free
    assert Dear(0.01).broken([measured("objective", "forget")]) is None


def test_a_run_ends_where_forgetting_is_dear(known: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(known, tmp_path / "run", stop="dear(cost=1e-6)", steps=6, diagnose_every=2)).path
    last = read_lines(run)[-1]["stopped"]
    assert last["rule"] == "dear" and last["reason"].startswith("a nat of forgetting costs at least")


@pytest.mark.parametrize(
    "text",
    [
        "dear(cost=0)",
        "accuracy(share=0)",
        "accuracy(share=1.5)",
        "knee(harm=0)",
        "forget_loss(level=0)",
        "collapse(share=2)",
        "2*kept",
        "kept + kept",
        "patience",
        "kept(below=1)",
    ],
)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(GeffectError, match=r"It should be|stop rule|has no parameter") as caught:
        make_rules(text)
    assert "\n" not in str(caught.value) and caught.value.remedy


@pytest.fixture(scope="module")
def stopped(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {
        "stop": "collapse + accuracy(share=0.8)",
        "evaluate_every": 1,
        "save_every": 1,
        "steps": 30,
        "learning_rate": 3e-3,
        "heldout": None,
    }
    return api.unlearn(config(known, tmp_path_factory.mktemp("stopped") / "run", **changes)).path


def test_a_run_ends_with_its_reason_and_names_the_checkpoint_before(stopped: Path) -> None:
    lines = read_lines(stopped)
    *others, last = lines
    assert last["stopped"]["rule"] == "accuracy"
    assert last["step"] < 30
    assert last["stopped"]["reason"].startswith("retain accuracy")
    assert not any("stopped" in each for each in others)
    found = json.loads((stopped / "metrics.json").read_text())["chosen"]
    before = [each["step"] for each in others if each["step"]]
    assert found["checkpoint"] == (f"checkpoint-{before[-1]}" if before else None)
    assert last["evaluation"]["retain"]["accuracy"] < 0.8 * lines[0]["evaluation"]["retain"]["accuracy"]


def test_a_run_that_goes_on_ends_where_it_would_have(stopped: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(stopped, again)
    for name in ("DONE", "metrics.json"):
        (again / name).unlink()
    folders = sorted((again / "checkpoints").iterdir(), key=lambda each: int(each.name[11:]))
    for folder in folders[1:]:
        shutil.rmtree(folder)
    from geffect.config import UnlearnConfig

    api.unlearn(UnlearnConfig.read(again / "config.yaml", out=again), resume=True)
    assert read_lines(again)[-1]["stopped"] == read_lines(stopped)[-1]["stopped"]
    assert read_lines(again)[-1]["step"] == read_lines(stopped)[-1]["step"]
    assert (again / "metrics.json").exists()


def test_a_collapsed_gradient_ends_a_run_between_evaluations(known: Path, tmp_path: Path) -> None:
    run = api.unlearn(
        config(
            known,
            tmp_path / "run",
            objective="npo(beta=0.1)",
            stop="collapse(share=0.9999)",
            steps=20,
            evaluate_every=20,
            learning_rate=1e-2,
        )
    ).path
    last = read_lines(run)[-1]
    assert last["stopped"]["rule"] == "collapse"
    assert 0 < last["step"] < 20
    assert "evaluation" in last


def test_rules_need_the_sets_they_look_at(known: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match="--stop needs a forget set and a retain or heldout set evaluated"):
        api.unlearn(config(known, tmp_path / "run", stop="accuracy", evaluate=["forget"]))
