"""Findings: what is planted is found, and what is noise is not printed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from geffect.core.forward import forward
from geffect.core.groups import layer_groups
from geffect.core.layers import layout
from geffect.core.statistics import LEVEL, over_steps
from geffect.data.encode import collate, encode_set
from geffect.data.load import load_set
from geffect.reports.findings import Finding, conflict_at_checkpoints, findings_of, target_effects

STEPS, BATCH, SEEDS = 60, 4, 20
Numbers = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def pool(start: Path) -> tuple[dict[str, Numbers], int]:
    """Inner products of 80 rows' own gradients, ``[80, 80]`` a layer group: questions on authors, then passages."""
    from geffect import load_model

    loaded = load_model(str(start))
    both = (load_set("builtin:authors/forget[:40]"), load_set("builtin:domains/copyright/unlearn[:40]"))
    rows = [row for each in both for row in encode_set(loaded.tokenizer, each)]
    gradients: list[dict[str, torch.Tensor]] = [_gradient(loaded, row) for row in rows]
    placed = layout(loaded.model)
    groups = layer_groups(placed.num_blocks, "thirds")
    grams: dict[str, Numbers] = {}
    for name, layer in placed.layers.items():
        rows_of = torch.stack([each[name] for each in gradients]).double()
        grams[groups[layer]] = grams.get(groups[layer], 0) + (rows_of @ rows_of.T).numpy()
    return grams, len(rows)


def _gradient(loaded: Any, row: Any) -> dict[str, torch.Tensor]:
    outputs = forward(loaded.model, collate([row], loaded.tokenizer.pad_token_id))
    named = dict(loaded.model.named_parameters())
    found = torch.autograd.grad(outputs.nll.sum() / (outputs.nll != 0).sum(), list(named.values()))
    return {name: gradient.detach().flatten() for name, gradient in zip(named, found, strict=True)}


def batches(labels: Numbers, generator: np.random.Generator) -> list[Numbers]:
    """Four batches without a row in common: ascended and measured of label 0, descended and measured of label 1."""
    zero, one = (generator.permutation(np.flatnonzero(labels == label)) for label in (0, 1))
    return [zero[:BATCH], zero[BATCH : 2 * BATCH], one[:BATCH], one[BATCH : 2 * BATCH]]


def weights(size: int, rows: Numbers) -> Numbers:
    found = np.zeros(size)
    found[rows] = 1 / len(rows)
    return found


def steps(size: int, drawn: Iterator[list[Numbers]]) -> Iterator[dict[str, Numbers]]:
    """Rows of a run as combinations of the pool's: GradDiff's objective, the two losses, GRU's and momentum's."""
    momentum = np.zeros(size)
    for ascended, forget, descended, retain in drawn:
        objective = weights(size, descended) - weights(size, ascended)
        momentum = 0.8 * momentum + 0.2 * objective
        yield {
            "objective": objective,
            "forget": weights(size, forget),
            "retain": weights(size, retain),
            "applied": momentum.copy(),
        }


def record(grams: dict[str, Numbers], made: Iterator[dict[str, Numbers]]) -> pd.DataFrame:
    """Those rows' inner products, as `geffect.read` gives them."""
    whole, lines = np.sum(list(grams.values()), axis=0), []
    for step, rows in enumerate(made):
        g, m = rows["objective"], rows["retain"]
        rows = rows | {"rectified": g + max(0.0, -float(g @ whole @ m)) / float(m @ whole @ m) * m}
        names = list(rows)
        for group, gram in grams.items():
            lines += [
                (step, group, a, b, float(rows[a] @ gram @ rows[b])) for i, a in enumerate(names) for b in names[i:]
            ]
    return pd.DataFrame(lines, columns=["step", "group", "gradient", "other", "inner"])


def reported(grams: dict[str, Numbers], made: list[dict[str, Numbers]]) -> list[Finding]:
    return findings_of(record(grams, iter(made)), "GRU")


TRUE = np.repeat([0, 1], 40)


def noise(grams: dict[str, Numbers], size: int, seed: int) -> list[Finding]:
    generator = np.random.default_rng(seed)
    drawn = (batches(generator.permutation(TRUE), generator) for _ in range(STEPS))
    return reported(grams, list(steps(size, drawn)))


