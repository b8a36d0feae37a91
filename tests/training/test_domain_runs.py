"""Localizing and unlearning over domains from end to end, and what is refused in one line."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from geffect import api
from geffect.config import DoctorConfig, FinetuneConfig, LocalizeConfig, UnlearnConfig
from geffect.core.effects import removed_g_effect
from geffect.core.layers import trainable_parameters
from geffect.core.masks import mask_count
from geffect.data.domains import parse_domains
from geffect.errors import GeffectError
from geffect.evaluation.success import success
from geffect.localization.storage import check_localized, read_localization
from geffect.record.frames import read, read_overlap, read_steps
from geffect.record.reader import read_lines
from geffect.rectifiers.registry import make_freezing
from geffect.reports.compare import summarize, whole_overlaps
from geffect.reports.run import plot
from geffect.training.batches import training_sets
from geffect.training.setup import localization_examples, prepare

DOMAINS = ["privacy=builtin:domains/privacy[:6]", "copyright=builtin:domains/copyright[:6]"]
SPLITS = ["forget/privacy", "retain/privacy", "forget/copyright", "retain/copyright"]
GRAIL = "grail(k_unlearn=0.1, k_retain=0.2)"


def _localize(model: Path, out: Path, *, drawn: bool = False, **changes: Any) -> Path:
    """A localization, without its figures unless they are asked for: they take longer than all the rest."""
    chosen = LocalizeConfig.read(**({"model": str(model), "domain": DOMAINS, "out": out} | changes))
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(api, "plot", lambda _: [])
        return api.localize(chosen).path


def _config(model: Path, out: Path, **changes: Any) -> UnlearnConfig:
    plain: dict[str, Any] = {
        "model": str(model),
        "domain": DOMAINS,
        "objective": "0.4*ga + 2*gd",
        "steps": 3,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "out": out,
    }
    return UnlearnConfig.read(**(plain | changes))


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in trainable_parameters(api.load_model(str(path)).model).items()}


@pytest.fixture(scope="module")
def localized(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _localize(start, tmp_path_factory.mktemp("localized") / "masks", drawn=True)


@pytest.fixture(scope="module")
def adapted(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that does something."""
    fitted = FinetuneConfig.read(
        model=str(start),
        train=["builtin:domains/privacy/unlearn[:4]"],
        lora=2,
        epochs=2,
        learning_rate=1e-2,
        out=tmp_path_factory.mktemp("adapted") / "fit",
    )
    return api.finetune(fitted).path


def test_a_localization_is_a_record_with_masks_overlaps_and_pictures(localized: Path, start: Path) -> None:
    frame = read_overlap(localized, "parameter")
    assert set(frame["share"]) == {0.1, 0.2}
    assert len(frame) == 2 * 6 * len(set(frame["parameter"]))
    assert set(read(localized)["gradient"]) | set(read(localized)["other"]) == set(SPLITS)
    whole = whole_overlaps(localized)
    assert whole["jaccard"].between(0, 1).all()
    assert whole["chance"].round(4).tolist() == [0.0526] * 6 + [0.1111] * 6
    names = {each.name for each in (localized / "figures").iterdir()}
    assert {"overlap-0.1.png", "overlap-0.1.csv", "overlap_by_layer-0.2.pdf"} <= names
    drawn = pd.read_csv(localized / "figures" / "overlap-0.1.csv")
    assert drawn["jaccard"].tolist() == pytest.approx(whole[whole["share"] == 0.1]["jaccard"].tolist())
    examples = json.loads((localized / "metrics.json").read_text())["examples"]
    assert examples == dict.fromkeys(SPLITS, 12), "train and val"
    back = read_localization(localized)
    sizes = {n: p.numel() for n, p in _weights(start).items()}
    kept = sum(mask_count(mask) for mask in back.at(0.1)["forget/privacy"].values())
    assert 0.08 < kept / sum(sizes.values()) <= 0.101
    assert all(-1.0001 <= cosine <= 1.0001 for cosine in back.cosines().values())


