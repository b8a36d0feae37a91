"""Localizations against random masks and planted entries: plain loops, float64, small real models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from geffect import api
from geffect.config import FinetuneConfig, LocalizeConfig
from geffect.core.layers import trainable_parameters
from geffect.core.lots import control_seeds
from geffect.core.masks import Localization, complement, pack, random_masks, top_mask, unpack
from geffect.errors import GeffectError
from geffect.localization.localize import FLOOR, PAIRED, localize
from geffect.localization.storage import read_localization, read_planted
from geffect.localization.truth import Recovery, largest, wins
from geffect.rectifiers.registry import make_freezing
from tests.conftest import Ended
from tests.support import oracles
from tests.support.cases import CASES, make_batch

SPLITS = {"forget/a": 1, "retain/a": 2}
LOT = "random:5:0.2"
DOMAIN = "a=builtin:authors/forget[:3],builtin:authors/retain[:3]"


def _losses(model: Any, seed: int) -> list[Callable[[], Tensor]]:
    batch = make_batch([5, 8, 6], seed=seed)
    return [lambda i=i: oracles.example_nll(model, batch, i).mean() for i in range(3)]  # type: ignore[misc]


def _mean(model: Any, seed: int, name: str) -> Tensor:
    return torch.stack([oracles.gradient(model, loss)[name] for loss in _losses(model, seed)]).mean(0)


@pytest.mark.parametrize("masks_only", [False, True])
@pytest.mark.parametrize("importance", PAIRED)
def test_paired_importance_is_entry_by_entry_that_of_both_means(importance: str, masks_only: bool) -> None:
    model = CASES["llama-tied"]().double()
    parameters, name = trainable_parameters(model), "model.layers.0.mlp.up_proj.weight"
    losses = {split: _losses(model, seed) for split, seed in SPLITS.items()}
    found = localize(parameters, losses, [0.3], importance, masks_only=masks_only, mu=0.02)
    assert (found.gram.names == ()) == masks_only
    own = {split: _mean(model, seed, name) for split, seed in SPLITS.items()}
    for split, other in (("forget/a", "retain/a"), ("retain/a", "forget/a")):
        expected, beside = torch.zeros_like(own[split]), own[other].flatten().tolist()
        floor = FLOOR * (sum(h * h for h in beside) / len(beside)) ** 0.5
        rows = zip(own[split].flatten().tolist(), beside, parameters[name].flatten().tolist(), strict=True)
        values = [abs(g) / max(abs(h), floor) if importance == "ratio" else abs((t - h / 0.02) * g) for g, h, t in rows]
        expected = torch.tensor(values, dtype=torch.float64).view(expected.shape)
        assert torch.equal(unpack(found.masks[0.3][split][name], expected.shape), top_mask(expected, 0.3)), split


def test_ratio_and_wagle_need_a_partner_and_a_positive_mu() -> None:
    model = CASES["llama"]()
    for importance in PAIRED:
        with pytest.raises(
            GeffectError, match=r"of forget needs the mean gradient of retain, which is no split here\."
        ):
            localize(trainable_parameters(model), {"forget": _losses(model, 1)}, [0.1], importance)
    losses = {split: _losses(model, seed) for split, seed in SPLITS.items()}
    with pytest.raises(GeffectError, match="wagle's mu is -1"):
        localize(trainable_parameters(model), losses, [0.1], "wagle", mu=-1.0)


def test_the_auc_is_a_count_of_all_pairs_with_ties_half() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        score = torch.randint(0, 5, (4, 6), generator=generator).double()
        planted = torch.rand(4, 6, generator=generator) < 0.3
        pairs = [(float(a), float(b)) for a in score[planted] for b in score[~planted]]
        assert wins(score, planted) == (sum(2 * (a > b) + (a == b) for a, b in pairs), len(pairs))
        count = int(planted.sum())
        order = sorted(range(24), key=lambda i: (-float(score.flatten()[i]), i))[:count]
        chosen = [i in order and float(score.flatten()[i]) > 0 for i in range(24)]
        assert largest(score, count).flatten().tolist() == chosen


def test_recovery_adds_up_over_tensors_and_counts_unreached_ones_as_ties() -> None:
    planted = {"a": torch.tensor([True, False, False]), "b": torch.tensor([True, True])}
    recovery = Recovery(
        {n: pack(m) for n, m in planted.items()} | {"c": pack(torch.tensor([True]))}, dict(a=3, b=2, c=4)
    )
    mask = torch.tensor([True, True, False])
    recovery.add("forget", "mean_abs", "a", torch.tensor([2.0, 3.0, 1.0]), {0.5: pack(mask)})
    recovery.add("forget", "mean_abs", "b", torch.tensor([0.0, 1.0]), {})
    same, wide = recovery.rows()
    assert same["size"] == "planted"
    assert (same["precision"], same["recall"]) == (0.5, 0.25)  # of two entries chosen, and of four planted
    assert (wide["precision"], wide["recall"]) == (0.5, 0.25)
    assert same["auc"] == (1 + 0 + 1.5) / (2 + 0 + 3)  # a: one of two pairs won; b: no pair; c: three ties


def _frozen(text: str, model: Any, localized: Localization) -> dict[str, dict[str, Tensor]]:
    rule, parameters = make_freezing(text), trainable_parameters(model)
    assert rule is not None
    mask = rule.gradient_mask(parameters, localized)
    empty = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in parameters.items()}
    return {
        side: {n: found if (found := mask.mask(side, n)) is not None else empty[n] for n in empty} for side in SIDES
    }


SIDES = ("forget", "retain")


@pytest.fixture(scope="module")
def localized() -> tuple[Any, Localization]:
    model = CASES["llama"]()
    losses = {split: _losses(model, seed) for split, seed in SPLITS.items()}
    return model, localize(trainable_parameters(model), losses, [0.1, 0.2])


@pytest.mark.parametrize("rule", ["grail", "grail(reading=micro_batch)", "confine(k=0.2)"])
def test_a_random_mask_has_the_sizes_of_its_rule_in_every_tensor(
    rule: str, localized: tuple[Any, Localization]
) -> None:
    own, first, again, other = (
        _frozen(text, *localized)
        for text in (rule, f"random({rule})", f"random({rule}, seed=0)", f"random({rule}, seed=1)")
    )
    for name in own["forget"]:
        both = [each["forget"][name] & each["retain"][name] for each in (own, first)]
        assert int(both[0].sum()) == int(both[1].sum()), "what both sides freeze together has its size, too"
        for side in SIDES:
            assert int(own[side][name].sum()) == int(first[side][name].sum()) == int(other[side][name].sum())
            assert torch.equal(first[side][name], again[side][name])
    name = "model.embed_tokens.weight"
    assert not torch.equal(first["forget"][name], other["forget"][name])
    assert not torch.equal(first["forget"][name], own["forget"][name])


def test_confine_frees_the_forget_masks_alone(localized: tuple[Any, Localization]) -> None:
    for side in _frozen("confine", *localized).values():
        for name, mask in side.items():
            assert torch.equal(~mask, unpack(localized[1].masks[0.1]["forget/a"][name], mask.shape))


def test_random_regions_of_whole_tensors_are_as_large_in_all(localized: tuple[Any, Localization]) -> None:
    memflex = "memflex(mu=0.7, sigma=0.3, thresholds=quantile)"
    own, drawn = (_frozen(each, *localized)["retain"] for each in (memflex, f"random({memflex}, scope=model)"))
    sizes = [sum(int(mask.sum()) for mask in each.values()) for each in (own, drawn)]
    assert abs(sizes[0] - sizes[1]) <= len(own) / 2
    with pytest.raises(GeffectError, match=r"freezes whole tensors.*Write scope=model"):
        _frozen(f"random({memflex})", *localized)
    with pytest.raises(GeffectError, match="rule of RandomMask is"):
        make_freezing("random(gru)")


def test_planted_entries_move_and_no_bit_of_any_other(start: Path, tmp_path: Path) -> None:
    """Under AdamW with weight decay, two micro-batches a step, and once more from the file of a localization."""
    settings: dict[str, Any] = {
        "model": str(start),
        "train": ["builtin:authors/forget[:8]"],
        "steps": 3,
        "batch_size": 2,
        "grad_accum_steps": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.5,
    }
    before = load_file(start / "model.safetensors")
    shapes = {n: list(p.shape) for n, p in trainable_parameters(api.load_model(str(start)).model).items()}
    found = _localize(start, tmp_path / "masks", "mean_abs")
    for number, text in enumerate([LOT, str(found / "masks" / "share-0.1.safetensors")]):
        path = api.finetune(FinetuneConfig.read(**settings, only_mask=text, out=tmp_path / f"{number}")).path
        after, masks = load_file(path / "model.safetensors"), read_planted(text, shapes)
        moved = 0
        for name, shape in shapes.items():
            inside = unpack(masks[name], shape) if name in masks else torch.zeros(shape, dtype=torch.bool)
            assert torch.equal(after[name][~inside].view(torch.int32), before[name][~inside].view(torch.int32)), name
            moved += int((after[name] != before[name])[inside].sum())
        share = sum(int(unpack(mask, shapes[name]).sum()) for name, mask in masks.items())
        assert moved > 0.3 * share, "rows of tokens that are not met stand still but for weight decay"


def _localize(model: Path, out: Path, importance: str, **changes: Any) -> Path:
    settings: dict[str, Any] = {"model": str(model), "domain": [DOMAIN], "labels": "true", "importance": importance}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "plot", lambda _: [])
        return api.localize(LocalizeConfig.read(**settings, **changes, out=out)).path


def test_a_localization_tells_what_it_recovers_beside_its_controls(start: Path, tmp_path: Path) -> None:
    path = _localize(start, tmp_path / "a", "wagle", share=[0.1], truth=LOT, control=["random:0-1"], mu=0.5)
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    found = {(row["split"], row["localizer"], row["size"]): row for row in metrics["truth"]}
    assert {key[1] for key in found} == {"wagle", "random:0", "random:1"}
    assert {key[2] for key in found} == {"planted", "0.1"}
    shapes = {n: list(p.shape) for n, p in trainable_parameters(api.load_model(str(start)).model).items()}
    planted = random_masks(shapes, 0.2, 5)
    masks = read_localization(path).masks[0.1]["forget/a"]
    bits = {n: (unpack(planted[n], s), unpack(masks[n], s)) for n, s in shapes.items() if n in masks}
    hits, chosen = (
        sum(int(each.sum()) for each in some)
        for some in ([a & b for a, b in bits.values()], [b for _, b in bits.values()])
    )
    assert found["forget/a", "wagle", "0.1"]["precision"] == hits / chosen
    for seed in (0, 1):
        assert found["forget/a", f"random:{seed}", "planted"]["auc"] == pytest.approx(0.5, abs=0.02)
        assert found["forget/a", f"random:{seed}", "planted"]["precision"] == pytest.approx(0.2, abs=0.02)
    assert [row["seed"] for row in metrics["controls"]] == [0, 1]
    assert all(row["jaccard"] == pytest.approx(1 / 19, abs=0.01) for row in metrics["controls"])
    assert json.loads((path / "localization.json").read_text(encoding="utf-8"))["recipe"]["mu"] == 0.5


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--control", "random:a"], "The control 'random:a' names no seeds"),
        (["--control", "random:4-2"], "names no seeds"),
        (["--control", "random:0-9999"], "names no seeds"),
        (["--importance", "wagle", "--mu", "0"], "--mu is"),
        (["--mu", "0.5"], "--mu does nothing without --importance wagle"),
        (["--truth", "random:0:2"], "'random:0:2' draws no mask"),
        (["--truth", "nowhere"], "nowhere is no file of masks"),
    ],
)
def test_bad_controls_are_refused_in_one_line(
    flags: list[str], says: str, start: Path, invoke: Any, tmp_path: Path
) -> None:
    ended: Ended = invoke("localize", "--model", start, "--domain", DOMAIN, *flags, "--out", tmp_path / "out")
    assert ended.code == 2
    assert says in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_masks_of_other_shapes_or_of_no_forget_split_are_refused(start: Path, tmp_path: Path) -> None:
    file = _localize(start, tmp_path / "a", "mean_abs", share=[0.1]) / "masks" / "share-0.1.safetensors"
    with pytest.raises(GeffectError, match=r"are of other trained parameters than the model's \(w: none, not \[2\]\)"):
        read_planted(str(file), {"w": [2]})
    for text in ("random:0:0.1:2", "random:x:0.1"):
        with pytest.raises(GeffectError, match="draws no mask"):
            read_planted(text, {"w": [2]})
    bare, metadata = tmp_path / "bare.safetensors", {"geffect_format": "3", "recipe": '{"shapes": {"w": [2]}}'}
    save_file({"retain/a|w": torch.tensor([128], dtype=torch.uint8)}, bare, metadata=metadata)
    with pytest.raises(GeffectError, match="holds no mask of a forget split"):
        read_planted(str(bare), {"w": [2]})
    with pytest.raises(GeffectError, match="is no file of masks"):
        read_planted(str(start / "model.safetensors"), {"w": [2]})


def test_a_complement_is_what_a_mask_leaves() -> None:
    tensors = {"a": torch.zeros(11), "b": torch.zeros(2, 3)}
    inside = random_masks({"a": [11]}, 0.3, 1)
    assert int(unpack(inside["a"], [11]).sum()) == 4
    others = complement(inside, tensors)
    assert torch.equal(unpack(others["a"], [11]), ~unpack(inside["a"], [11]))
    assert bool(unpack(others["b"], [2, 3]).all())
    assert control_seeds(["random:0-2", "random:1", "random:9"]) == [0, 1, 2, 9]
