"""What each family's parameters are: layers by hand, from its module tree and forward pass."""

# family → embedding and head (one tensor where tied), what else stands outside the blocks, and block i's own
TABLES: dict[str, tuple[tuple[str, str], dict[str, str], str]] = {
    "llama": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight input_layernorm.weight "
        "post_attention_layernorm.weight",
    ),
    "mistral": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight input_layernorm.weight "
        "post_attention_layernorm.weight",
    ),
    "qwen2": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.q_proj.bias self_attn.k_proj.weight self_attn.k_proj.bias "
        "self_attn.v_proj.weight self_attn.v_proj.bias self_attn.o_proj.weight mlp.gate_proj.weight "
        "mlp.up_proj.weight mlp.down_proj.weight input_layernorm.weight post_attention_layernorm.weight",
    ),
    "qwen3": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "self_attn.q_norm.weight self_attn.k_norm.weight mlp.gate_proj.weight mlp.up_proj.weight "
        "mlp.down_proj.weight input_layernorm.weight post_attention_layernorm.weight",
    ),
    "qwen3-moe": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "self_attn.q_norm.weight self_attn.k_norm.weight mlp.experts.gate_up_proj mlp.experts.down_proj "
        "mlp.gate.weight input_layernorm.weight post_attention_layernorm.weight",
    ),
    "gemma2": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight input_layernorm.weight "
        "post_attention_layernorm.weight pre_feedforward_layernorm.weight post_feedforward_layernorm.weight",
    ),
    "gemma3": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "self_attn.q_norm.weight self_attn.k_norm.weight mlp.gate_proj.weight mlp.up_proj.weight "
        "mlp.down_proj.weight input_layernorm.weight post_attention_layernorm.weight "
        "pre_feedforward_layernorm.weight post_feedforward_layernorm.weight",
    ),
    "phi": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {
            "model.final_layernorm.weight": "final_norm",
            "model.final_layernorm.bias": "final_norm",
            "lm_head.bias": "lm_head",
        },
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.q_proj.bias self_attn.k_proj.weight self_attn.k_proj.bias "
        "self_attn.v_proj.weight self_attn.v_proj.bias self_attn.dense.weight self_attn.dense.bias "
        "mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias input_layernorm.weight input_layernorm.bias",
    ),
    "phi3": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.o_proj.weight self_attn.qkv_proj.weight mlp.gate_up_proj.weight mlp.down_proj.weight "
        "input_layernorm.weight post_attention_layernorm.weight",
    ),
    "opt": (
        ("model.decoder.embed_tokens.weight", "lm_head.weight"),
        {
            "model.decoder.embed_positions.weight": "embed",
            "model.decoder.final_layer_norm.weight": "final_norm",
            "model.decoder.final_layer_norm.bias": "final_norm",
        },
        "model.decoder.layers.* "
        "self_attn.k_proj.weight self_attn.k_proj.bias self_attn.v_proj.weight self_attn.v_proj.bias "
        "self_attn.q_proj.weight self_attn.q_proj.bias self_attn.out_proj.weight self_attn.out_proj.bias "
        "self_attn_layer_norm.weight self_attn_layer_norm.bias fc1.weight fc1.bias fc2.weight fc2.bias "
        "final_layer_norm.weight final_layer_norm.bias",
    ),
    "opt-projected": (
        ("model.decoder.embed_tokens.weight", "lm_head.weight"),
        {
            "model.decoder.embed_positions.weight": "embed",
            "model.decoder.project_out.weight": "final_norm",
            "model.decoder.project_in.weight": "embed",
        },
        "model.decoder.layers.* "
        "self_attn.k_proj.weight self_attn.k_proj.bias self_attn.v_proj.weight self_attn.v_proj.bias "
        "self_attn.q_proj.weight self_attn.q_proj.bias self_attn.out_proj.weight self_attn.out_proj.bias "
        "self_attn_layer_norm.weight self_attn_layer_norm.bias fc1.weight fc1.bias fc2.weight fc2.bias "
        "final_layer_norm.weight final_layer_norm.bias",
    ),
    "gpt2": (
        ("transformer.wte.weight", "lm_head.weight"),
        {
            "transformer.wpe.weight": "embed",
            "transformer.ln_f.weight": "final_norm",
            "transformer.ln_f.bias": "final_norm",
        },
        "transformer.h.* "
        "ln_1.weight ln_1.bias attn.c_attn.weight attn.c_attn.bias attn.c_proj.weight attn.c_proj.bias "
        "ln_2.weight ln_2.bias mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias",
    ),
    "gpt-neox": (
        ("gpt_neox.embed_in.weight", "lm_head.weight"),
        {"gpt_neox.final_layer_norm.weight": "final_norm", "gpt_neox.final_layer_norm.bias": "final_norm"},
        "gpt_neox.layers.* "
        "input_layernorm.weight input_layernorm.bias post_attention_layernorm.weight "
        "post_attention_layernorm.bias attention.query_key_value.weight attention.query_key_value.bias "
        "attention.dense.weight attention.dense.bias mlp.dense_h_to_4h.weight mlp.dense_h_to_4h.bias "
        "mlp.dense_4h_to_h.weight mlp.dense_4h_to_h.bias",
    ),
    "gptj": (
        ("transformer.wte.weight", "lm_head.weight"),
        {"transformer.ln_f.weight": "final_norm", "transformer.ln_f.bias": "final_norm", "lm_head.bias": "lm_head"},
        "transformer.h.* "
        "ln_1.weight ln_1.bias attn.k_proj.weight attn.v_proj.weight attn.q_proj.weight attn.out_proj.weight "
        "mlp.fc_in.weight mlp.fc_in.bias mlp.fc_out.weight mlp.fc_out.bias",
    ),
    "falcon": (
        ("transformer.word_embeddings.weight", "lm_head.weight"),
        {"transformer.ln_f.weight": "final_norm", "transformer.ln_f.bias": "final_norm"},
        "transformer.h.* "
        "self_attention.query_key_value.weight self_attention.dense.weight mlp.dense_h_to_4h.weight "
        "mlp.dense_4h_to_h.weight input_layernorm.weight input_layernorm.bias",
    ),
    "falcon-new": (
        ("transformer.word_embeddings.weight", "lm_head.weight"),
        {"transformer.ln_f.weight": "final_norm", "transformer.ln_f.bias": "final_norm"},
        "transformer.h.* "
        "self_attention.query_key_value.weight self_attention.dense.weight mlp.dense_h_to_4h.weight "
        "mlp.dense_4h_to_h.weight ln_attn.weight ln_attn.bias ln_mlp.weight ln_mlp.bias",
    ),
    "bloom": (
        ("transformer.word_embeddings.weight", "lm_head.weight"),
        {
            "transformer.word_embeddings_layernorm.weight": "embed",
            "transformer.word_embeddings_layernorm.bias": "embed",
            "transformer.ln_f.weight": "final_norm",
            "transformer.ln_f.bias": "final_norm",
        },
        "transformer.h.* "
        "input_layernorm.weight input_layernorm.bias self_attention.query_key_value.weight "
        "self_attention.query_key_value.bias self_attention.dense.weight self_attention.dense.bias "
        "post_attention_layernorm.weight post_attention_layernorm.bias mlp.dense_h_to_4h.weight "
        "mlp.dense_h_to_4h.bias mlp.dense_4h_to_h.weight mlp.dense_4h_to_h.bias",
    ),
    "olmo2": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "self_attn.q_norm.weight self_attn.k_norm.weight mlp.gate_proj.weight mlp.up_proj.weight "
        "mlp.down_proj.weight post_attention_layernorm.weight post_feedforward_layernorm.weight",
    ),
    "starcoder2": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm", "model.norm.bias": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.q_proj.bias self_attn.k_proj.weight self_attn.k_proj.bias "
        "self_attn.v_proj.weight self_attn.v_proj.bias self_attn.o_proj.weight self_attn.o_proj.bias "
        "mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias input_layernorm.weight "
        "input_layernorm.bias post_attention_layernorm.weight post_attention_layernorm.bias",
    ),
    "granite": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight input_layernorm.weight "
        "post_attention_layernorm.weight",
    ),
    "mixtral": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "mlp.gate.weight mlp.experts.gate_up_proj mlp.experts.down_proj input_layernorm.weight "
        "post_attention_layernorm.weight",
    ),
    "stablelm": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm", "model.norm.bias": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight input_layernorm.weight "
        "input_layernorm.bias post_attention_layernorm.weight post_attention_layernorm.bias",
    ),
    "cohere": (
        ("model.embed_tokens.weight", "lm_head.weight"),
        {"model.norm.weight": "final_norm"},
        "model.layers.* "
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight "
        "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight input_layernorm.weight",
    ),
}

