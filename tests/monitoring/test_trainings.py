"""One training after another, without and with the callback: the same bits, and a record that a slow judge confirms.

Optimizers and quantizers that are not installed are skipped. Others train elsewhere: TRL in ``test_trl.py``, Lightning
in ``test_lightning.py``, resumed ones in ``test_monitoring.py``, replicas and shards in ``core/test_distributed.py``.
"""

import contextlib
import importlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import geffect
from geffect.core.model_state import ModelState
from geffect.errors import GeffectError
from tests.support.cases import SMALL, gpt2, llama, lora
from tests.support.judged import Weights, judge, train_twice, weights_of
from tests.support.rows import QUIET, made_rows, nats, padded

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers|accelerate|torch|bitsandbytes|trl|peft"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the libraries that are combined here
]
MATH, CHAT = made_rows([7, 5, 9, 6, 8], 0), made_rows([6, 8, 5, 7], 1)
TARGETS = {"math": MATH, "chat": CHAT}
COARSE = 0.1  # relative error of an effect in bfloat16, or through 8-bit activations
COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="there is no C++ compiler")
INDUCTOR = pytest.param("inductor", marks=[pytest.mark.slow, COMPILER])
SETTINGS: dict[str, Any] = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **QUIET}


def _check(make_model: Callable[[], Any], out: Path, *, within: float = 1e-3, **settings: Any) -> geffect.Run:
    """Train twice by a Hugging Face Trainer, and judge the record."""

    def make(callbacks: Sequence[TrainerCallback]) -> Trainer:
        args = TrainingArguments(output_dir=str(out), **SETTINGS | settings)
        model = make_model()
        return Trainer(model, args, train_dataset=MATH + CHAT, data_collator=padded, callbacks=list(callbacks))

    callback = geffect.Callback(TARGETS, batch_size=3)
    model, steps = train_twice(make, callback)
    assert len(steps) == 3
    judge(callback.run, model, steps, TARGETS, within=within)
    return callback.run