@pytest.mark.parametrize(("size", "left"), [(1_000, False), (20_000, True)])
def test_a_disk_without_room_is_told_in_one_line(start: Path, tmp_path: Path, size: int, left: bool) -> None:
    """No file may grow beyond: already the environment, or the masks."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(GeffectError, match=r"masks cannot be written to: .*; name another --out"):
            _localize(start, tmp_path / "masks")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "masks").exists() == left
    assert not (tmp_path / "masks" / ".lock").exists()
    assert not (tmp_path / "masks" / "DONE").exists()


def test_geffect_figures_draws_a_localization_anew(localized: Path, tmp_path: Path) -> None:
    written = plot([localized], tmp_path / "drawn")
    assert {path.name for path in written} >= {"overlap-0.1.png", "overlap_by_layer-0.2.csv"}
    assert all(path.is_file() for path in written)


def test_the_doctor_looks_at_every_scope(start: Path, tmp_path: Path) -> None:
    config = DoctorConfig.read(model=str(start), domain=DOMAINS, out=tmp_path / "run")
    names = [finding.name for finding in api.doctor(config)]
    assert {f"knows {split}" for split in SPLITS} | {"memory", "batches", "determinism"} <= set(names)


def test_localizing_twice_is_the_same_and_another_seed_is_not(localized: Path, start: Path, tmp_path: Path) -> None:
    again = read_localization(_localize(start, tmp_path / "again"))
    other = read_localization(_localize(start, tmp_path / "other", seed=1))
    first = read_localization(localized)
    for name, mask in first.at(0.1)["retain/copyright"].items():
        assert torch.equal(mask, again.at(0.1)["retain/copyright"][name])
    one, two = (each.at(0.1)["forget/privacy"] for each in (first, other))
    assert any(not torch.equal(mask, two[name]) for name, mask in one.items())


@pytest.mark.parametrize("labels", ["true", "corrupted"])
@pytest.mark.parametrize("importance", ["mean_square", "zscore"])
def test_every_importance_and_labeling_localizes(labels: str, importance: str, start: Path, tmp_path: Path) -> None:
    draws: dict[str, Any] = {"draws": 2} if labels == "corrupted" else {}
    path = _localize(
        start,
        tmp_path / "masks",
        labels=labels,
        importance=importance,
        share=[0.3],
        **draws,
        domain=[each.replace("[:6]", "[:2]") for each in DOMAINS],
    )
    assert list(read_localization(path).masks) == [0.3]


RULES = ["", " + gru", " + gru(space=update)", " + gru(space=both)", " + gem(memory=2, space=both)", " + sago"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_entries_end_where_they_started(
    rule: str, accumulate: int, localized: Path, start: Path, tmp_path: Path
) -> None:
    """Under the real Trainer, AdamW, momentum and weight decay."""
    path = api.unlearn(
        _config(
            start,
            tmp_path / "run",
            rectifier=GRAIL + rule,
            masks=localized,
            grad_accum_steps=accumulate,
            diagnose_every=2,
        )
    ).path
    before, after = _weights(start), _weights(path)
    freezing = make_freezing(GRAIL)
    assert freezing is not None
    frozen = freezing.gradient_mask(
        trainable_parameters(api.load_model(str(start)).model), read_localization(localized)
    )
    moved = still = 0
    for name, tensor in after.items():
        mask = frozen.never(name)
        if mask is not None:
            assert torch.equal(tensor[mask], before[name][mask]), name
            still += int(mask.sum())
            moved += int((tensor[~mask] != before[name][~mask]).sum())
    assert still > 0 and moved > 10 * still / 100


def test_a_run_over_domains_records_its_scopes_masks_and_success(localized: Path, start: Path, tmp_path: Path) -> None:
    settings = {"rectifier": f"{GRAIL} + gru", "masks": localized, "overlap": 0.1, "prediction": 4}
    path = api.unlearn(_config(start, tmp_path / "run", **settings)).path
    rows = set(read(path)["gradient"])
    assert {"objective", "forget", "retain", *SPLITS, "masked", "retain_average", "rectified", "applied"} <= rows
    removed = removed_g_effect(read(path))
    effects = read(path).query("gradient == 'objective' and other == 'forget'")["inner"].sum()
    assert list(removed.columns) == ["step", "group", "unlearn", "retain"]
    assert 0 < removed["unlearn"].abs().sum() < 2 * abs(effects)
    steps = read_steps(path)
    assert {f"loss_{split}" for split in SPLITS} <= set(steps)
    assert steps["forget_val/privacy_accuracy"].notna().any()
    environment = json.loads((path / "environment.json").read_text())
    shares = environment["frozen"]
    assert set(shares) == {"forget", "retain", "never"}
    assert all(0 <= each <= 1 for each in shares["never"].values())
    scores = json.loads((path / "metrics.json").read_text())["success"]
    model = api.load_model(str(path))
    prepared = prepare(_config(start, tmp_path / "other"))
    for domain in ("privacy", "copyright"):
        known = success(model.model, model.tokenizer, prepared.encoded[f"retain_val/{domain}"])
        assert scores["end"][domain]["RS"] == pytest.approx(known.accuracy)
        assert scores["end"][domain]["US"] == pytest.approx(100 - scores["end"][domain]["forget"]["accuracy"])
    assert summarize([path])["forget acc."].notna().all()


def test_what_is_recorded_of_the_mask_is_what_was_frozen(localized: Path, start: Path, tmp_path: Path) -> None:
    path = api.unlearn(
        _config(
            start,
            tmp_path / "run",
            rectifier="memflex(mu=0.9, sigma=0.1, thresholds=quantile)",
            masks=localized,
            steps=2,
        )
    ).path
    before, after = _weights(start), _weights(path)
    shares = json.loads((path / "environment.json").read_text())["frozen"]["never"]
    assert set(shares.values()) == {0.0, 1.0}
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (shares[name] == 1.0), name


def test_it_works_on_an_adapter(adapted: Path, tmp_path: Path) -> None:
    masks = _localize(adapted, tmp_path / "masks")
    before = _weights(adapted)
    assert all("lora" in name for name in before)
    path = api.unlearn(_config(adapted, tmp_path / "run", rectifier=GRAIL, masks=masks)).path
    freezing = make_freezing(GRAIL)
    assert freezing is not None
    frozen = freezing.gradient_mask(trainable_parameters(api.load_model(str(adapted)).model), read_localization(masks))
    for name, tensor in _weights(path).items():
        mask = frozen.never(name)
        assert mask is None or torch.equal(tensor[mask], before[name][mask])
    assert any(not torch.equal(tensor, before[name]) for name, tensor in _weights(path).items())


def test_a_killed_run_over_domains_goes_on_bit_by_bit(localized: Path, start: Path, tmp_path: Path) -> None:
    whole = api.unlearn(
        _config(start, tmp_path / "whole", rectifier=f"{GRAIL} + gru", masks=localized, save_every=1)
    ).path
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in ("DONE", "metrics.json"):
        (cut / name).unlink()
    for step in (2, 3):
        shutil.rmtree(cut / "checkpoints" / f"checkpoint-{step}")
    config = (cut / "config.yaml").read_text().replace(str(whole), str(cut))
    (cut / "config.yaml").write_text(config)
    api.unlearn(UnlearnConfig.read(cut / "config.yaml"), resume=True)
    for name, tensor in _weights(cut).items():
        assert torch.equal(tensor, _weights(whole)[name])
    assert (
        json.loads((cut / "metrics.json").read_text())["success"]
        == json.loads((whole / "metrics.json").read_text())["success"]
    )


def test_one_domain_validates_another(start: Path, tmp_path: Path) -> None:
    other = ["copyright=builtin:domains/copyright[:4]"]
    path = api.unlearn(_config(start, tmp_path / "run", domain=DOMAINS[:1], validation=other)).path
    scores = json.loads((path / "metrics.json").read_text())["success"]["end"]
    assert list(scores) == ["privacy", "copyright"]
    assert scores["copyright"]["forget"]["examples"] == 4


def test_three_domains_from_any_source(start: Path, tmp_path: Path) -> None:
    third = "authors=builtin:authors/forget[:6],builtin:authors/retain[:6]"
    path = api.unlearn(_config(start, tmp_path / "run", domain=[*DOMAINS, third], steps=2)).path
    assert {"forget/authors", "retain/authors"} <= set(read(path)["gradient"])


def test_sizes_are_balanced_as_asked_for(start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    domains = [
        "a=builtin:domains/privacy/unlearn[:6],builtin:domains/privacy/retention[:4]",
        "b=builtin:domains/copyright/unlearn[:3],builtin:domains/copyright/retention[:5]",
    ]
    for balance, expected in {"cut": [4, 4, 3, 3], "repeat": [6, 4, 3, 5]}.items():
        chosen = _config(start, tmp_path / balance, domain=domains, balance=balance, objective="ga + gd")
        sets = training_sets(prepare(chosen))
        assert [len(rows) for rows in sets.values()] == expected
        assert f"forget/a {expected[0]} of 6" in caplog.text
        assert f"{max(expected[0], expected[2])} examples make" in api.plan(chosen)["batches"]


def test_no_two_rows_of_a_localization_share_their_random_labels(start: Path) -> None:
    config = LocalizeConfig.read(model=str(start), domain=DOMAINS, out="nowhere")
    rows = localization_examples(config, api.load_model(str(start)))
    indices = [row.index for each in rows.values() for row in each]
    assert indices == list(range(48))


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the command line; it must end with 2 and say this in one line, and leave nothing."""
    monkeypatch.chdir(tmp_path)

    def run(arguments: list[str], says: str) -> None:
        import re
        import sys

        from geffect.cli.main import main

        monkeypatch.setattr(sys, "argv", ["geffect", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("geffect: ")][-1:]
        assert ended.value.code == 2
        assert len(error) == 1 and re.search(says, error[0]), error
        assert not (tmp_path / "out").exists()

    return run


TWO = ["--domain", DOMAINS[0], "--domain", DOMAINS[1]]


def _pair(unlearn: str, retention: str) -> list[str]:
    return ["--domain", f"a=builtin:authors/{unlearn},builtin:authors/{retention}"]


def _named(*texts: str) -> list[str]:
    return [flag for text in texts for flag in ("--domain", text)]


GRAIL_FLAGS = [*TWO, "--rectifier", "grail"]
NO_RETENTION = "The domain privacy needs a set to unlearn and one to retain"


@pytest.mark.parametrize(
    ("verb", "flags", "says"),
    [
        ("localize", _named("privacy=tofu:forget01"), NO_RETENTION),
        ("unlearn", _named("privacy=builtin:authors/forget"), NO_RETENTION),
        ("unlearn", _named("privacy=builtin:domains/privacy/unlearn"), NO_RETENTION),
        ("localize", _named("privacy"), "a domain with its sets"),
        ("localize", [*TWO, "--share", "0"], "--share"),
        ("localize", [*TWO, "--share", "1.5"], "--share"),
        ("localize", [*TWO, "--share", "nan"], "--share"),
        ("localize", [*TWO, "--share", "a"], "--share"),
        ("localize", [], "--domain"),
        ("localize", _pair("forget[:1]", "retain"), "forget/a has 1 example, and needs two"),
        ("unlearn", _pair("forget[:1]", "retain[:1]"), "forget/a has 1 example, and needs two"),
        ("unlearn", _pair("forget[:4]", "retain[:3]"), "The sets of the domains differ in size: forget/a 4"),
        (
            "unlearn",
            [*TWO, *_named("c=builtin:domains/privacy[:3]")],
            "The sets of the domains differ in size.*--balance",
        ),
        ("unlearn", _named(DOMAINS[0], DOMAINS[0]), "Two domains are named 'privacy'"),
        ("unlearn", GRAIL_FLAGS, "'grail' needs a directory of masks. Make one with geffect localize"),
        ("unlearn", [*TWO, "--rectifier", "grail(k_unlearn=0)", "--masks", "."], "k_unlearn of grail is 0"),
        ("unlearn", [*TWO, "--masks", "."], "'none' takes no --masks"),
        ("unlearn", [*GRAIL_FLAGS, "--masks", "nowhere"], "There is no localization in nowhere"),
        ("unlearn", [*TWO, "--forget", "builtin:authors/forget"], "--domain and --forget"),
        ("unlearn", ["--forget", "builtin:authors/forget"], "--retain has no value"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    verb: str, flags: list[str], says: str, start: Path, refused: Callable[..., None]
) -> None:
    refused([verb, "--model", str(start), *flags, "--out", "out"], says)


def test_masks_of_another_model_or_adapter_are_refused(
    localized: Path, known: Path, adapted: Path, start: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    flags = [*TWO, "--rectifier", "grail", "--masks", str(localized), "--out", "out"]
    refused(["unlearn", "--model", str(known), *flags], "not of these weights")
    refused(["unlearn", "--model", str(adapted), *flags], "of other trained parameters than the model's")
    refused(["unlearn", "--model", str(start), "--lora", "2", *flags], "of other trained parameters than the model's")
    memflex = ["memflex(mu=-2)", "--masks", str(localized), "--out", "out"]
    refused(["unlearn", "--model", str(start), *TWO, "--rectifier", *memflex], "memflex's region")
    bare = _localize(start, tmp_path / "bare", masks_only=True)
    assert "gram" not in read_lines(bare)[0]
    memflex = ["memflex(mu=0.9)", "--masks", str(bare), "--out", "out"]
    refused(["unlearn", "--model", str(start), *TWO, "--rectifier", *memflex], "Localize without --masks-only")
    share = ["grail(k_unlearn=0.3)", "--masks", str(localized), "--out", "out"]
    refused(["unlearn", "--model", str(start), *TWO, "--rectifier", *share], "Localize with --share 0.3 too")


def test_harmed_masks_are_refused(localized: Path, start: Path, tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    shutil.copytree(localized, harmed)
    (harmed / "localization.json").write_text('{"format": 3}')
    with pytest.raises(GeffectError, match="lacks a key"):
        check_localized(harmed, None, {})
    os.remove(harmed / "DONE")
    with pytest.raises(GeffectError, match="no localization in"):
        read_localization(harmed)


HARMED = ("masks/share-0.1.safetensors", "localization.json", "steps.jsonl", "environment.json")


@pytest.mark.parametrize("name", HARMED)
def test_a_bit_that_flipped_in_a_localization_is_refused(name: str, localized: Path, tmp_path: Path) -> None:
    """Masks, magnitudes and inner products are numbers like any other once they have flipped."""
    harmed = tmp_path / "harmed"
    shutil.copytree(localized, harmed)
    content = (harmed / name).read_bytes()
    digits = [i for i, each in enumerate(content) if chr(each) in "1234567"]
    place = digits[-1] if name != HARMED[0] else len(content) - 40
    (harmed / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(GeffectError, match=f"{name} in .* has changed since it was written .*or localize again"):
        read_localization(harmed)


def test_masks_without_a_checksum_are_refused(localized: Path, tmp_path: Path) -> None:
    added, bare = tmp_path / "added", tmp_path / "bare"
    for path in (added, bare):
        shutil.copytree(localized, path)
    shutil.copy(added / "masks" / "share-0.1.safetensors", added / "masks" / "share-0.4.safetensors")
    with pytest.raises(GeffectError, match=r"has no checksum of masks/share-0\.4\.safetensors\. .*again\.$"):
        read_localization(added)
    os.remove(bare / "checksums.json")
    with pytest.raises(
        GeffectError, match=r"The checksums in .*checksums\.json cannot be read: .*estore it from a copy, or localize"
    ):
        read_localization(bare)


def test_localizing_refuses_validation_sets_of_no_domain(start: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=r"--validation has the domain other, which is none of privacy, copyright"):
        _localize(start, tmp_path / "masks", validation=["other=builtin:domains/privacy"])
    assert not (tmp_path / "masks").exists()


def test_domains_are_read_as_written() -> None:
    (one,) = parse_domains(["p=builtin:domains/privacy[2:4]"])
    assert (one.unlearn, one.part("val").retention) == (  # type: ignore[union-attr]
        "builtin:domains/privacy/unlearn/train[2:4]",
        "builtin:domains/privacy/retention/val[2:4]",
    )
    (two,) = parse_domains(["p=a.json[:3], b.csv"])
    assert (two.unlearn, two.retention, two.part("val")) == ("a.json[:3]", "b.csv", None)