# models whose blocks are not all in one list, or share tensors, or have more before and after them: name → layer
UNUSUAL: dict[str, dict[str, str]] = {
    "bert": {
        r"bert\.embeddings\.word_embeddings\.weight": "tied",
        r"bert\.embeddings\.(?:position_embeddings|token_type_embeddings|LayerNorm)\..*": "embed",
        r"bert\.encoder\.layer\.(\d)\..*": "block_{}",
        r"cls\.predictions\.transform\..*": "final_norm",
        r"cls\.predictions\.bias": "lm_head",
    },
    "modernbert-decoder": {
        r"model\.embeddings\.tok_embeddings\.weight": "tied",
        r"model\.embeddings\.norm\.weight": "embed",
        r"model\.layers\.(\d)\..*": "block_{}",
        r"model\.final_norm\.weight|lm_head\.(?:dense|norm)\.weight": "final_norm",
        r"decoder\.bias": "lm_head",
    },
    "xlm": {
        r"transformer\.embeddings\.weight": "embed",
        r"transformer\.(?:position_embeddings|layer_norm_emb)\..*": "embed",
        r"transformer\.(?:attentions|layer_norm1|ffns|layer_norm2)\.(\d)\..*": "block_{}",
        r"pred_layer\.proj\..*": "lm_head",
    },
    "gemma3n": {
        r"model\.embed_tokens\.weight": "tied",
        r"model\.(?:embed_tokens_per_layer|per_layer_.*|altup_projections\.\d)\.weight": "embed",
        r"model\.layers\.(\d)\..*": "block_{}",
        r"model\.(?:norm|altup_unembed_projections\.\d)\.weight": "final_norm",
    },
    "zamba2": {
        r"model\.embed_tokens\.weight": "tied",
        r"model\.layers\.\d\.shared_transformer\..*": "shared",
        r"model\.layers\.(\d)\.(?!shared_transformer).*": "block_{}",
        r"model\.final_layernorm\.weight": "final_norm",
    },
    "llava": {
        r"model\.language_model\.embed_tokens\.weight": "embed",
        r"model\.language_model\.layers\.(\d)\..*": "block_{}",
        r"model\.language_model\.norm\.weight": "final_norm",
        r"lm_head\.weight": "lm_head",
    },
}