@pytest.mark.parametrize(
    ("name", "package"),
    [
        *((name, "torch") for name in ("adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")),
        *((name, "schedulefree") for name in ("schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam")),
        *((name, "bitsandbytes") for name in ("lion_32bit", "ademamix", "adamw_bnb_8bit", "lion_8bit", "rmsprop_bnb")),
        *((name, "torchao") for name in ("adamw_torch_8bit", "adamw_torch_4bit")),
        *((name, "galore_torch") for name in ("galore_adamw", "galore_adafactor")),
        ("apollo_adamw", "apollo_torch"),
        ("grokadamw", "grokadamw"),
    ],
)
def test_optimizers(name: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    low_rank: dict[str, Any] = (
        {"optim_target_modules": ["attn", "mlp"]} if name.startswith(("galore", "apollo")) else {}
    )
    _check(llama, tmp_path, optim=name, **low_rank)


@pytest.mark.parametrize(
    ("name", "package"),
    [("galore_adamw_layerwise", "galore_torch"), ("apollo_adamw_layerwise", "apollo_torch"), ("lomo", "lomo_optim")],
)
def test_an_optimizer_that_steps_in_the_backward_pass_is_refused(name: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    args = TrainingArguments(
        output_dir=str(tmp_path), **SETTINGS, optim=name, optim_target_modules=["mlp"], max_grad_norm=0.0
    )
    host = Trainer(llama(), args, train_dataset=MATH, data_collator=padded, callbacks=[geffect.Callback(TARGETS)])
    with pytest.raises(GeffectError, match=r"in the backward pass"):
        host.train()


@pytest.mark.parametrize(
    ("make_model", "settings", "within"),
    [
        (llama, {"bf16": True}, COARSE),
        (lora, {"bf16": True}, COARSE),
        (llama, {"gradient_checkpointing": True}, 1e-3),
        (gpt2, {"weight_decay": 0.1, "max_grad_norm": 0.1, "gradient_accumulation_steps": 2}, 1e-3),
        (llama, {"neftune_noise_alpha": 5.0}, 1e-3),
        (llama, {"label_smoothing_factor": 0.1, "lr_scheduler_type": "cosine"}, 1e-3),
        (llama, {"torch_compile": True, "torch_compile_backend": "eager"}, 1e-3),
    ],
    ids=["bf16", "bf16-lora", "checkpointing", "groups", "neftune", "smoothing", "compiled"],
)
def test_settings(make_model: Callable[[], Any], settings: dict[str, Any], within: float, tmp_path: Path) -> None:
    _check(make_model, tmp_path, within=within, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_a_compiled_trainer(backend: str, tmp_path: Path) -> None:
    _check(llama, tmp_path, torch_compile=True, torch_compile_backend=backend)


def _muon(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon takes matrices alone."""
    blocks = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name}
    others = [p for name, p in model.named_parameters() if name not in blocks]
    return [torch.optim.Muon(blocks.values(), lr=1e-2), torch.optim.AdamW(others, lr=1e-2)]


def test_two_optimizers_of_a_loop(tmp_path: Path) -> None:
    """Muon for the blocks' matrices and AdamW for the rest: `updated` is called once both have stepped."""
    ended: list[Weights] = []
    steps: list[tuple[Weights, Weights]] = []
    for monitored in (False, True):
        model = llama().train()
        optimizers = _muon(model)
        with contextlib.ExitStack() as stack:
            given: dict[str, Any] = {"update": True, "out": tmp_path / "run"}
            monitor = stack.enter_context(geffect.monitor(model, TARGETS, **given)) if monitored else None
            for rows in (MATH[:2], MATH[2:4]):
                nats(model, padded(rows)).mean().backward()
                before = weights_of(model)
                if monitor is not None:
                    monitor.step()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                if monitor is not None:
                    monitor.updated()
                steps += [] if monitored else [(before, weights_of(model))]
        ended.append(weights_of(model))
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    judge(geffect.Run(tmp_path / "run"), llama(), steps, TARGETS)


def test_muon_trains_an_adapter(tmp_path: Path) -> None:
    def make(callbacks: Sequence[TrainerCallback]) -> Trainer:
        args, model = TrainingArguments(output_dir=str(tmp_path), **SETTINGS), lora()
        muon = torch.optim.Muon([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        return Trainer(
            model, args, train_dataset=MATH, data_collator=padded, optimizers=(muon, None), callbacks=list(callbacks)
        )

    callback = geffect.Callback(TARGETS)
    model, steps = train_twice(make, callback)
    judge(callback.run, model, steps, TARGETS)


def test_accelerates_bare_loop(tmp_path: Path) -> None:
    """Prepared, with two micro-batches a step; the optimizer that is wrapped calls the monitor at every real step."""
    from accelerate import Accelerator

    ended: list[Weights] = []
    steps: list[tuple[Weights, Weights]] = []
    for monitored in (False, True):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        bare = llama().train()
        model, optimizer = accelerator.prepare(bare, torch.optim.AdamW(bare.parameters(), lr=1e-2))
        monitor = geffect.monitor(model, TARGETS, optimizer=optimizer, out=tmp_path / "run")
        if monitored:
            monitor.open()
        before = weights_of(bare)
        for micro in (MATH[:2], MATH[2:4], CHAT[:2], CHAT[2:]):
            with accelerator.accumulate(model):
                accelerator.backward(nats(model, padded(micro)).mean())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients and not monitored:
                steps.append((before, before := weights_of(bare)))
        if monitored:
            monitor.close()
        ended.append(weights_of(bare))
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    judge(geffect.Run(tmp_path / "run"), llama(), steps, TARGETS)


@pytest.mark.parametrize("backend", ["eager", INDUCTOR])
@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in place"])
def test_a_compiled_loop_runs_the_same_code(backend: str, in_place: bool, tmp_path: Path) -> None:
    """Passes over batches of other shapes would change what is compiled for those that follow, and its rounding."""
    batches = [made_rows([length, length], length) for length in (5, 7, 9, 6)]
    targets = {"a": made_rows([3, 12, 14, 6, 8], 1), "b": made_rows([10, 5, 17], 2)}
    ended: list[Weights] = []
    for monitored in (False, True):
        torch._dynamo.reset()
        bare = llama().train()
        compiled: Any = bare if in_place else torch.compile(bare, backend=backend)
        if in_place:
            bare.compile(backend=backend)
        optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2)
        monitor = geffect.monitor(compiled, targets, optimizer=optimizer, batch_size=2, out=tmp_path / "run")
        if monitored:
            monitor.open()
        for rows in batches:
            compiled(**padded(rows)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if monitored:
            monitor.close()
        ended.append(weights_of(bare))
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    assert (geffect.Run(tmp_path / "run").steps()["norm_update"][:4] > 0).all()


def _quantized(kind: str, folder: Path) -> Any:
    """A tiny Llama with quantized weights under an adapter that is trained."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

    if kind == "torchao int8":
        how = TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())
    else:
        how = {
            "bitsandbytes nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
            "bitsandbytes int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
            "quanto int8": lambda: QuantoConfig(weights="int8"),
        }[kind]()
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, device_map="cpu")
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).train()


@pytest.mark.parametrize(
    ("kind", "package", "within"),
    [
        ("bitsandbytes nf4", "bitsandbytes", 0.02),
        ("bitsandbytes int8", "bitsandbytes", COARSE),
        ("quanto int8", "optimum.quanto", 1e-3),
        ("torchao int8", "torchao", 1e-3),
    ],
)
def test_adapters_on_quantized_weights(kind: str, package: str, within: float, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    pytest.importorskip(package)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, **shape, max_position_embeddings=64)).save_pretrained(tmp_path / "base")
    _check(lambda: _quantized(kind, tmp_path / "base"), tmp_path, within=within)


class Packing(nn.Linear):
    """As a 4-bit layer of bitsandbytes: at the first pass in evaluation mode it packs its weight for good."""

    support_avx512bf16_for_cpu = True

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.support_avx512bf16_for_cpu = True
        self.packed = type("State", (), {"yes": False})()

    def forward(self, inputs: Tensor) -> Tensor:
        if self.support_avx512bf16_for_cpu and not self.training:
            self.packed.yes = True
        return super().forward(inputs)


def test_no_layer_packs_its_weight_while_it_is_measured() -> None:
    layer = Packing()
    with ModelState(layer).preserve():
        layer(torch.ones(4))
    assert not layer.packed.yes
    assert layer.support_avx512bf16_for_cpu


@pytest.mark.parametrize(
    ("given", "told"),
    [({"fp16": True}, "bf16=True"), ({"deepspeed": {"train_batch_size": 1}}, "Shard with FSDP2")],
    ids=["fp16", "DeepSpeed"],
)
def test_what_is_refused_says_what_can_be_done(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), **SETTINGS)
    for name, value in given.items():
        setattr(args, name, value)  # given to the arguments themselves, transformers refuses both on this machine
    callback = geffect.Callback(TARGETS)
    host = Trainer(llama(), TrainingArguments(output_dir=str(tmp_path), **SETTINGS), train_dataset=MATH)
    with pytest.raises(GeffectError, match=told):
        callback.on_train_begin(args, host.state, host.control, model=host.model)


@pytest.mark.parametrize("make_model", [llama, lora], ids=["whole", "adapter"])
def test_a_checkpoint_that_is_loaded_at_the_end_is_not_taken_for_the_last_step(
    make_model: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first checkpoint is the best one at so high a rate: its scores are those of the second step."""
    callback = geffect.Callback(TARGETS)
    each = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings = SETTINGS | each | {"load_best_model_at_end": True, "learning_rate": 0.5}
    args, model = TrainingArguments(output_dir=str(tmp_path), **settings), make_model()
    Trainer(model, args, train_dataset=MATH, eval_dataset=CHAT, data_collator=padded, callbacks=[callback]).train()
    assert "no longer those of the last step" in caplog.text
    assert set(callback.run.evaluations()["step"]) == {0, 1, 2}
    assert set(callback.run.prediction()["step"]) == {0, 1}
