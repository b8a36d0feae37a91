"""Tiny random decoders of many families, tied and untied."""

from typing import Any

import torch
import transformers

SMALL = {"vocab_size": 48, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
LLAMA = SMALL | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
GPT = SMALL | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
OPT = SMALL | {
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 16,
}
FALCON = SMALL | {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_kv_heads": 2,
    "alibi": False,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA),
    "mistral": ("Mistral", LLAMA),
    "qwen2": ("Qwen2", LLAMA),
    "qwen3": ("Qwen3", LLAMA),
    "qwen3-moe": ("Qwen3Moe", LLAMA | EXPERTS),
    "gemma2": ("Gemma2", LLAMA | {"query_pre_attn_scalar": 8, "sliding_window": 8}),
    "gemma3": ("Gemma3", LLAMA | {"query_pre_attn_scalar": 8, "sliding_window": 8}),
    "phi": ("Phi", LLAMA),
    "phi3": ("Phi3", LLAMA),
    "opt": ("OPT", OPT),
    "opt-projected": ("OPT", OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "gpt2": ("GPT2", GPT),
    "gpt-neox": ("GPTNeoX", {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "head_dim")}),
    "gptj": ("GPTJ", GPT | {"rotary_dim": 4}),
    "falcon": ("Falcon", FALCON),
    "falcon-new": ("Falcon", FALCON | {"new_decoder_architecture": True}),
    "bloom": ("Bloom", SMALL | {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "olmo2": ("Olmo2", LLAMA),
    "starcoder2": ("Starcoder2", LLAMA),
    "granite": ("Granite", LLAMA),
    "mixtral": ("Mixtral", LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "stablelm": ("StableLm", LLAMA),
    "cohere": ("Cohere", LLAMA),
}


def make(family: str, *, tied: bool) -> Any:
    """A random model, always of the same weights."""
    prefix, settings = FAMILIES[family]
    text = "Text" if family == "gemma3" else ""
    config = getattr(transformers, f"{prefix}{text}Config")(**settings, tie_word_embeddings=tied)
    head = "LMHeadModel" if family == "gpt2" else "ForCausalLM"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, prefix + head)(config).eval()


def make_unusual(family: str) -> Any:
    """A random model of a kind in `tests.support.architecture_tables.UNUSUAL`, of two or three blocks."""
    plain = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "head_dim")}
    gemma = {
        "vocab_size_per_layer_input": 48,
        "hidden_size_per_layer_input": 8,
        "sliding_window": 8,
        "laurel_rank": 4,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "altup_num_inputs": 3,
        "activation_sparsity_pattern": [0.0] * 2,
    }
    zamba = {
        "layers_block_type": ["hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 3,
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "mamba_headdim": 8,
        "attention_head_dim": 16,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "chunk_size": 16,
    }
    xlm = SMALL | {
        "emb_dim": 16,
        "n_layers": 3,
        "n_heads": 2,
        "n_langs": 1,
        "causal": True,
        "pad_index": 0,
        "eos_index": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    clip = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    llava = {
        "text_config": {"model_type": "llama", **LLAMA},
        "vision_config": clip,
        "image_token_index": 47,
        "tie_word_embeddings": False,
    }
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "bert": ("BertConfig", "BertLMHeadModel", plain | {"is_decoder": True}),
        "modernbert-decoder": (
            "ModernBertDecoderConfig",
            "ModernBertDecoderForCausalLM",
            plain | {"bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1},
        ),
        "xlm": ("XLMConfig", "XLMWithLMHeadModel", xlm),
        "gemma3n": ("Gemma3nTextConfig", "Gemma3nForCausalLM", LLAMA | gemma),
        "zamba2": ("Zamba2Config", "Zamba2ForCausalLM", plain | zamba | {"num_key_value_heads": 2}),
        "llava": ("LlavaConfig", "LlavaForConditionalGeneration", llava),
    }
    config, model, settings = kinds[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