def planted(grams: dict[str, Numbers], size: int) -> list[Finding]:
    """What is measured as having to stay is of the kind that is ascended: the rest is as with true labels."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(STEPS):
        ascended, forget, descended, _ = batches(TRUE, generator)
        others = np.setdiff1d(np.flatnonzero(TRUE == 0), [*ascended, *forget])
        drawn.append([ascended, forget, descended, generator.permutation(others)[:BATCH]])
    return reported(grams, list(steps(size, iter(drawn))))


@pytest.mark.slow
def test_permuted_labels_show_nothing(pool: tuple[dict[str, Numbers], int]) -> None:
    """Real gradients of rows of two kinds, their labels drawn anew at every step: twenty runs, one finding at most.

    The objective is GradDiff, whose only meaning is the label: rows labeled forget are ascended, rows labeled retain
    descended. Both losses are measured on further rows of each label. Where labels say nothing about rows, swapping the
    ascended and the descended batch is as likely as not, so every inner product of a loss with the objective is
    symmetric about zero: no conflict, no layer that carries it, no step at which it starts, nothing for GRU to remove.
    Labels are drawn at every step and not once a run, as any one split of eighty rows
    makes two sets that truly differ a little.

    Plain ascent (GA) is no such null: to ascend on one half of a pool harms the other half, which is alike. That is
    true, not noise, and `test_ascent_on_half_a_pool_harms_the_other_half` shows it found.
    """
    grams, size = pool
    found = [each for seed in range(SEEDS) for each in noise(grams, size, seed)]
    assert len(found) <= 1, found


def test_the_same_noise_is_printed_at_a_lax_level(
    pool: tuple[dict[str, Numbers], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The null is near enough for the test above to fail: at a level of 0.5 its runs do show something."""
    grams, size = pool
    monkeypatch.setattr("geffect.core.statistics.LEVEL", 0.5)
    monkeypatch.setattr("geffect.reports.findings.TRIVIAL", 0.0)
    assert any(noise(grams, size, seed) for seed in range(8))


def test_a_planted_conflict_is_found(pool: tuple[dict[str, Numbers], int]) -> None:
    found = {each.kind: each for each in planted(*pool)}
    assert {"conflict", "layers", "removed"} <= set(found)
    assert found["conflict"].high < 0
    assert found["removed"].value == pytest.approx(1)  # GRU against the measured row itself
    assert 0.3 < found["layers"].low < found["layers"].value < found["layers"].high < 1


def test_ascent_on_half_a_pool_harms_the_other_half(pool: tuple[dict[str, Numbers], int]) -> None:
    grams, size = pool
    generator = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        one, other = np.split(generator.permutation(40)[: 2 * BATCH], 2)  # of authors' rows
        made.append({"objective": -weights(size, one), "forget": weights(size, one), "retain": weights(size, other)})
    assert "conflict" in {each.kind for each in findings_of(_plain(grams, made))}


def _plain(grams: dict[str, Numbers], made: list[dict[str, Numbers]]) -> pd.DataFrame:
    frame = record(grams, iter(made))
    return frame[(frame["gradient"] != "rectified") & (frame["other"] != "rectified")]


def frame_of(cosines: Numbers, **others: Numbers) -> pd.DataFrame:
    """Two groups of rows of unit length with these cosines to the retain row, three quarters of them in ``deep``."""
    lines = []
    for row, values in {"objective": cosines, **others}.items():
        for step, cosine in enumerate(values):
            for group, share in (("deep", 0.75), ("shallow", 0.25)):
                lines += [(step, group, row, "retain", share * cosine), (step, group, row, row, 0.5)]
    lines += [(step, group, "retain", "retain", 0.5) for step in range(len(cosines)) for group in ("deep", "shallow")]
    return pd.DataFrame(lines, columns=["step", "group", "gradient", "other", "inner"])


def test_the_step_where_harm_starts_is_found() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal(60)
    found = {each.kind: each for each in findings_of(frame_of(np.where(np.arange(60) < 24, 0.3, -0.4) + noise))}
    assert found["start"].low <= 24 <= found["start"].high
    assert abs(found["start"].value - 24) <= 4
    assert f"step {found['start'].value:.0f}" in found["start"].text


def test_harm_from_the_first_step_on_has_no_start() -> None:
    assert "start" not in {each.kind for each in findings_of(frame_of(np.full(30, -0.3)))}


def test_shares_of_layers_are_those_planted() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal(40)
    found = next(each for each in findings_of(frame_of(-0.3 + noise)) if each.kind == "layers")
    assert found.value == pytest.approx(0.75)
    text = found.text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith("Deep layers carry 75 % [75, 75] of the harm that the objective would do to the retain set")


