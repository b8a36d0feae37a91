"""The outcome of a run: each verdict on a real one, and the judgement against hand-made examples and chance."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geffect import api
from geffect.config import FinetuneConfig
from geffect.record.reader import StepLine, read_lines
from geffect.record.schema import FORMAT, STEPS
from geffect.reports.outcome import NOT_SELECTIVE, NOT_TOLD, NOTHING, SELECTIVE, Outcome, judge, outcome
from tests.conftest import Command, config

RETAIN = "builtin:authors/retain[:12]"


def judged(lines: Sequence[dict[str, Any]]) -> Outcome:
    return judge([StepLine.of(line) for line in lines])


@pytest.fixture(scope="module")
def both(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that knows the forget and the retain set."""
    known = ["builtin:authors/forget[:12]", RETAIN]
    fitted = FinetuneConfig.read(
        model=str(start),
        train=known,
        epochs=80,
        learning_rate=1e-2,
        until_accuracy=0.9,
        out=tmp_path_factory.mktemp("both") / "fit",
    )
    return api.finetune(fitted).path


RUNS: dict[str, dict[str, Any]] = {
    SELECTIVE: {"objective": "npo + 5*gd", "steps": 30, "learning_rate": 3e-3},
    NOT_SELECTIVE: {"steps": 12, "learning_rate": 3e-3},
    NOTHING: {"learning_rate": 1e-6},
    NOT_TOLD: {"steps": 3, "forget": "builtin:authors/forget[:4]", "retain": "builtin:authors/retain[:4]"},
}
HEADS = {
    SELECTIVE: "Selective: forget accuracy 0.",
    NOT_SELECTIVE: "Not selective: forget accuracy 0.",
    NOTHING: "Nothing was forgotten: forget accuracy 0.",
    NOT_TOLD: "Not told from noise whether",
}


@pytest.mark.parametrize("verdict", RUNS)
def test_a_real_run_of_each_verdict(both: Path, tmp_path: Path, verdict: str) -> None:
    path = api.unlearn(config(both, tmp_path / "run", **({"retain": RETAIN, "heldout": None} | RUNS[verdict]))).path
    found = outcome(path)
    assert found.verdict == verdict, found.sentence
    assert found.sentence.startswith(HEADS[verdict])
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    for each, name in ((found.forget, "forget"), (found.compared, "retain")):
        assert each is not None
        for change, kind in ((each.accuracy, "accuracy"), (each.loss, "loss")):
            assert change.start == pytest.approx(metrics["start"][name][kind], abs=1e-6)
            assert change.end == pytest.approx(metrics["end"][name][kind], abs=1e-6)
    assert ("--learning-rate" in found.sentence) == (verdict == NOTHING)
    assert "No heldout set was evaluated" in found.sentence


def test_unlearn_says_its_outcome_first(both: Path, tmp_path: Path, invoke: Command) -> None:
    out = tmp_path / "run"
    told = invoke(
        "unlearn",
        "--model",
        both,
        "--forget",
        "builtin:authors/forget[:8]",
        "--retain",
        RETAIN,
        "--steps",
        1,
        "--learning-rate",
        1e-6,
        "--out",
        out,
    )
    assert told.code in (0, None), told.err
    first = told.out.splitlines()[0]
    assert first == outcome(out).sentence
    assert first.startswith("Nothing was forgotten")
    assert "Try a larger --learning-rate or more --steps." in first


def lines(
    forget: tuple[float, float], heldout: tuple[float, float], examples: int = 40, role: str = "heldout", **changes: Any
) -> list[dict[str, Any]]:
    """Two evaluations of sets of twenty tokens an example, with these accuracies, give or take a few tokens."""
    generator, found = np.random.default_rng(0), []
    for end in (0, 1):
        line: dict[str, Any] = {"step": 25 * end, "evaluation": {}, "evaluation_examples": {}}
        for name, both in (("forget", forget), (role, heldout)):
            right = generator.binomial(20, both[end], size=examples)
            nll = -20 * np.log(both[end]) * generator.uniform(0.8, 1.2, size=examples)
            line["evaluation"][name] = {"loss": float(nll.sum()) / 20 / examples, "accuracy": right.mean() / 20}
            line["evaluation_examples"][name] = {
                "nll": nll.tolist(),
                "right": right.tolist(),
                "tokens": [20] * examples,
            }
        found.append(line)
    return found


