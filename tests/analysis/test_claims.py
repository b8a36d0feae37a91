"""The papers' claims: each rule where it must hold and where it must fail, verdicts, and one claim from the command."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import claims
from analysis.claims import RULES, Frames, draw, judge, measure, read_claims, verdict
from analysis.claims_runs import Seed, planned, smollm2, tiny
from tests.support.pictures import fits

STEPS = np.arange(0, 28, 4)
GROUPS = ("embed", "shallow", "middle", "deep", "lm_head")
EVEN = (0.01, 0.4, 0.1, 0.1, 0.39)


def checkpoints(unlearn: Any, retain: Any = None, shares: Any = EVEN, cosine: float = -0.5) -> pd.DataFrame:
    """G-effects by step, each dealt out to groups by the shares; the forget loss is the step over 4."""
    unlearn = np.asarray(unlearn, float)
    retain = unlearn if retain is None else np.asarray(retain, float)
    parts = [
        {"step": STEPS, "group": group, "unlearn": unlearn * share, "retain": retain * share}
        | {"forget_loss": STEPS / 4, "cosine": cosine}
        for group, share in zip(GROUPS, shares, strict=True)
    ]
    return pd.concat(map(pd.DataFrame, parts), ignore_index=True)


def curve(kept: float, cosine: Any = None, retain: float = 0.0, speed: float = 0.5) -> pd.DataFrame:
    """A run whose heldout accuracy falls straight to ``kept`` where the forget loss is 3, at step 6."""
    steps = np.arange(8)
    values = {"step": steps, "forget_loss": speed * steps, "heldout_accuracy": 1 - (1 - kept) * steps / 6}
    losses = {"heldout_loss": np.cumsum([0, 1, 3, 2, 6, 5, 4, 7]), "retain_loss": retain * steps / 6}
    return pd.DataFrame(values | losses | {"cosine": np.full(8, np.nan) if cosine is None else cosine})


def points(high: float, low: float, last: float) -> pd.DataFrame:
    """NPO's weights of ten examples, 1 at the start, and |PG_re| of those with high and low ones."""
    weights = np.array([*np.linspace(0.7, 0.9, 5), *np.linspace(0.05, 0.15, 5)])
    effects = np.array([*np.linspace(high, 0.9 * high, 5), *np.linspace(low, 0.9 * low, 5)])
    frames = [pd.DataFrame({"step": 0, "npo": np.ones(10), "retain": effects})]
    frames += [pd.DataFrame({"step": step, "npo": weights, "retain": -effects}) for step in (4, 8)]
    return pd.concat([*frames, pd.DataFrame({"step": 12, "npo": weights * last / weights.mean(), "retain": effects})])


def success(score: float) -> pd.DataFrame:
    return pd.DataFrame({kind: [score + 1, score - 1] for kind in ("US", "RS", "HS")})


def overlap(within: float, across: float) -> pd.DataFrame:
    names = [f"{split}/{domain}" for domain in ("privacy", "copyright") for split in ("forget", "retain")]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    values = [1.0 if a == b else within if a.split("/")[1] == b.split("/")[1] else across for a, b in pairs]
    frame = pd.DataFrame(pairs, columns=["gradient", "other"]).assign(jaccard=values)
    return pd.concat([frame.assign(share=0.1), frame.assign(share=0.5, jaccard=1 - frame["jaccard"])])


def prediction(factor: float, reading: str) -> pd.DataFrame:
    """Two steps that raise both losses by 1 each, and what was predicted of them; another reading predicts nothing."""
    keys = [(target, step) for target in ("forget", "retain") for step in (0, 1)]
    rows = [{"target": t, "step": s, "before": s, "after": s + 1.0} for t, s in keys]
    frame = pd.DataFrame(rows)
    other = "update" if reading == "gradient" else "gradient"
    return pd.concat([frame.assign(reading=reading, predicted=factor), frame.assign(reading=other, predicted=9.0)])