@pytest.mark.parametrize(("before", "kind"), [(-0.4, "conflict"), (0.3, "start")])
def test_findings_say_of_which_gradient_they_speak(before: float, kind: str) -> None:
    """Where GRU ran, all but what it removed and what was applied is about the gradient before it."""
    noise = 0.05 * np.random.default_rng(0).standard_normal((3, 60))
    harmful = np.where(np.arange(60) < 24, before, -0.4) + noise[0]
    plain = {each.kind: each for each in findings_of(frame_of(harmful))}
    rows = {"rectified": 0.1 + noise[1], "applied": -0.2 + noise[2]}
    found = {each.kind: each for each in findings_of(frame_of(harmful, **rows), "GRU")}
    assert kind in plain
    assert set(found) == {*plain, "removed", "applied"}
    for about in plain:
        assert "before" not in plain[about].text
        assert "he objective before GRU " in found[about].text
        assert found[about].gradient == "objective"
    assert found["removed"].gradient == "rectified"
    assert found["removed"].text.startswith("GRU removed")
    assert found["applied"].gradient == "applied"


def test_a_rectifier_that_no_row_tells_of_is_named_all_the_same() -> None:
    """One that corrects the update alone leaves the gradient as it is; the objective still is not what was applied."""
    assert "before GRU " in findings_of(frame_of(np.full(30, -0.3)), "GRU")[0].text


def test_an_optimizer_that_turns_a_harmless_gradient_is_found() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal((2, 40))
    found = findings_of(frame_of(0.1 + noise[0], applied=-0.2 + noise[1]))
    assert [each.kind for each in found] == ["applied"]
    assert not findings_of(frame_of(0.1 + noise[0], applied=0.1 + noise[1]))


def test_short_runs_and_trivial_effects_claim_nothing() -> None:
    assert findings_of(frame_of(np.array([-0.9, -0.8, -0.9, -0.7]))) == []
    assert findings_of(frame_of(-0.01 + 1e-4 * np.random.default_rng(0).standard_normal(60))) == []


def test_dependent_steps_are_not_taken_for_independent_ones() -> None:
    """Of 400 series that wander (φ = 0.8) about zero, a test that drew single steps would reject a tenth or more."""
    generator, rejected = np.random.default_rng(0), 0
    for _ in range(400):
        values = np.zeros(90)
        for t in range(1, 90):
            values[t] = 0.8 * values[t - 1] + generator.standard_normal()
        found = over_steps(values[30:, None], lambda x: x.mean((-2, -1)))
        assert found is not None
        rejected += found.below(0) or found.above(0)
    assert LEVEL == 0.001
    assert rejected <= 8


def errors_of(inner: list[float], error: float) -> pd.DataFrame:
    return pd.DataFrame({
        "step": [0, 10, 20],
        "gradient": "objective",
        "other": "retain",
        "inner": inner,
        "standard_error": error,
    })


def test_checkpoints_are_judged_by_their_standard_errors() -> None:
    found = conflict_at_checkpoints(errors_of([0.5, -40.0, -60.0], 2.0), batches=20)
    assert found is not None
    assert found.value == -60
    assert found.low == pytest.approx(-60 - 2.093 * 2, abs=1e-3)  # t of 19 degrees of freedom
    assert "at 2 of 3 checkpoints; at step 20" in found.text
    assert conflict_at_checkpoints(errors_of([0.5, -4.0, -6.0], 2.0), batches=20) is None
    assert conflict_at_checkpoints(errors_of([0.5, -40.0, -60.0], 2.0), batches=2) is None


def planted_effects(random: np.random.Generator, means: dict[str, float]) -> pd.DataFrame:
    """Effects of targets over steps: a mean, most of it in the deep layers, in noise of size one."""
    shares = {"embed": 0.1, "shallow": 0.1, "deep": 0.8}
    rows = [
        (step, group, target, share * mean + random.normal(0, 0.3))
        for step in range(STEPS)
        for target, mean in means.items()
        for group, share in shares.items()
    ]
    return pd.DataFrame(rows, columns=["step", "group", "target", "effect"])


def test_what_steps_do_to_targets_is_found_and_noise_is_not() -> None:
    """Harm first; a sentence names the number, and where most of it lies. Noise alone is told by one draw in twenty."""
    found = target_effects(planted_effects(np.random.default_rng(0), {"math-1": -1.0, "chat": 2.0, "noise": 0.0}))
    assert [finding.value > 0 for finding in found] == [True, False]
    harm, helped = (finding.text for finding in found)
    assert harm.startswith("The steps harm chat: ")
    assert "Deep layers carry most of it, " in harm
    assert helped.startswith("The steps help math-1: ")
    for finding, mean in zip(found, (2.0, -1.0), strict=True):
        assert finding.low < mean < finding.high
    told = [target_effects(planted_effects(np.random.default_rng(seed), {"a": 0.0})) for seed in range(SEEDS)]
    assert sum(map(len, told)) <= 3