def test_a_ruined_model_is_not_selective() -> None:
    found = judged(lines((0.93, 0.51), (0.94, 0.55)))
    assert found.verdict == NOT_SELECTIVE
    assert found.sentence.startswith("Not selective: forget accuracy 0.")
    assert "heldout accuracy 0." in found.sentence
    assert "the difference is not told from noise" in found.sentence
    assert found.difference is not None
    assert found.difference["accuracy"].low < 0 < found.difference["accuracy"].high


@pytest.mark.parametrize(
    ("forget", "heldout", "verdict"),
    [
        ((0.93, 0.20), (0.94, 0.90), SELECTIVE),
        ((0.93, 0.20), (0.94, 0.40), NOT_SELECTIVE),  # more than half as much, though the difference is told
        ((0.93, 0.93), (0.94, 0.94), NOTHING),
        ((0.93, 0.93), (0.94, 0.50), NOT_SELECTIVE),  # the heldout set was forgotten, the forget set was not
        ((0.50, 0.90), (0.94, 0.94), NOTHING),  # better known than before
        ((0.93, 0.20), (0.40, 0.15), NOT_SELECTIVE),  # shares count: a quarter of the tokens is most of what it knew
    ],
)
def test_the_verdict_is_that_of_the_shares_lost(
    forget: tuple[float, float], heldout: tuple[float, float], verdict: str
) -> None:
    found = judged(lines(forget, heldout))
    assert found.verdict == verdict, found.sentence
    assert found.judged_by == (None if verdict == NOTHING else "accuracy")


def test_the_retain_set_stands_in_where_there_is_no_heldout_set_and_domains_count_together() -> None:
    for role, name in (("heldout", "heldout"), ("retain", "retain"), ("heldout", "heldout")):
        found = judged(lines((0.93, 0.20), (0.94, 0.90), role=role)).compared
        assert found is not None
        assert found.name == name
    one, other = lines((0.93, 0.20), (0.94, 0.90)), lines((0.8, 0.7), (0.9, 0.9), examples=10)
    merged = [
        {
            "step": a["step"],
            **{
                key: {
                    f"{name}/{domain}": each
                    for domain, line in (("a", a), ("b", b))
                    for name, each in line[key].items()
                }
                for key in ("evaluation", "evaluation_examples")
            },
        }
        for a, b in zip(one, other, strict=True)
    ]
    forget = judged(merged).forget
    assert forget is not None
    assert forget.examples == 50
    rights = [
        sum(each["evaluation_examples"][name]["right"]) for each in merged[:1] for name in ("forget/a", "forget/b")
    ]
    assert forget.accuracy.start == pytest.approx(sum(rights) / 1000)


def test_where_accuracies_stand_still_the_probabilities_tell() -> None:
    found = lines((0.93, 0.93), (0.94, 0.94))
    for line, nll in zip(found, (2.0, 20.0), strict=True):
        line["evaluation_examples"]["forget"] |= {
            "right": [18, 19] * 20,
            "nll": np.linspace(0.9 * nll, 1.1 * nll, 40).tolist(),
        }
        line["evaluation_examples"]["heldout"] |= {"right": [18, 19] * 20, "nll": [2.0] * 40}
    outcome = judged(found)
    assert (outcome.verdict, outcome.judged_by) == (SELECTIVE, "probability")
    assert "probability of a token: 59" in outcome.sentence  # 1 − exp(−0.9)


