"""Tiny random decoders of many families, tied and untied."""

from typing import Any

import torch
import transformers

SMALL = {"vocab_size": 48, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
LLAMA = SMALL | {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "decoder_sparse_step": 1,
           "mlp_only_layers": []}  # fmt: skip
GPT = SMALL | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
OPT = SMALL | {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
               "max_position_embeddings": 64, "word_embed_proj_dim": 16}  # fmt: skip
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
