"""Try every causal language model of the installed transformers, each built small and random in a process of its own.

Run as ``python -m analysis.architectures out.csv`` (about half an hour on one core), with ``--only NAME …`` for some
model types and ``--image-text`` for the multimodal ones. It writes a line a model type and prints counts by outcome:

- ``right``: every check of `faults` holds;
- ``refused``: one sentence says why, before anything was measured;
- ``wrong``: a check fails, which is named;
- ``raised``, ``out of time``, ``died``: it ended otherwise;
- ``not built``: the model cannot be made small from its configuration, or does not run on token ids.
"""

import argparse
import contextlib
import csv
import json
import logging
import os
import re
import select
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import geffect
from geffect.core.layers import decoder_blocks, trainable_parameters, unwrap
from geffect.errors import GeffectError

SECONDS = 120  # for one model
VOCABULARY, WIDTH, INNER, BLOCKS, HEADS, HEAD = 96, 32, 48, 3, 4, 8
SIZES = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "emb_dim", "dim_model", "word_embed_proj_dim", "lru_width"), WIDTH
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "n_inner",
            "d_inner",
            "decoder_ffn_dim",
            "dim_ff",
            "ffn_hidden_size",
            "encoder_ffn_dim",
            "feed_forward_size",
        ),
        INNER,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "decoder_layers",
            "encoder_layers",
            "num_blocks",
            "num_decoder_layers",
            "num_kv_shared_layers",
        ),
        BLOCKS,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "mamba_n_heads",
            "n_mamba_heads",
            "mamba_num_heads",
        ),
        HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads"), HEADS // 2),
    **dict.fromkeys(
        (
            "head_dim",
            "attention_head_dim",
            "d_head",
            "d_kv",
            "dim_head",
            "v_head_dim",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "swa_head_dim",
            "swa_v_head_dim",
        ),
        HEAD,
    ),
    **dict.fromkeys(
        (
            "q_lora_rank",
            "kv_lora_rank",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "expert_ffn_hidden_size",
            "mamba_headdim",
            "mamba_d_head",
            "mamba_head_dim",
            "qk_head_dim",
        ),
        2 * HEAD,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "top_k", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_languages"), 1),
    **dict.fromkeys(
        ("sliding_window", "chunk_size", "state_size", "mamba_d_state", "hidden_size_per_layer_input"), HEAD
    ),
    "rotary_dim": 4,
    "hidden_dim": WIDTH,
}
OTHERS: dict[str, dict[str, Any]] = {  # what a model type needs beyond the above
    "bailing_hybrid": {"n_group": 2},
    "blt": {"patch_in_forward": False},
    "blt_local_encoder": {"hidden_size_global": WIDTH},
    "blt_local_decoder": {"hidden_size_global": WIDTH},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": None, "mamba_expand": 2},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "altup_num_inputs": 3,
        "activation_sparsity_pattern": [0.0] * BLOCKS,
    },
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD},
    "ministral": {"head_dim": HEAD},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"expand": 2, "num_heads": 8, "n_groups": 1},
    "mllama": {"pad_token_id": 0, "cross_attention_layers": []},
    "nemotron": {"num_key_value_heads": HEADS},
    "nemotron_h": {"n_groups": 1, "ssm_state_size": 8},
    "reformer": {
        "axial_pos_embds": False,
        "num_buckets": 2,
        "attn_layers": ["local", "lsh", "local"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 5, "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"],
        "mamba_ngroups": 1,
        "attention_head_dim": 16,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def small_config(kind: str) -> Any:
    """A configuration of a model type with every size it is known to have made small."""
    from transformers import CONFIG_MAPPING

    return _small(CONFIG_MAPPING[kind], OTHERS.get(kind, {}))


def _small(cls: Any, others: dict[str, Any]) -> Any:
    from transformers import PreTrainedConfig

    usual = cls()
    changes: dict[str, Any] = {}
    for key, value in usual.to_dict().items():
        if key in SIZES and type(value) is int:
            changes[key] = SIZES[key]
        elif key.endswith("_token_id") and isinstance(value, int | list) and key[:3] in ("bos", "eos", "pad"):
            changes[key] = {"pad": 0, "bos": 1, "eos": 2}[key[:3]]
    for key in cls.sub_configs or {}:
        if isinstance(part := getattr(usual, key, None), PreTrainedConfig):
            changes[key] = _small(type(part), OTHERS.get(part.model_type, {}))
    if "kv_lora_rank" in changes:
        changes["num_key_value_heads"] = HEADS
    if hasattr(usual, "is_decoder"):
        changes["is_decoder"] = True
    return cls(**(changes | others))


def build(kind: str, name: str) -> Any:
    """A small random model.

    Args:
        kind: its model type.
        name: of its class.

    Returns:
        The model, in evaluation mode and float32.
    """
    import transformers

    cls, config = getattr(transformers, name), small_config(kind)
    if not isinstance(config, cls.config_class):
        parts = [getattr(config, key, None) for key in config.sub_configs or {}]
        config = next((part for part in parts if isinstance(part, cls.config_class)), config)
    if getattr(config, "is_encoder_decoder", False) and name.endswith("ForCausalLM"):
        config.is_encoder_decoder = False
    torch.manual_seed(0)
    model = cls(config).eval()
    if kind == "xmod":
        model.set_default_language("en_XX")
    with torch.no_grad():
        for parameter in model.parameters():  # nothing at its usual zero, where it would pass its gradient on to nobody
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def rows(seed: int, lengths: tuple[int, ...] = (9, 16, 12)) -> list[dict[str, list[int]]]:
    """EncodedExample texts of several lengths, their first three tokens without a label."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": ids, "labels": [-100] * 3 + ids[3:]} for ids in texts]


def one_by_one(model: Any, texts: list[dict[str, list[int]]]) -> Tensor:
    """The token-mean NLL, a text at a time without padding, from log-probabilities in float64."""
    found = []
    for text in texts:
        ids = torch.tensor([text["input_ids"]])
        log_p = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            .logits[0]
            .double()
            .log_softmax(-1)
        )
        found += [-log_p[t - 1, label] for t, label in enumerate(text["labels"]) if label != -100]
    return torch.stack(found).mean()


def faults(model: Any) -> Iterator[str]:
    """Run one step of gradient ascent through a monitor, and compare it with what is computed the plain way.

    Args:
        model: small and random.

    Yields:
        What is wrong.

    Raises:
        GeffectError: the model is refused.
    """
    logging.getLogger("geffect").setLevel(logging.ERROR)
    layout = geffect.layout(model)
    forget, retain = rows(1), rows(2)
    parameters = trainable_parameters(model)
    before = state(model)
    with geffect.monitor(model, {"forget": forget, "retain": retain}) as monitor:
        yield from changes(before, state(model))
        (-one_by_one(model, forget)).backward()
        before = state(model)
        monitor.step()
    yield from changes(before, state(model))
    yield from layout_faults(model, layout.layers)
    tolerance = 1e-6 if next(iter(parameters.values())).dtype == torch.float64 else 1e-4
    steps, by_layer = monitor.run.steps(), monitor.run.to_frame("layer")
    gradients: dict[str, dict[str, Tensor]] = {}
    for name, texts in (("forget", forget), ("retain", retain)):
        loss = one_by_one(model, texts)
        if not abs(float(steps[f"{name}_loss"].astype(float).iloc[0]) - float(loss)) <= tolerance * float(loss):
            yield f"{name}'s loss is {float(steps[f'{name}_loss'].iloc[0])!r}, one by one {float(loss)!r}"
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        gradients[name] = {
            key: torch.zeros_like(p).double() if g is None else g.double()
            for (key, p), g in zip(parameters.items(), found, strict=True)
        }
    gradients["applied_gradient"] = {key: -each for key, each in gradients["forget"].items()}
    yield from gram_faults(by_layer, gradients, layout.layers, tolerance)


def layout_faults(model: Any, layers: dict[str, str]) -> Iterator[str]:
    """Compare a layout with the parameters' own names.

    Args:
        model: whose it is.
        layers: parameter → layer.

    Yields:
        What is wrong.
    """
    base = unwrap(model)
    names: dict[int, set[str]] = {}
    calls: Counter[int] = Counter()
    for name, parameter in base.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    path, blocks = decoder_blocks(base)
    pattern = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    hooks = [block.register_forward_hook(lambda *_, i=i: calls.update([i])) for i, block in enumerate(blocks)]
    one_by_one(model, rows(0, (8,)))
    for hook in hooks:
        hook.remove()
    if list(layers) != list(trainable_parameters(model)):
        yield "the layout's parameters are not the trainable ones"
    for name, parameter in trainable_parameters(model).items():
        inside = {int(found[1]) for each in names[id(parameter)] if (found := pattern.match(each))}
        several = len(inside) > 1 or any(calls[i] > 1 for i in inside)
        expected = "shared" if several else f"block_{min(inside)}" if inside else None
        if expected and layers[name] != expected:
            yield f"{name} lies in {layers[name]}, not in {expected}"
        beside = re.search(r"\.(\d+)\.", name)  # in a list beside
        if expected is None and layers[name] in {f"block_{i}" for i in range(len(blocks))} - {
            f"block_{beside and beside[1]}"
        }:
            yield f"{name}, outside {path}, lies in {layers[name]}"


def gram_faults(
    frame: Any, gradients: dict[str, dict[str, Tensor]], layers: dict[str, str], tolerance: float
) -> Iterator[str]:
    """Compare a record's inner products with those of flattened gradients, by layer and as a whole.

    A tied tensor is split by use in the record; its parts are compared in the sum.

    Args:
        frame: the record by layer.
        gradients: row → parameter → gradient, float64.
        layers: parameter → layer.
        tolerance: of ‖a‖‖b‖.

    Yields:
        What is wrong.
    """
    split = {"embed", "lm_head", "tied"} if "tied" in set(layers.values()) else set()
    norms = {row: sum(float((g**2).sum()) for g in each.values()) ** 0.5 for row, each in gradients.items()}
    for (a, b), pairs in frame.groupby(["gradient", "other"], sort=False):
        expected: defaultdict[str, float] = defaultdict(float)
        found: defaultdict[str, float] = defaultdict(float)
        for name, layer in layers.items():
            expected["ends" if layer in split else layer] += float((gradients[a][name] * gradients[b][name]).sum())
        for layer, inner in zip(pairs["layer"], pairs["inner"], strict=True):
            found["ends" if layer in split else layer] += inner
        expected["the whole"], found["the whole"] = sum(expected.values()), sum(found.values())
        for layer in expected.keys() | found.keys():
            if not abs(expected[layer] - found[layer]) <= tolerance * norms[a] * norms[b]:
                yield f"<{a}, {b}> of {layer} is {found[layer]!r}, one by one {expected[layer]!r}"


def state(model: Any) -> dict[str, Any]:
    """Every tensor of a model, its mode, hooks and what wants gradients, to compare."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **model.state_dict()}
    kept: dict[str, Any] = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    kept |= {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    kept |= {"modes": [m.training for m in model.modules()], "keys": list(model.state_dict())}
    kept |= {"hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]}
    return kept | {"wants": [p.requires_grad for p in model.parameters()], "random": torch.get_rng_state()}


def changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What of a model's `state` is another than before."""
    for key in sorted(before.keys() | after.keys()):
        if key not in before or key not in after or not same(before[key], after[key]):
            yield f"{key} is changed by the monitor"


def same(a: Any, b: Any) -> bool:
    """Whether two entries of `state` are equal bit for bit."""
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def runs(model: nn.Module) -> None:
    """Run a model on token ids, which is all that is asked of it.

    Args:
        model: small and random.

    Raises:
        ArithmeticError: its loss is not finite.
    """
    with torch.no_grad():
        if not one_by_one(model, rows(0)).isfinite():
            raise ArithmeticError("the loss is not finite")


def outcome(kind: str, name: str) -> dict[str, str]:
    """What becomes of one model type.

    Args:
        kind: its model type.
        name: of its class.

    Returns:
        ``outcome`` and ``why``.
    """
    failed = ""
    try:
        model = build(kind, name)
        with contextlib.suppress(Exception):  # some compute in float32, whatever they are given
            runs(wide := build(kind, name).double())
            model = wide
        runs(model)
    except Exception as error:
        failed = _line(error)
        if "model" not in locals():
            return {"outcome": "not built", "why": failed}
    try:
        found = list(faults(model))
    except GeffectError as error:
        return {"outcome": "refused", "why": str(error)}
    except Exception as error:
        return {"outcome": "not built" if failed else "raised", "why": failed or _line(error)}
    return {"outcome": "wrong" if found else "right", "why": "; ".join(found[:2])}


def _line(error: BaseException) -> str:
    at = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(str(error).split())[:160]
    return f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}: {reason}"


def forked(job: Callable[[], dict[str, str]], seconds: float = SECONDS) -> dict[str, str]:
    """Run a job in a process of its own, so that its end is an outcome whatever it is.

    Args:
        job: returns an outcome.
        seconds: it may take.

    Returns:
        The outcome.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with contextlib.suppress(BaseException):
            os.write(writing, json.dumps(job()).encode())
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], seconds)
    text = os.read(reading, 1 << 16) if ready else b""
    os.close(reading)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not text:
        return {"outcome": "died" if ready else "out of time", "why": ""}
    found: dict[str, str] = json.loads(text)
    return found


def kinds(*, image_text: bool = False) -> dict[str, str]:
    """Model type → the name of its causal language model, or of the multimodal one."""
    from transformers.models.auto import modeling_auto

    chosen = "IMAGE_TEXT_TO_TEXT" if image_text else "CAUSAL_LM"
    return dict(getattr(modeling_auto, f"MODEL_FOR_{chosen}_MAPPING_NAMES"))


def main() -> None:
    """Try them all, write the table and print the counts."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="the CSV file that is written")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="model types; all by default")
    parser.add_argument("--image-text", action="store_true", help="the multimodal models instead")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    chosen = {k: n for k, n in kinds(image_text=given.image_text).items() if not given.only or k in given.only}
    counts: Counter[str] = Counter()
    with given.table.open("w", newline="", encoding="utf-8") as file, tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # what a process that is ended leaves behind
        table = csv.DictWriter(file, ["model_type", "model", "outcome", "seconds", "why"])
        table.writeheader()
        for kind, name in chosen.items():
            began = time.perf_counter()
            found = forked(lambda kind=kind, name=name: outcome(kind, name))  # type: ignore[misc]
            counts[found["outcome"]] += 1
            seconds = round(time.perf_counter() - began, 1)
            table.writerow({"model_type": kind, "model": name, "seconds": seconds, **found})
            file.flush()
            print(f"{kind:28} {found['outcome']:11} {found['why']}", flush=True)
    print(f"transformers {transformers.__version__}: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))


if __name__ == "__main__":
    main()
