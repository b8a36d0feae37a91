"""What a run needs before it starts, and what is said where it is missing."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from geffect import api
from geffect.data import encode, sources
from geffect.data.load import load_set
from geffect.errors import GeffectError
from geffect.models.scoring import Reference
from geffect.objectives.registry import make_objective
from geffect.record.reader import read_environment, read_lines
from geffect.rectifiers.registry import make_rectifier
from geffect.training import setup
from geffect.training.batches import alternatives, training_sets
from geffect.training.dry_run import passes
from geffect.training.setup import prepare, warn_of_rounding
from tests.conftest import SHAPE, Command, config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "ga + kl(on=general)"}, "needs a set for on=general. Name one with --general"),
        ({"standard_errors": True}, "--standard-errors needs two or more micro-batches a step"),
        ({"save_gradients": ["rectified"]}, "'none' has no gradient rectified to save"),
        ({"evaluate": ["general"]}, "--evaluate general names no set of this run"),
        ({"evaluate": ["heldout"], "until_accuracy": 0.3}, "--until-accuracy needs the forget set evaluated"),
        ({"objective": "rmu(layer=9)"}, "no hidden state 9. Choose one from 0"),
        ({"objective": "kl"}, "'kl' has no term on the forget set"),
        ({"objective": "npo(variant=tofu)"}, "npo has no parameter 'variant'. It has beta"),
        ({"objective": "po(variant=idk)"}, "variant of po is 'idk'. It should be 'mean' or 'pooled'"),
        ({"rectifier": "gru(space=updates)"}, "space of gru is 'updates'. It should be 'gradient', 'update' or 'both'"),
        ({"rectifier": "gru(space=1)"}, "space of gru is 1. It should be 'gradient', 'update' or 'both'"),
    ],
)
def test_what_is_missing_or_unknown_is_named_and_nothing_is_left(
    start: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(GeffectError, match=says):
        api.unlearn(config(start, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"overlap": -0.1},
        {"overlap": 2},
        {"prediction": -1},
        {"mode": "papr"},
        {"save_gradients": ["update"]},
        {"autocast": "float16"},
        {"keep_dropout": "maybe"},
        {"lora_dropout": 1},
        {"until_accuracy": 2},
    ],
)
def test_values_out_of_bounds_are_refused_in_one_line(start: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(GeffectError, match=rf"^--{next(iter(changes)).replace('_', '-')}[^\n]*$"):
        config(start, tmp_path / "run", **changes)


def test_texts_have_no_questions_to_refuse(start: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("A long text. " * 200, encoding="utf-8")
    chosen = config(start, tmp_path / "run", objective="dpo", forget=str(tmp_path / "corpus.txt"), max_length=64)
    with pytest.raises(GeffectError, match=r"corpus\.txt has texts, and 'dpo' needs questions to refuse"):
        api.unlearn(chosen)


def test_a_text_set_is_unlearned_in_chunks(start: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("A long text about nothing. " * 200, encoding="utf-8")
    chosen = config(
        start, tmp_path / "run", objective="npo + gd", forget=str(tmp_path / "corpus.txt"), max_length=32, steps=1
    )
    prepared = prepare(chosen)
    assert len(prepared.encoded["forget"]) > 10
    assert all(row.labels[0] == -100 and row.labels[1:] == row.input_ids[1:] for row in prepared.encoded["forget"])
    assert (api.unlearn(chosen).path / "DONE").exists()


def test_a_row_longer_than_the_models_context_is_refused(tmp_path: Path) -> None:
    from geffect.models.builtin import make_tiny
    from geffect.models.load import quiet_transformers

    model, tokenizer = make_tiny(**SHAPE, max_position_embeddings=12)
    with quiet_transformers():
        model.save_pretrained(tmp_path / "short")
        tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(GeffectError, match=r"12.*--max-length"):
        api.unlearn(config(tmp_path / "short", tmp_path / "run"))
    with pytest.raises(GeffectError, match=r"12.*--max-length"):
        api.plan(config(tmp_path / "short", tmp_path / "run"))


def test_every_epoch_has_refusals_of_its_own(start: Path, tmp_path: Path) -> None:
    chosen = config(start, tmp_path / "run", objective="dpo", steps=7)  # 12 rows by fours: 2⅓ epochs
    prepared = prepare(chosen)
    rows = alternatives(prepared, "forget", 12)
    assert [row.index for row in rows] == list(range(36))
    assert rows[0].input_ids != rows[12].input_ids
    assert set(training_sets(prepared)) == {"forget", "retain", "alternative"}
    without = replace(prepared, config=chosen.replace(objective="ga + gd(on=retain)"))
    assert set(training_sets(without)) == {"forget", "retain"}


@pytest.mark.parametrize("name", ["dpo", "po", "flat", "IdkDPO"])
def test_other_answers_meet_their_own_questions(name: str, start: Path, tmp_path: Path) -> None:
    """As AltPO and LUNE have them: several alternatives to every forget question, in a file."""
    questions = [str(each["question"]) for each in load_set("builtin:authors/forget[:4]").examples]
    rows = [{"question": each, "answer": f"Other {i}, {draw}."} for i, each in enumerate(questions) for draw in "ab"]
    (tmp_path / "other.json").write_text(json.dumps(rows), encoding="utf-8")
    objective = f"{name}(answers='{tmp_path}/other.json') + gd"
    chosen = config(start, tmp_path / "run", objective=objective, forget="builtin:authors/forget[:4]", steps=2)
    prepared = prepare(chosen)
    decode = prepared.loaded.tokenizer.decode
    for row in alternatives(prepared, "forget", 4):
        text = decode(row.input_ids)
        assert questions[row.index % 4] in text and f"Other {row.index % 4}, " in text
    first = read_lines(api.unlearn(chosen).path)[0]
    assert read_environment(chosen.out)["data"]["answers"]["examples"] == 4
    if name.lower().endswith("dpo"):  # −(2/β) mean log σ(0), and the retain loss
        assert first["loss_objective"] - first["loss_retain"] == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)


def _trainer(start: Path, out: Path, objective: str = "ga + kl", **changes: Any) -> Any:
    from geffect.training.dry_run import training_arguments
    from geffect.training.unlearn import UnlearnTrainer

    chosen = config(start, out, objective=objective)
    loaded = changes.pop("loaded", None) or api.load_model(chosen.model)
    prepared = prepare(chosen)
    sets = {name: prepared.encoded[name] for name in ("forget", "retain")}
    settings: dict[str, Any] = {
        "tokenizer": loaded.tokenizer,
        "config": chosen,
        "sets": sets,
        "evaluation_sets": sets,
        "sink": [].append,
    }
    return UnlearnTrainer(loaded.model, training_arguments(chosen, 2), **(settings | changes))


def test_a_reference_of_another_architecture_is_refused(start: Path, tmp_path: Path) -> None:
    from geffect.models.builtin import make_tiny

    other, _ = make_tiny(**(SHAPE | {"intermediate_size": 40}))
    with pytest.raises(GeffectError, match=r"The reference has .*mlp.*, the model .*mlp"):
        _trainer(start, tmp_path / "run", reference=Reference(other))


def test_reference_numbers_of_other_tokens_are_refused(start: Path, tmp_path: Path) -> None:
    import torch

    columns = {"forget": {"ref_nll": [torch.zeros(3)] * 12}}
    with pytest.raises(GeffectError, match="ref_nll of the forget set has 3 tokens in example 0"):
        _trainer(start, tmp_path / "run", objective="npo", columns=columns)


def test_a_missing_reference_is_named(start: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match="needs ref_logits of a frozen reference, and there is none"):
        _trainer(start, tmp_path / "run").train()


def test_weights_that_carry_no_gradient_are_refused(start: Path, tmp_path: Path) -> None:
    loaded = api.load_model(str(start))
    loaded.model.requires_grad_(False)
    with pytest.raises(GeffectError, match=r"The weights are all frozen. .* --lora"):
        _trainer(start, tmp_path / "run", loaded=loaded)
    loaded = api.load_model(str(start))
    vars(loaded.model)["is_quantized"] = True  # as transformers marks what it loads in 4 or 8 bits
    with pytest.raises(GeffectError, match="The weights are quantized"):
        _trainer(start, tmp_path / "run", loaded=loaded)


@pytest.mark.parametrize(
    ("objective", "rectifier", "says"),
    [
        (
            "po",
            "none",
            "alternative 1 forward 1 backward; every 5 steps: forget 1 forward 1 backward, "
            "alternative 1 forward 1 backward, retain 1 forward 1 backward",
        ),
        (
            "npo + kl",
            "gru",
            "forget 1 forward 1 backward, retain 1 forward 2 backward; every 5 steps: "
            "forget 1 forward 2 backward, retain 1 forward 2 backward",
        ),
        (
            "ga + gd(on=general)",
            "none",
            "forget 1 forward 1 backward, general 1 forward 1 backward; every 5 steps: "
            "forget 1 forward 1 backward, general 1 forward 1 backward, retain 1 forward 1 backward",
        ),
    ],
)
def test_the_plan_counts_the_passes_of_a_step(objective: str, rectifier: str, says: str) -> None:
    assert passes(make_objective(objective), make_rectifier(rectifier), 5) == says


@pytest.mark.parametrize(
    ("dtype", "rate", "told"), [("bfloat16", 1e-5, 1), ("bfloat16", 1e-3, 0), ("float32", 1e-5, 0)]
)
def test_steps_lost_in_rounding_are_told(
    dtype: str, rate: float, told: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_rounding(config(tmp_path, tmp_path / "run", dtype=dtype, learning_rate=rate))
    assert sum("vanish in bfloat16" in record.message for record in caplog.records) == told


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        (
            "unlearn",
            ["--forget", "{a}", "--retain", "{b}", "--heldout", "{a}", "--objective", "npo + gd", "--steps", "1"],
        ),
        ("finetune", ["--train", "{a}", "--train", "{b}", "--steps", "1"]),
        ("localize", ["--domain", "one={a},{b}"]),
        ("inspect", ["--forget", "{a}", "--retain", "{b}", "--objective", "ga", "--objective", "wga"]),
    ],
)
def test_the_command_line_reads_and_encodes_each_set_once(
    verb: str, given: list[str], start: Path, tmp_path: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("a", "b")}
    for name, file in files.items():
        file.write_text(json.dumps([{"question": f"{name}{i}?", "answer": "Yes."} for i in range(4)]), encoding="utf-8")
    counts: Counter[str] = Counter()

    def counted(name: str, real: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[f"{name} {Path(key(*args)).name}"] += 1
            return real(*args, **kwargs)

        return call

    reading = counted("read", sources.read_rows, lambda file, *_: file)
    monkeypatch.setattr("geffect.data.load.read_rows", reading)
    encoding = counted("encode", encode.encode_set, lambda _, rows, *__: rows.name)
    monkeypatch.setattr(setup, "encode_set", encoding)
    monkeypatch.setattr(setup.encode, "__kwdefaults__", {"by": encoding})
    model = [str(start)] if verb == "inspect" else ["--model", str(start)]
    ended = invoke(verb, *model, *(each.format(**files) for each in given), "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert counts == {f"{done} {file.name}": 1 for done in ("read", "encode") for file in files.values()}


@pytest.mark.parametrize("model", ["builtin:tiny-untrained", "{start}"])
def test_an_outline_encodes_as_the_model_does(model: str, start: Path, tmp_path: Path) -> None:
    outlined = setup.prepare(config(Path(model.format(start=start)), tmp_path / "run"))
    loaded = api.load_model(model.format(start=start))
    whole = outlined.with_weights(loaded)
    assert whole.loaded is loaded
    for name, rows in outlined.sets.items():
        assert whole.encoded[name] == setup.encode(whole.config, loaded, rows)