UP = -(2.0 ** np.arange(7))  # e_u doubles from checkpoint to checkpoint
BACK = np.array([-1, -1.5, -2, -2, -1, -0.4, -0.1])
EARLY, LATE = np.array([-1, -4, -6, -5, -0.5, 0.5, 1]), np.array([-1, -1, -2, -3, -5, -7, -6])
FALL = -np.array([1, 3, 2, 6, 5, 4, 7, 0]) / 10  # of a step whose heldout loss rises by as much
ALONG = -np.array([1, 2, 4, 3, 5, 7, 6, 0]) / 10  # falls along the run as that rises, and within it goes the other way
CASES: dict[str, tuple[Frames, ...]] = {
    "1a": tuple({"GA checkpoints": checkpoints(UP, retain)} for retain in (UP / 3, -UP)),
    "1b": tuple({"GA checkpoints": checkpoints(UP, cosine=cosine)} for cosine in (-0.1, 0.1)),
    "2a": tuple({"GA checkpoints": checkpoints(unlearn)} for unlearn in (UP, BACK)),
    "2b": tuple({"GA checkpoints": checkpoints(UP), "WGA checkpoints": checkpoints(w)} for w in (BACK, UP / 5)),
    "3a": tuple(
        {"GA checkpoints": checkpoints(a), "NPO checkpoints": checkpoints(9 * b)} for a, b in ((UP, BACK), (BACK, UP))
    ),
    "3c": tuple({"NPO checkpoints: points": points(1, 9, last)} for last in (0.2, 0.8)),
    "3d": tuple({"NPO checkpoints: points": points(high, low, 0.3)} for high, low in ((1, 9), (9, 1))),
    "5a": tuple({"PO checkpoints": checkpoints(unlearn)} for unlearn in (EARLY, LATE)),
    "8a": tuple({"GA checkpoints": checkpoints(UP, shares=s)} for s in (EVEN, (0.01, 0.1, 0.4, 0.1, 0.39))),
    "8b": tuple({"GA checkpoints": checkpoints(UP, shares=s)} for s in (EVEN, (0.3, 0.1, 0.1, 0.1, 0.4))),
    "8c": tuple({"GA checkpoints": checkpoints(UP, shares=s)} for s in (EVEN, (0.3, 0.3, 0.2, 0.1, 0.1))),
    "8d": tuple({"GA checkpoints": checkpoints(unlearn)} for unlearn in (UP, BACK)),
    "10a": tuple({name: curve(0.5, cosine) for name in ("GA", "NPO", "WGA")} for cosine in (FALL, -FALL)),
    "10b": tuple({name: curve(0.5, cosine) for name in ("GA", "NPO", "WGA")} for cosine in (FALL, ALONG)),
    "12": tuple({"GA, GRU": curve(0.7, retain=retain), "GA": curve(0.6, retain=1)} for retain in (0.05, 0.2)),
    "16a": ({"localized": overlap(0.4, 0.2)}, {"localized": overlap(0.2, 0.4)}),
    "16b": ({"localized": overlap(0.4, 0.2)}, {"localized": overlap(0.4, 0.03)}),
}
CASES |= {"3b": CASES["3a"], "3e": CASES["3d"], "5b": CASES["5a"]}


def cases(key: str, seed: Seed) -> tuple[Frames, ...]:
    """A claim's frames where it must hold and where it must fail; names of runs are the table's."""
    if key in CASES:
        return CASES[key]
    names = seed.matching(read_claims()["runs"][key])
    kind = seed.plan[names[0]].kind
    if kind == "prediction":
        reading = "update" if key == "9c" else "gradient"
        return {names[0]: prediction(1.05, reading)}, {names[0]: prediction(0.8, reading)}
    if key.startswith("6"):
        ends = {name: curve(0.5, speed=1 + (i == 0)) for i, name in enumerate(names)}
        return {name: frame.assign(forget_loss=frame["forget_loss"] ** 2) for name, frame in ends.items()}, ends
    first = {
        "7a": "KL",
        "7b": "KL",
        "11e": "GRU",
        "13": "1: GRAIL",
        "14a": "GRAIL",
        "14b": "GRAIL",
        "17a": "=0.5",
        "17b": "=0.5",
    }
    mine = [
        name
        for name in names
        if first.get(key, names[0].rpartition(", ")[0] if kind == "domains" else names[0]) in name
    ]
    mine = [name for name in mine if "random" not in name or "labels" in name]
    make: Any = success if kind == "domains" else curve
    high, low = (80, 60) if kind == "domains" else (0.8, 0.6)
    return tuple({n: make(a if n in mine else b) for n in names} for a, b in ((high, low), (low, high)))


@pytest.fixture
def seed(tmp_path: Path) -> Seed:
    return Seed(planned(tiny(), 0), tmp_path)


