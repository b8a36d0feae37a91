"""Relearning as a curve of one training, 4 bits, and the numbers that compare a model with a retrained one."""

import itertools
import json
import logging
import math
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch

import geffect
from geffect import api
from geffect.config import EvaluateConfig
from geffect.data.encode import encode_set
from geffect.data.load import load_set
from geffect.evaluation import scores
from geffect.evaluation.metrics import METRICS
from geffect.evaluation.results import read_evaluation, values_by_metric
from geffect.evaluation.variants import INT4, NF4, parse_quantization, quantize, quantized
from geffect.evaluation.view import View
from geffect.models.load import Loaded, load
from tests.conftest import Command

SETS = ["forget=builtin:authors/forget[:6]", "heldout=builtin:authors/heldout[:4]"]
SIDES = ["forget=builtin:authors/forget[:8]", "holdout=builtin:authors/heldout[:8]"]


@pytest.fixture(scope="module")
def loaded(known: Path) -> Loaded:
    return load(str(known))


def evaluate(model: Path, out: Path, **given: Any) -> Path:
    return api.evaluate(EvaluateConfig.read(model=str(model), out=out, **given)).path


def values_of(path: Path, model: str) -> list[float]:
    frame = read_evaluation(path)
    values: list[float] = frame[frame["model"] == model]["value"].tolist()
    return values


@pytest.fixture(scope="module")
def curve(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("curve") / "out"
    return evaluate(known, path, metric=["loss", "probability"], set=SETS, relearn="0,2,3,5", relearn_rate=3e-3)


def test_a_curve_is_the_relearnings_of_each_length(curve: Path, known: Path, tmp_path: Path) -> None:
    for steps in (3, 5):
        given = {"metric": ["loss", "probability"], "set": SETS, "relearn": steps, "relearn_rate": 3e-3}
        alone = evaluate(known, tmp_path / str(steps), **given)
        assert values_of(curve, f"{known} relearned {steps}") == values_of(alone, f"{known} relearned")
    models = json.loads((curve / "metrics.json").read_text())["models"]
    assert [each["totals"].get("relearn_steps") for each in models.values()] == [None, 2, 3, 5]
    losses = [each["sets"]["forget"]["loss"]["mean"] for each in models.values()]
    assert losses[-1] < losses[0]


def test_the_curve_is_drawn(curve: Path, known: Path, tmp_path: Path, invoke: Command) -> None:
    assert "relearning.csv" in invoke("plot", curve, "--out", tmp_path / "drawn").out
    rows = pd.read_csv(tmp_path / "drawn" / "relearning.csv")
    assert rows[(rows["set"] == "forget") & (rows["metric"] == "loss")]["step"].tolist() == [0, 2, 3, 5]
    figure = geffect.Run(curve).plot("relearning")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats a token)", "probability (0 to 1)"]
    means = [each["sets"]["forget"]["loss"]["mean"] for each in geffect.Evaluation(curve).metrics.values()]
    drawn = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines}
    assert drawn["out: forget"] == pytest.approx(means)
    ended = invoke("plot", evaluate(known, tmp_path / "plain", metric=["loss"], set=SETS))
    assert ended.code == 2
    assert "has no evaluation of a relearned model. Run geffect evaluate with --relearn 0,5,20,100" in ended.err


@pytest.mark.parametrize("text", ["nf4", "int4", "nf4(group=5)", "int4(group=100)"])
def test_four_bits_are_the_nearest_levels_of_each_group(text: str) -> None:
    kind, weight = parse_quantization(text), torch.randn(7, 33, generator=torch.Generator().manual_seed(1)).double()
    weight[2] = 0
    levels = [float(each) for each in (NF4 if kind.levels == "nf4" else INT4)]
    found = quantize(weight, kind)
    for i, row in enumerate(weight.tolist()):
        for start in range(0, len(row), kind.group):
            group = row[start : start + kind.group]
            largest = max(map(abs, group))
            nearest = [largest * min(levels, key=lambda each, w=w: abs(each * largest - w)) for w in group]  # type: ignore[misc]
            assert found[i, start : start + kind.group].tolist() == pytest.approx(nearest, abs=1e-12)
    assert torch.equal(quantize(found, kind), found) or kind.levels == "int4", "levels keep their places"


def test_the_levels_are_sixteen_or_fifteen_and_hold_zero() -> None:
    assert (len(NF4), len(INT4), NF4[7], INT4[7]) == (16, 15, 0.0, 0.0)
    assert list(NF4) == sorted(NF4)
    assert [min(NF4), max(NF4), min(INT4), max(INT4)] == [-1, 1, -1, 1]


def test_weights_come_back_and_ties_stay(loaded: Loaded) -> None:
    model = deepcopy(loaded.model)
    model.lm_head.weight = model.model.embed_tokens.weight
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    with quantized(model, parse_quantization("nf4")):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        for name, each in model.named_parameters():
            assert torch.equal(each, before[name]) == ("norm" in name or "embed" in name)
            assert ".layers." not in name or each.dim() < 2 or len(each[0, :32].unique()) <= 16
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())


