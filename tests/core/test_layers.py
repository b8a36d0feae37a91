"""Name → group tables, written by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from geffect.core.groups import block_groups, layer_groups
from geffect.core.layers import layout
from geffect.models.load import add_lora
from tests.support import cases

LLAMA = {
    "model.embed_tokens.weight": "embed",
    "model.layers.0.self_attn.q_proj.weight": "shallow",
    "model.layers.0.self_attn.k_proj.weight": "shallow",
    "model.layers.0.self_attn.v_proj.weight": "shallow",
    "model.layers.0.self_attn.o_proj.weight": "shallow",
    "model.layers.0.mlp.gate_proj.weight": "shallow",
    "model.layers.0.mlp.up_proj.weight": "shallow",
    "model.layers.0.mlp.down_proj.weight": "shallow",
    "model.layers.0.input_layernorm.weight": "shallow",
    "model.layers.0.post_attention_layernorm.weight": "shallow",
    "model.norm.weight": "deep",
    "lm_head.weight": "lm_head",
}
GPT2_TIED = {
    "transformer.wte.weight": "tied",
    "transformer.wpe.weight": "embed",
    "transformer.h.0.ln_1.weight": "shallow",
    "transformer.h.0.ln_1.bias": "shallow",
    "transformer.h.0.attn.c_attn.weight": "shallow",
    "transformer.h.0.attn.c_attn.bias": "shallow",
    "transformer.h.0.attn.c_proj.weight": "shallow",
    "transformer.h.0.attn.c_proj.bias": "shallow",
    "transformer.h.0.ln_2.weight": "shallow",
    "transformer.h.0.ln_2.bias": "shallow",
    "transformer.h.0.mlp.c_fc.weight": "shallow",
    "transformer.h.0.mlp.c_fc.bias": "shallow",
    "transformer.h.0.mlp.c_proj.weight": "shallow",
    "transformer.h.0.mlp.c_proj.bias": "shallow",
    "transformer.ln_f.weight": "deep",
    "transformer.ln_f.bias": "deep",
}
NEOX = {
    "gpt_neox.embed_in.weight": "embed",
    "gpt_neox.layers.0.input_layernorm.weight": "shallow",
    "gpt_neox.layers.0.input_layernorm.bias": "shallow",
    "gpt_neox.layers.0.post_attention_layernorm.weight": "shallow",
    "gpt_neox.layers.0.post_attention_layernorm.bias": "shallow",
    "gpt_neox.layers.0.attention.query_key_value.weight": "shallow",
    "gpt_neox.layers.0.attention.query_key_value.bias": "shallow",
    "gpt_neox.layers.0.attention.dense.weight": "shallow",
    "gpt_neox.layers.0.attention.dense.bias": "shallow",
    "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": "shallow",
    "gpt_neox.layers.0.mlp.dense_h_to_4h.bias": "shallow",
    "gpt_neox.layers.0.mlp.dense_4h_to_h.weight": "shallow",
    "gpt_neox.layers.0.mlp.dense_4h_to_h.bias": "shallow",
    "gpt_neox.final_layer_norm.weight": "deep",
    "gpt_neox.final_layer_norm.bias": "deep",
    "lm_head.weight": "lm_head",
}
DEPTHS = {
    1: ["shallow"],
    2: ["shallow", "middle"],
    7: ["shallow", "shallow", "shallow", "middle", "middle", "deep", "deep"],
}


@pytest.mark.parametrize(
    ("make", "table"),
    [(cases.llama, LLAMA), (cases.gpt2, GPT2_TIED), (cases.neox, NEOX)],
    ids=["llama", "gpt2", "neox"],
)
@pytest.mark.parametrize("num_blocks", [1, 2, 7])
def test_every_parameter_stands_in_the_group_a_hand_put_it_in(
    make: Any, table: dict[str, str], num_blocks: int
) -> None:
    expected = {name: group for name, group in table.items() if ".0." not in name}
    for i, group in enumerate(DEPTHS[num_blocks]):
        expected |= {name.replace(".0.", f".{i}.", 1): group for name in table if ".0." in name}
    found = layout(make(num_blocks))
    assert found.groups() == expected
    assert found.num_blocks == num_blocks


def test_an_untied_gpt2_has_a_head_of_its_own() -> None:
    groups = layout(cases.gpt2(1, tied=False)).groups()
    assert groups["transformer.wte.weight"] == "embed"
    assert groups["lm_head.weight"] == "lm_head"


def test_schemes_cut_32_blocks_where_the_paper_and_its_script_do() -> None:
    def sizes(scheme: str) -> list[int]:
        return [block_groups(32, scheme).count(group) for group in ("shallow", "middle", "deep")]

    assert sizes("thirds") == [11, 11, 10]
    assert sizes("paper") == [10, 11, 11]
    assert sizes("paper_script") == [10, 10, 12]


@pytest.mark.parametrize("scheme", ["thirds", "paper", "paper_script"])
def test_the_final_norm_is_deep_in_every_scheme(scheme: str) -> None:
    assert layer_groups(32, scheme)["final_norm"] == "deep"


def test_an_unknown_scheme_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"no scheme 'quarters'\. Choose one of thirds, paper, paper_script"):
        block_groups(4, "quarters")


def test_lora_parameters_stand_in_the_block_they_adapt() -> None:
    layers = layout(cases.lora()).layers
    assert len(layers) == 2 * 7 * 2
    for name, layer in layers.items():
        assert "lora_" in name
        assert layer == f"block_{name.split('.')[2]}"


def test_wrappers_do_not_change_names() -> None:
    model = cases.llama()
    wrapped = nn.Module()
    wrapped.module = model
    assert layout(wrapped) == layout(model)
    adapted = add_lora(cases.llama(), rank=2, seed=0)
    assert all(not name.startswith("base_model") for name in layout(adapted).layers)


def test_frozen_parameters_have_no_row_but_their_blocks_still_count() -> None:
    found = layout(cases.frozen())
    assert "model.embed_tokens.weight" not in found.layers
    assert found.num_blocks == 2


def test_a_stray_parameter_is_named() -> None:
    model = cases.llama()
    model.value_head = nn.Linear(16, 1)
    with pytest.raises(ValueError, match=r"value_head\.weight"):
        layout(model)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="ModuleList"):
        layout(nn.Linear(2, 2))


def test_numel_counts_each_tensor_once() -> None:
    model = cases.gpt2()
    assert sum(layout(model).numel.values()) == sum(p.numel() for p in model.parameters())
    assert torch.equal(model.transformer.wte.weight, model.lm_head.weight)