@pytest.mark.parametrize("key", RULES)
def test_each_rule_holds_where_it_must_and_fails_where_it_must(key: str, seed: Seed) -> None:
    for frames, sign in zip(cases(key, seed), (1, -1), strict=True):
        margin = measure(key, frames, 0).iloc[0]
        assert margin["quantity"] == "margin"
        assert np.sign(margin["value"]) == sign


def test_what_a_run_never_comes_to_is_undecided() -> None:
    slow = curve(0.9, speed=0.1)
    assert np.isnan(RULES["4a"]({"TNPO": slow, "NPO": curve(0.5)})["margin"])
    weights = {
        f"GA + {w} {term}": curve(0.6 if term == "GD" else 0.7) for w in ("0.3", "1", "3") for term in ("KL", "GD")
    }
    assert RULES["7a"](weights | {"GA + 3 KL": slow})["margin"] == pytest.approx(0.1)  # of the weights that come to it


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([0.9, 1.0, 1.1], "holds"),
        ([-0.9, -1.0, -1.1], "fails"),
        ([0.1, 1.0, 1.9], "unclear"),  # every seed agrees, the interval has 0 in it
        ([-0.01, *[1.0] * 20], "unclear"),  # the interval has not, one seed contradicts
        ([1.0, 1.1], "unclear"),
        ([1.0, 1.1, np.nan], "unclear"),
    ],
)
def test_a_verdict_takes_all_seeds_and_the_interval(margins: list[float], expected: str) -> None:
    found, low, high = verdict(margins)
    assert found == expected
    if len(margins) == 3 and np.isfinite(margins).all():  # t of 2 degrees of freedom: 4.3027
        mean, error = np.mean(margins), 4.302653 * np.std(margins, ddof=1) / np.sqrt(3)
        assert (low, high) == pytest.approx((mean - error, mean + error), rel=1e-6)


def test_the_table_and_the_rules_are_one_and_name_runs_that_are_planned(tmp_path: Path) -> None:
    table = read_claims()
    assert list(table.index) == list(RULES)
    assert table.notna().all(axis=None)
    assert table["rule"].str.contains("Margin|as \\d").all()
    for model in (tiny(), smollm2("start-{seed}", "data")):
        runs = Seed(planned(model, 7), tmp_path)
        assert all(runs.matching([pattern]) for patterns in table["runs"] for pattern in patterns)
        named = runs.closure([name for patterns in table["runs"] for name in runs.matching(patterns)])
        assert set(named) == set(runs.plan)  # no run that no claim reads
        assert {plan.settings["seed"] for plan in runs.plan.values()} == {7}
    assert runs.plan["GA"].settings["model"] == "start-7"
    assert len({runs.place(name) for name in runs.plan}) == len(runs.plan)


def test_the_picture_shows_every_verdict(seed: Seed) -> None:
    table = read_claims()
    signs = {"1a": (0, 0, 0), "1b": (1, 1, 1), "2a": (0, 1, 0)}
    rows = [measure(key, cases(key, seed)[sign[s]], s) for key, sign in signs.items() for s in range(3)]
    measured = pd.concat(rows)
    measured.loc[measured["quantity"] == "margin", "value"] *= [1, 1.01, 1.02] * 3
    found = judge(table.loc[list(signs)], measured)
    assert list(found["verdict"]) == ["holds", "fails", "unclear"]
    assert list(found["seeds that agree"]) == [3, 0, 2]
    fits(draw(found))


@pytest.mark.slow
def test_one_claim_from_the_command_to_its_picture(tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--steps", "2", "--seeds", "2", "--only", "1b", "9a"]
    claims.command([*arguments, "--plan"])
    assert not list(tmp_path.iterdir())
    claims.command(arguments)
    out = tmp_path / "tiny-2-steps"
    measured, verdicts = pd.read_csv(out / "claims.csv"), pd.read_csv(out / "verdicts.csv")
    assert set(measured["seed"]) == {0, 1}
    margins = measured.loc[measured["quantity"] == "margin", "value"]
    assert margins.nunique() == 4  # two starts, two orders
    assert list(verdicts["verdict"]) == ["unclear", "unclear"]  # of two seeds
    assert not list(out.glob("*/GA*/checkpoints/checkpoint-*"))  # no weights but the starts'
    assert (out / "verdicts.png").stat().st_size > 1000
    configs = yaml.safe_load((out / "configs.yaml").read_text(encoding="utf-8"))
    assert configs["start"]["model"] == "builtin:tiny-untrained"
    assert str(tmp_path) not in (out / "configs.yaml").read_text(encoding="utf-8")
