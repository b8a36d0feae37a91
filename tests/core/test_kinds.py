"""Which kinds of model are measured, and what the others are told."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import geffect
from analysis.architectures import changes, kinds, outcome, state
from geffect.core.architectures import check_runs
from geffect.core.layers import layout, trainable_parameters
from geffect.errors import GeffectError
from geffect.models.load import load, outline, quiet_transformers
from tests.models.test_models import TOKENIZER
from tests.support.architectures import LLAMA, SMALL, make, make_unusual
from tests.support.cases import llama

ROWS = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}, {"input_ids": [9, 5, 4], "labels": [-100, 5, 4]}]
PLAIN = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "head_dim")}
BART = SMALL | {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    "bos_token_id": 2,
}
T5 = {"vocab_size": 48, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "t5": (lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)), "an encoder-decoder"),
    "bart": (
        lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)),
        "is an encoder-decoder; [^\\n]* Choose a",
    ),
    "reward": (
        lambda: transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**LLAMA, num_labels=1)),
        "scores texts and predicts no token; [^\\n]* Name the causal language model",
    ),
    "reward, tied": (
        lambda: transformers.LlamaForSequenceClassification(
            transformers.LlamaConfig(**LLAMA, num_labels=1, tie_word_embeddings=True)
        ),
        "scores texts and predicts no token",
    ),
    "masked": (
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(**PLAIN)),
        "depend on later tokens; [^\\n]* Set is_decoder: true",
    ),
    "no head": (
        lambda: transformers.ViTModel(
            transformers.ViTConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
            )
        ),
        "ViTModel, of the model type vit, is not a causal language model",
    ),
}


def saved(path: Path, model: Any) -> str:
    with quiet_transformers():
        model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_causal_language_model_is_refused_when_loaded(kind: str, tmp_path: Path) -> None:
    make_one, reason = REFUSED[kind]
    with pytest.raises(GeffectError, match=rf"^[^\n]*{reason}[^\n]*$"):
        load(saved(tmp_path, make_one()))


@pytest.mark.parametrize("kind", ["t5", "bart", "reward", "no head"])
def test_an_outline_refuses_them_too(kind: str, tmp_path: Path) -> None:
    make_one, reason = REFUSED[kind]
    with pytest.raises(GeffectError, match=reason):
        outline(saved(tmp_path, make_one()))


@pytest.mark.parametrize("kind", ["t5", "bart", "reward", "masked"])
def test_a_monitor_refuses_them_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    make_one, reason = REFUSED[kind]
    with pytest.raises(GeffectError, match=reason):
        geffect.monitor(make_one(), {"forget": ROWS, "retain": ROWS}, out=tmp_path / "run").open()
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_so_in_one_line(tmp_path: Path, invoke: Callable[..., Any]) -> None:
    model = saved(tmp_path / "bart", REFUSED["bart"][0]())
    ended = invoke(
        "evaluate",
        "--model",
        model,
        "--metric",
        "loss",
        "--set",
        "forget=builtin:authors/forget[:2]",
        "--out",
        tmp_path / "out",
    )
    assert ended.code == 2
    assert "BartForConditionalGeneration is an encoder-decoder" in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


def test_a_decoder_of_bert_is_loaded(tmp_path: Path) -> None:
    config = transformers.BertConfig(**(PLAIN | {"vocab_size": len(TOKENIZER)}), is_decoder=True)
    loaded = load(saved(tmp_path, transformers.BertLMHeadModel(config)))
    assert set(layout(loaded.model).layers.values()) == {"tied", "embed", "block_0", "block_1", "final_norm", "lm_head"}


class Changed(nn.Module):
    """A Llama whose logits a function changes: it takes them and the mask."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner, self.change = llama().to(dtype), change
        self.config = self.inner.config
        self.layers = self.inner.model.layers

    def forward(self, input_ids: Any, attention_mask: Any, **rest: Any) -> Any:
        answer = self.inner(input_ids=input_ids, attention_mask=attention_mask, **rest)
        answer.logits = self.change(answer.logits, attention_mask)
        return answer


def test_a_model_that_sees_padding_is_refused() -> None:
    model = Changed(lambda logits, mask: logits + mask.float().mean(1)[:, None, None])
    with pytest.raises(GeffectError, match="depend on padding on the right"):
        geffect.monitor(model, {"forget": ROWS, "retain": ROWS}).open()


@pytest.mark.parametrize("shift", [0.002, 0.1])  # a text, of the logits' largest, by the width of the batch
def test_a_model_that_sees_the_length_of_the_padding_is_refused(shift: float) -> None:
    model = Changed(lambda logits, mask: logits + shift * logits.abs().max() * (mask.shape[1] % 3))
    with pytest.raises(GeffectError, match=r"^The predictions of Changed depend on the length of the padding[^\n]*$"):
        check_runs(model)


def test_a_model_that_takes_whole_chunks_alone_is_not_asked_for_a_shorter_text() -> None:
    def chunks(logits: Tensor, mask: Tensor) -> Tensor:
        return logits.view(len(logits), -1, 8, logits.shape[-1]).flatten(1, 2)

    check_runs(Changed(chunks))


@pytest.mark.parametrize(
    ("dtype", "scale", "rounding"),
    [(torch.float32, 1.0, 1e-5), (torch.float32, 1e6, 1e-5), (torch.float64, 1.0, 1e-6), (torch.bfloat16, 1.0, 0.03)],
)
def test_rounding_of_a_text_alone_is_no_dependence(dtype: torch.dtype, scale: float, rounding: float) -> None:
    # float64 models take their norms in float32, and bfloat16 ones may answer in float32
    def rounded(logits: Tensor, mask: Tensor) -> Tensor:
        return scale * logits.float() * (1 + rounding * (len(mask) == 1))

    check_runs(Changed(rounded, dtype))


