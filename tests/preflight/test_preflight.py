"""The doctor on set-ups of which one thing each is known to be wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from geffect import api
from geffect.cli.main import main
from geffect.config import DoctorConfig
from geffect.data.encode import EncodedExample, encode_set
from geffect.data.load import QASet, load_set
from geffect.models.load import quiet_transformers
from geffect.preflight import Finding, ends, masks
from tests.conftest import SHAPE
from tests.data.test_encode import BOS, CHAT, STOP, TURN_END, adding, ended_by


def examine(model: Path | str, **changes: Any) -> dict[str, Finding]:
    plain = {
        "model": str(model),
        "forget": "builtin:authors/forget[:12]",
        "retain": "builtin:authors/forget[2:12]",
        "batch_size": 4,
        "learning_rate": 1e-3,
    }
    return {found.name: found for found in api.doctor(DoctorConfig.read(**(plain | changes)))}


def test_of_a_good_set_up_nothing_is_bad(known: Path) -> None:
    found = examine(known, forget="builtin:authors/forget[:2]")
    assert list(found) == [
        "memory",
        "batches",
        "weights",
        "tie",
        "shared",
        "masks, forget",
        "ends, forget",
        "masks, retain",
        "ends, retain",
        "knows forget",
        "knows retain",
        "determinism",
        "derivative",
        "precision, bfloat16",
        "precision, float32",
    ]
    assert not [each for each in found.values() if each.status == "bad" and not each.name.startswith("knows")]
    assert all(bool(each.remedy) == (each.status != "good") for each in found.values())
    digits = {name: float(found[f"precision, {name}"].found.split()[3]) for name in ("bfloat16", "float32")}
    assert digits["bfloat16"] < 3 < 4.5 < digits["float32"]
    assert found["determinism"].status == "good"


def test_examples_that_two_sets_share_are_warned_of(start: Path, tmp_path: Path) -> None:
    near = tmp_path / "near.json"
    near.write_text(
        json.dumps([
            {"question": q.upper(), "answer": f" {a.lower()} "}
            for q, a in load_set("builtin:authors/forget[3:5]").contents
        ]),
        encoding="utf-8",
    )
    found = examine(start, heldout=str(near))
    assert found["shared, forget and retain"].status == "warning" and "shared" not in found
    assert found["shared, forget and retain"].found.startswith(
        "10 examples of forget stand in retain (numbers 2, 3, 4,"
    )
    told = "2 examples of forget stand in heldout, 2 but for case, spaces and punctuation (numbers 3, 4)"
    assert found["shared, forget and heldout"].found == told
    assert found["shared, forget and heldout"].remedy.startswith("leave them out of one set")


def test_bfloat16_weights_are_warned_of(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geffect.preflight.DIGITS", 3.0)  # so small a model keeps more than two
    found = examine(start, dtype="bfloat16", learning_rate=1e-5)
    assert found["weights"].status == "warning" and "vanish in bfloat16" in found["weights"].found
    assert found["derivative"].found == "not measured: 16-bit weights do not move by so little"
    assert found["precision, bfloat16"].status == "warning"
    assert found["precision, bfloat16"].remedy.startswith("use --dtype float32")
    assert found["precision, float32"].status == "good"


def test_a_set_the_model_never_knew_is_bad(start: Path) -> None:
    found = examine(start)
    assert found["knows forget"].status == "bad" and "does not know the set" in found["knows forget"].found
    assert found["knows forget"].remedy == "train it first: geffect finetune --train SET"
    assert found["knows retain"].status == "warning"


def test_a_chat_template_that_drops_the_beginning_is_bad(start: Path, tmp_path: Path) -> None:
    from geffect.models.builtin import make_tiny

    tokenizer = adding(f"{BOS} $A")
    tokenizer.chat_template = CHAT
    model, _ = make_tiny(vocabulary=1700, **SHAPE)
    model.resize_token_embeddings(len(tokenizer))
    with quiet_transformers():
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
    found = examine(tmp_path / "model")["ends, forget"]
    assert found.status == "bad"
    assert found.found.startswith(f"12 of 12 examples begin without {BOS}, with which plain texts begin once")
    assert "chat template" in found.remedy


def test_a_beginning_put_twice_an_end_cut_off_and_an_empty_answer_are_found() -> None:
    tokenizer = adding(f"{BOS} $A")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    twice, once, cut = (
        EncodedExample(i, ids, [-100, *ids[1:]])
        for i, ids in enumerate([[bos, bos, 5, eos], [bos, 5, eos], [bos, 5, 6]])
    )
    assert ends("heldout", [twice, once], tokenizer).found.startswith(f"1 of 2 examples begin twice with {BOS}")
    assert ends("heldout", [once], tokenizer).status == "good"
    assert ends("heldout", [once, cut], tokenizer).found.startswith("1 of 2 examples do not end with")
    turned = ended_by(CHAT.replace(STOP, TURN_END))
    [row] = encode_set(turned, QASet("set", ({"question": "Who?", "answer": "Ada."},)))
    assert ends("heldout", [row], turned) == Finding(
        "ends, heldout", "good", f"examples begin as plain texts do and end with a learned {TURN_END}"
    )
    empty = EncodedExample(7, [bos, 5, eos], [-100, -100, eos])
    assert masks("heldout", [once, empty]).found.endswith("examples have 1 to 2 such tokens; only one in examples 7")
    assert masks("heldout", [once]).status == "good"


def test_weights_without_gradients_are_bad_and_are_not_differentiated(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = api.load_model

    def frozen(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        loaded.model.requires_grad_(False)
        return loaded

    monkeypatch.setattr(api, "load_model", frozen)
    found = examine(start)
    assert found["weights"].status == "bad" and "The weights are all frozen" in found["weights"].found
    assert "--lora" in found["weights"].remedy
    assert "determinism" not in found


def test_a_last_step_of_fewer_rows_and_a_tie_are_told(start: Path, tmp_path: Path) -> None:
    from geffect.models.builtin import make_tiny

    model, tokenizer = make_tiny(**SHAPE, tie_word_embeddings=True)
    with quiet_transformers():
        model.save_pretrained(tmp_path / "tied")
        tokenizer.save_pretrained(tmp_path / "tied")
    found = examine(tmp_path / "tied", batch_size=5)
    assert found["batches"].status == "warning" and found["batches"].found.endswith("last step has 2 examples")
    assert (
        found["tie"].found
        == "model.embed_tokens.weight is embedding and head: its gradients on targets are split by use"
    )
    assert examine(tmp_path / "tied", lora=2)["tie"].found == "embedding and head are one tensor, not trained"


def test_too_little_memory_is_bad(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000, total=10**12))
    found = examine(start)
    assert found["memory"].status == "bad" and "--batch-size" in found["memory"].remedy
    assert found["precision"].found.startswith("not measured: it takes ")


def test_a_gradient_that_is_wrong_is_bad_and_a_right_one_good(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine(start)["derivative"].status == "good"
    assert examine(start, lora=2)["derivative"].status == "good"
    load = api.load_model

    def doubled(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        loaded.model.lm_head.register_forward_hook(lambda _, inputs, out: 2 * out - out.detach())
        return loaded

    monkeypatch.setattr(api, "load_model", doubled)
    found = examine(start)["derivative"]
    assert found.status == "bad"  # half the norm is missing
    assert found.remedy.startswith("do not trust these gradients")


def test_looking_leaves_the_model_alone_and_writes_nothing(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    examine(start, lora=2, lora_dropout=0.2)
    assert torch.equal(state, torch.get_rng_state())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("as_json", [False, True])
def test_on_the_command_line_a_bad_finding_ends_in_1(
    start: Path, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(start), "--forget", "builtin:authors/forget[:4]", "--retain", "builtin:authors/retain[:4]"]
    monkeypatch.setattr(sys, "argv", ["geffect", "doctor", *flags, *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out = capsys.readouterr().out
    if as_json:
        by_name = {each["name"]: each for each in json.loads(out)}
        assert by_name["knows forget"]["status"] == "bad"
        assert set(by_name["knows forget"]) == {"name", "status", "found", "remedy"}
    else:
        assert "     bad  knows forget: token accuracy 0.0" in out
        assert "→ train it first: geffect finetune --train SET" in out