def test_a_model_in_four_bits_stands_beside_it(known: Path, loaded: Loaded, tmp_path: Path) -> None:
    path = evaluate(known, tmp_path / "out", metric=["loss"], set=SETS[:1], quantize=["nf4", "int4(group=16)"])
    rows = load_set(SETS[0].partition("=")[2])
    for text in ("nf4", "int4(group=16)"):
        model = deepcopy(loaded.model)
        for block in model.model.layers:
            for module in block.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.data = quantize(module.weight.data, parse_quantization(text))
        view = View(model, loaded.tokenizer, rows, partial(encode_set, loaded.tokenizer))
        assert values_of(path, f"{known} {text}") == METRICS["loss"](view)
    assert values_of(path, str(known)) != values_of(path, f"{known} nf4")


def test_norms_by_group_are_those_of_plain_autograd(loaded: Loaded) -> None:
    model, rows = deepcopy(loaded.model).double().eval(), load_set("builtin:authors/forget[:3]")
    view = View(model, loaded.tokenizer, rows, partial(encode_set, loaded.tokenizer))
    parts = {"embed": ["embed"], "shallow": ["layers.0."], "middle": ["layers.1."], "lm_head": ["lm_head"]}
    parts |= {"deep": ["layers.2.", "model.norm"]}
    found = {group: METRICS[f"gradient_norm_{group}"](view) for group in parts}
    for i, row in enumerate(view.encoded):
        logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]))
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        for group, marks in parts.items():
            inside = [each.flatten() for name, each in gradients.items() if any(mark in name for mark in marks)]
            assert found[group][i] == pytest.approx(float(torch.cat(inside).norm()), rel=1e-9)
    whole = METRICS["gradient_norm"](view)
    assert [math.sqrt(sum(x**2 for x in each)) for each in zip(*found.values(), strict=True)] == pytest.approx(whole)
    assert all(map(math.isnan, METRICS["gradient_norm_tied"](view)))


@pytest.fixture(scope="module")
def compared(known: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The evaluation of a model, and the one of a model that never saw the forget set."""
    folder = tmp_path_factory.mktemp("compared")
    given = {
        "metric": ["unlearning_score", "auc_loss", "auc_gradient_norm_deep"],
        "set": [*SIDES, "retain=builtin:authors/retain[:4]"],
        "max_new_tokens": 8,
    }
    reference = evaluate(start, folder / "reference", **given)
    return evaluate(known, folder / "out", **given, reference=reference), reference


def test_beside_an_auc_stands_its_difference_from_the_reference_s(compared: tuple[Path, Path], known: Path) -> None:
    path, reference = compared
    totals = geffect.Evaluation(path).metrics[str(known)]["totals"]
    for metric in ("loss", "gradient_norm_deep"):
        values = [values_by_metric(read_evaluation(each)) for each in compared]
        ours, theirs = (
            sum((a < b) + 0.5 * (a == b) for a, b in itertools.product(each["forget", metric], each["holdout", metric]))
            for each in values
        )
        assert totals[f"auc_{metric}"] == pytest.approx(ours / 64)
        assert totals[f"rel_diff_{metric}"] == pytest.approx(100 * (ours - theirs) / theirs)
    alone = json.loads((reference / "metrics.json").read_text())["models"]
    assert not any("rel_diff" in name for each in alone.values() for name in each["totals"])
    assert math.isnan(scores.relative_difference(0.3, 0.0))


def test_the_score_is_the_harmonic_mean_of_its_parts(compared: tuple[Path, Path], known: Path) -> None:
    path, _ = compared
    ours, theirs = (values_by_metric(read_evaluation(each)) for each in compared)
    found: Any = geffect.Evaluation(path).metrics[str(known)]["totals"]["unlearning_score"]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def harmonic(values: list[float]) -> float:
        return len(values) / sum(1 / each for each in values)

    right = [1 / (1 + math.exp(each)) for each in ours["forget", "log_truth_ratio_geometric"]]
    memorized = [ours["forget", name] for name in ("extraction_strength", "exact_memorization")]
    parts = [*memorized, ours["forget", "paraphrase_probability"], right]
    assert found["memorization"] == pytest.approx(harmonic([1 - mean(each) for each in parts]))
    kept = [ours["retain", name] for name in ("probability", "rouge_l_recall", "retain_truth")]
    means = [mean(each) for each in kept]
    assert found["utility"] == pytest.approx(harmonic(means) if min(means) else 0)
    shares = []
    for name in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        one, other = (scores.auc(each["forget", name], each["holdout", name]) for each in (ours, theirs))
        shares.append(1 - abs(one - other) / max(other, 1 - other))
    assert found["privacy"] == pytest.approx(harmonic(shares) if min(shares) else 0)
    three = [found[name] for name in ("memorization", "privacy", "utility")]
    assert found["harmonic_mean"] == (pytest.approx(harmonic(three)) if min(three) else None)


def test_a_score_without_a_part_is_none_and_says_so(
    compared: tuple[Path, Path], start: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from geffect.evaluation.suites import DERIVED

    alone: Any = geffect.Evaluation(compared[1]).metrics[str(start)]["totals"]["unlearning_score"]
    assert (alone["privacy"], alone["harmonic_mean"]) == (None, None)
    values = values_by_metric(read_evaluation(compared[0]))
    with caplog.at_level(logging.WARNING, "geffect"):
        DERIVED["unlearning_score"].compute(values, None)
    assert "unlearning_score is NaN: its privacy is missing" in caplog.text
    gone = {key: [0.0] * len(each) if key[0] == "retain" else each for key, each in values.items()}
    with caplog.at_level(logging.WARNING, "geffect"):
        DERIVED["unlearning_score"].compute(gone, gone)
    assert "unlearning_score is NaN: its utility is 0" in caplog.text