def test_a_model_that_fails_on_tokens_is_refused() -> None:
    model = llama()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("wants pixels\nand more")

    model.forward = broken
    with pytest.raises(
        GeffectError, match=r"^LlamaForCausalLM gives no logits [^\n]*\(RuntimeError: wants pixels\)[^\n]*$"
    ):
        geffect.monitor(model, {"forget": ROWS, "retain": ROWS}).open()


def test_of_a_multimodal_model_the_text_decoder_is_measured_and_the_rest_is_frozen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_unusual("llava")
    rest = sum(p.numel() for n, p in model.named_parameters() if "vision_tower" in n or "projector" in n)
    with caplog.at_level(logging.WARNING, "geffect"):
        loaded = load(saved(tmp_path, model)).model
    (line,) = [each.getMessage() for each in caplog.records]
    assert f"its text decoder is measured; the other {rest} parameters (model.multi_modal_projector, " in line
    assert line.endswith("model.vision_tower) are frozen")
    assert type(loaded) is type(model)
    frozen = {name for name, p in loaded.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if "vision_tower" in n or "projector" in n}
    assert layout(loaded).layers == layout(model).layers
    assert layout(outline(str(tmp_path))[0]).layers == layout(model).layers


def test_a_monitor_on_a_multimodal_model_leaves_the_rest_out_and_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = make_unusual("llava")
    with (
        caplog.at_level(logging.WARNING, "geffect"),
        geffect.monitor(model, {"forget": ROWS, "retain": ROWS}) as monitor,
    ):
        ids = torch.tensor([[5, 6, 7]])
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        before = state(model)
        monitor.step()
        assert list(changes(before, state(model))) == []
    assert [each.getMessage().rpartition(") ")[2] for each in caplog.records] == ["are left out"]
    assert all(p.requires_grad for p in model.parameters())
    assert not any("vision" in name for name in monitor.run.to_frame("parameter")["parameter"])
    assert monitor.run.g_effect()["group"].tolist() == ["embed", "shallow", "middle", "deep", "lm_head"]


SHARED = {
    "vb-lora": lambda: _adapted("VBLoRAConfig", r=4, num_vectors=16, vector_length=8, topk=2),
    "tiny-lora": lambda: _adapted("TinyLoraConfig", weight_tying=1.0),
}


def _adapted(config: str, **settings: Any) -> Any:
    import peft

    with quiet_transformers():
        chosen = getattr(peft, config)(target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
        return peft.get_peft_model(make("llama", tied=False), chosen)


@pytest.mark.parametrize("kind", SHARED)
def test_what_an_adapter_shares_among_blocks_lies_in_no_block(kind: str) -> None:
    model = SHARED[kind]()
    found = layout(model)
    shared = {name for name, layer in found.layers.items() if layer == "shared"}
    assert shared == {name for name in found.layers if "vector_bank" in name or "tinylora_v" in name}
    assert all(layer.startswith("block_") for name, layer in found.layers.items() if name not in shared)
    assert {found.groups()[name] for name in shared} == {"shared"}


def test_a_block_that_runs_twice_is_shared() -> None:
    model = make("llama", tied=False)
    first = model.model.layers[0]
    model.model.layers = nn.ModuleList([first, model.model.layers[1], first])
    layers = layout(model).layers
    assert {layer for name, layer in layers.items() if ".layers.0." in name} == {"shared"}
    assert {layer for name, layer in layers.items() if ".layers.1." in name} == {"block_1"}


def test_a_tensor_of_one_block_that_another_uses_is_shared() -> None:
    model = make("llama", tied=False)
    first, second = (layer.mlp for layer in model.model.layers)
    object.__setattr__(second, "borrowed", first.up_proj.weight)  # used, and not registered
    second.register_forward_hook(lambda module, _, output: output + 0.1 * module.borrowed.mean())
    layers = layout(model).layers
    assert layers["model.layers.0.mlp.up_proj.weight"] == "shared"
    assert layers["model.layers.0.mlp.gate_proj.weight"] == "block_0"


def test_an_embedding_that_a_hand_uses_as_head_is_tied() -> None:
    model = make("llama", tied=False)
    model.lm_head = nn.Identity()
    model.register_forward_hook(_scored)
    assert layout(model).layers["model.embed_tokens.weight"] == "tied"


def _scored(model: Any, _: Any, output: Any) -> Any:
    output.logits = output.logits @ model.model.embed_tokens.weight.T
    return output


def test_of_one_block_nobody_can_tell_which_lists_run_together() -> None:
    config = SMALL | {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "n_langs": 1, "causal": True}
    model = transformers.XLMWithLMHeadModel(transformers.XLMConfig(**config))
    with pytest.raises(GeffectError, match=r"transformer\.ffns|attentions.* beside [^\n]*two blocks or more$"):
        layout(model)


DOZEN = [
    "bert",
    "bloom",
    "deepseek_v3",
    "gemma3n_text",
    "gpt_neox",
    "mamba",
    "mllama",
    "modernbert-decoder",
    "olmoe",
    "xlm",
    "zamba2",
    "reformer",
    "prophetnet",
]


@pytest.mark.parametrize("kind", DOZEN)
@pytest.mark.filterwarnings("ignore")
def test_a_dozen_kinds_and_one_are_right_or_refused(kind: str) -> None:
    with quiet_transformers(), torch.random.fork_rng():
        found = outcome(kind, kinds()[kind])
    assert found["outcome"] == ("refused" if kind in ("reformer", "prophetnet") else "right"), found["why"]


def test_rows_and_layout_are_of_the_same_parameters() -> None:
    model = make_unusual("llava")
    assert list(trainable_parameters(model)) == list(layout(model).layers)