def test_intervals_are_those_of_examples_paired_with_themselves() -> None:
    """Examples that differ among themselves but all rise by one nat: the rise has no spread."""
    found = lines((0.9, 0.5), (0.9, 0.5))
    start = np.linspace(1, 30, 40)
    for line, more in zip(found, (0, 20), strict=True):
        line["evaluation_examples"]["forget"]["nll"] = (start + more).tolist()
    forget = judged(found).forget
    assert forget is not None
    assert forget.loss.change == pytest.approx((1, 1, 1))


def test_no_run_is_selective_whose_labels_say_nothing(both: Path, tmp_path: Path) -> None:
    """Plain ascent on half of what was learned: sets drawn anew from all its examples, 200 times."""
    path = api.unlearn(config(both, tmp_path / "run", retain=RETAIN, heldout=None, steps=6, learning_rate=1e-3)).path
    scored = [line for line in read_lines(path) if "evaluation_examples" in line]
    generator, verdicts = np.random.default_rng(0), []
    for _ in range(200):
        order = generator.permutation(24)
        drawn = []
        for line in (scored[0], scored[-1]):
            rows = {
                kind: np.concatenate([line["evaluation_examples"][name][kind] for name in ("forget", "retain")])[order]
                for kind in ("nll", "right", "tokens")
            }
            halves = {
                name: {kind: each[part].tolist() for kind, each in rows.items()}
                for name, part in (("forget", slice(12)), ("retain", slice(12, 24)))
            }
            drawn.append(line | {"evaluation_examples": halves})
        verdicts.append(judged(drawn).verdict)
    assert NOTHING not in verdicts
    assert verdicts.count(SELECTIVE) <= 2


def test_a_record_without_examples_or_sets_tells_nothing(both: Path, tmp_path: Path) -> None:
    whole = lines((0.93, 0.20), (0.94, 0.90))

    def only(name: str) -> list[dict[str, Any]]:
        return [line | {"evaluation_examples": {name: line["evaluation_examples"][name]}} for line in whole]

    for made, missing in (
        ([], "no set was evaluated. Add --evaluate"),
        (whole[:1], "the sets were evaluated only once"),
        (only("forget"), "of the sets to retain none was evaluated, only forget. Add --evaluate retain or"),
        (only("heldout"), "only heldout was evaluated. Add --evaluate forget"),
    ):
        found = judged(made)
        assert (found.verdict, found.forget, found.steps) == (NOT_TOLD, None, None)
        assert found.sentence.startswith(f"Whether forgetting was selective is unknown: {missing}")


def test_a_record_without_right_tokens_is_judged_by_probabilities() -> None:
    """Accuracies are the evaluation's own, without an interval."""
    made = lines((0.93, 0.20), (0.94, 0.90))
    for line in made:
        for each in line["evaluation_examples"].values():
            del each["right"]
    found = judged(made)
    assert (found.verdict, found.judged_by) == (SELECTIVE, "probability")
    assert found.forget is not None
    assert found.forget.accuracy.end == made[1]["evaluation"]["forget"]["accuracy"]
    assert found.to_json()["forget"]["accuracy"]["change"] == {"value": None, "low": None, "high": None}


def test_a_model_whose_losses_are_not_finite_is_not_selective() -> None:
    made = lines((0.93, 0.20), (0.94, 0.90))
    for each in made[1]["evaluation_examples"].values():
        each |= {"nll": [float("nan")] * 40, "right": [0] * 40}
    found = judged(made)
    assert found.verdict == NOT_SELECTIVE
    json.dumps(found.to_json(), allow_nan=False)


def test_a_damaged_record_is_refused_in_one_line(both: Path, tmp_path: Path) -> None:
    from geffect.errors import GeffectError

    made = lines((0.93, 0.20), (0.94, 0.90))
    del made[1]["evaluation_examples"]["forget"]["nll"]
    (tmp_path / STEPS).write_text(
        "".join(json.dumps({"format": FORMAT} | line) + "\n" for line in made), encoding="utf-8"
    )
    with pytest.raises(GeffectError, match="as geffect writes it: the examples of forget"):
        outcome(tmp_path)
