"""Every verb and method once on the CPU and once on an emulated GPU: ``python -m tests.support.device_cases OUT``.

    python -m tests.support.device_cases OUT [--only TEXT …] [--exhaustive]

The process writes a JSON object to ``OUT``: ``cases``, case → what became of it (`Outcome`), and ``emulation``, what
the device itself does (`emulation`). Each case writes its numbers into a folder; those of the two devices are compared
bit for bit. What is
`auto` to geffect is ``gpu:0``.
"""

import contextlib
import gc
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from geffect import api
from geffect.config import DoctorConfig, EvaluateConfig, FinetuneConfig, InspectConfig, LocalizeConfig, UnlearnConfig
from geffect.core.forward import forward
from geffect.core.gradients import capture_gradients
from geffect.core.gram import Gram
from geffect.core.layers import trainable_parameters
from geffect.core.token_effects import token_effects
from geffect.data.encode import EncodedExample
from geffect.data.load import load_set
from geffect.localization.localize import localize
from geffect.models.scoring import Reference, compute_likelihood, forward_beside
from geffect.monitoring.callback import Callback
from geffect.monitoring.monitor import Monitor
from geffect.objectives.base import Counts, mean_nll
from geffect.rectifiers.grail import GRAIL
from tests.support import cases as models
from tests.support.emulated_device import NAME, PACKAGE, TRAFFIC, Traffic, emulate, made_on
from tests.support.rows import made_rows, padded

GPU = f"{NAME}:0"
SHAPE = {
    "vocabulary": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SETS = {  # read once: a built-in set takes a while to make
    "forget": "builtin:authors/forget[:6]",
    "retain": "builtin:authors/retain[:6]",
    "heldout": "builtin:authors/heldout[:3]",
    "privacy": "builtin:authors/forget[6:12]",
    "privacy-retain": "builtin:authors/retain[6:12]",
    "copyright": "builtin:authors/forget[12:18]",
    "copyright-retain": "builtin:authors/retain[12:17]",
}
DOMAINS = ("privacy", "copyright")
STEPS = 3
PLAIN: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "evaluate_every": STEPS,
    "max_length": 64,
}
HOST = "all that is kept on the host"
WINDOW = {"grad_accum_steps": 2, "batch_size": 1}
OBJECTIVES = {
    "adversarial": "adversarial",
    "ceu": "ceu(skip=1) + gd",
    "dpo": "dpo",
    "dual": "npo + dual(kl, start=1)",
    "flat": "flat",
    "ga": "ga",
    "gd": "ga + gd",
    "kl": "ga + kl",
    "npo": "npo",
    "pdu": "pdu",
    "po": "po",
    "random": "random",
    "rmu": "rmu(c=2)",
    "rr": "npo + rr",
    "sam": "sam(npo)",
    "satimp": "satimp",
    "simnpo": "simnpo",
    "tnpo": "tnpo",
    "undial": "undial",
    "wga": "wga",
    "wtnpo": "wtnpo",
}
RECTIFIERS = ("none", "gru", "grail")
WEIGHTS = ("full", "lora")
EXTRAS: dict[str, dict[str, Any]] = {
    "domains": {"objective": "npo + gd", "rectifier": "gru", "domains": True, "balance": "repeat"},
    "domains cut": {"domains": True},
    "micro-batches": {"objective": "tnpo + gd", "rectifier": "gru", **WINDOW},
    "gru on gradient and update": {"rectifier": "gru(space=both)"},
    "overlap": {"overlap": 0.1, "rectifier": "gru"},
    "overlap of domains": {"overlap": 0.1, "domains": True},
    "prediction": {"prediction": 4},
    "adam metric": {"rectifier": "hamu(metric=adam)", "adam_metric": True},
    HOST: {
        "rectifier": "gru(space=both)",
        "prediction": 2,
        "standard_errors": True,
        "save_gradients": ["retain"],
        "keep_on": "cpu",
        **WINDOW,
    },
    "standard errors": {"standard_errors": True, **WINDOW},
    "paper": {"mode": "paper", "batch_size": 3},
    "saved gradients": {"save_gradients": ["objective", "retain_average", "rectified"], "rectifier": "gru"},
    "every other step, clipped": {"diagnose_every": 2, "max_grad_norm": 0.5},
    "weight decay": {"weight_decay": 0.1, "optimizer": "sgd"},
    "checkpointing": {"gradient_checkpointing": True},
    "dropout": {"lora": 2, "lora_dropout": 0.2, "keep_dropout": True},
    "bfloat16": {"dtype": "bfloat16", "objective": "npo", "rectifier": "gru"},
    "float64": {"dtype": "float64", "objective": "npo", "rectifier": "gru"},
    "deterministic algorithms": {"objective": "npo", "rectifier": "gru", "deterministic": True},
    "stop rules": {"stop": "forget_loss(level=3)", "evaluate_every": 1},
    "general": {"general": "builtin:authors/retain[6:12]", "objective": "ga + kl(on=general)", "lora": 2},
    "all at once": {
        "objective": "npo + gd",
        "rectifier": "gru(space=both)",
        "overlap": 0.1,
        "prediction": 2,
        "standard_errors": True,
        "max_grad_norm": 0.5,
        "save_gradients": ["retain"],
        "steps": 2,
        "evaluate_every": 2,
        **WINDOW,
    },
}
FREEZING = {
    "memflex": "memflex(mu=1, sigma=0, thresholds=quantile)",
    "grail by micro-batch": "grail(reading=micro_batch) + gru",
}
INSPECTIONS: dict[str, dict[str, Any]] = {
    "points": {"points": ["npo"], "one_pass": True},
    "tokens": {"tokens": 1, "one_pass": True},
    "paper": {"mode": "paper"},
    "overlap": {"overlap": 0.1, "one_pass": True},
}
UNMEASURED = {"diagnose_every": 1000}  # after step 0
UNCOMPARED = ("seconds", "peak_memory_gb", "path", "masks", "model", "cached", "when", "memory")  # names in JSON


@dataclass(frozen=True)
class World:
    """What cases start from, made once on the CPU.

    Attributes:
        folder: where.
    """

    folder: Path

    @cached_property
    def sets(self) -> dict[str, str]:
        """Name → file, of `SETS`."""
        files = {name: self.folder / f"{name}.json" for name in SETS}
        for name, file in files.items():
            file.write_text(json.dumps([dict(each) for each in load_set(SETS[name])]), encoding="utf-8")
        return {name: str(file) for name, file in files.items()}

    @property
    def targets(self) -> dict[str, Any]:
        """The sets of a run without domains."""
        return {name: self.sets[name] for name in ("forget", "retain", "heldout")}

    @property
    def domains(self) -> dict[str, Any]:
        """Two domains."""
        return {"domain": [f"{name}={self.sets[name]},{self.sets[f'{name}-retain']}" for name in DOMAINS]}

    @cached_property
    def start(self) -> Path:
        """An untrained model directory."""
        from geffect.models.builtin import make_tiny

        model, tokenizer = make_tiny(**SHAPE)
        model.save_pretrained(self.folder / "start")
        tokenizer.save_pretrained(self.folder / "start")
        return self.folder / "start"

    @cached_property
    def adapter(self) -> Path:
        """An adapter on it that does something."""
        settings = {"model": str(self.start), "train": [self.sets["forget"]], "epochs": 1, "lora": 2, "max_length": 64}
        return api.finetune(FinetuneConfig.read(None, **settings, learning_rate=1e-2, out=self.folder / "adapter")).path

    @cached_property
    def masks(self) -> Path:
        """A localization of it."""
        return self.localize(self.start, self.folder / "masks")

    @cached_property
    def adapter_masks(self) -> Path:
        """A localization of the adapter."""
        return self.localize(self.adapter, self.folder / "adapter-masks")

    @cached_property
    def run(self) -> Path:
        """A run of one step."""
        settings = PLAIN | {"model": str(self.start), "steps": 1, "objective": "npo"}
        return api.unlearn(UnlearnConfig.read(None, **settings, **self.targets, out=self.folder / "run")).path

    def localize(self, model: Path, out: Path, **settings: Any) -> Path:
        """Localize the domains."""
        plain = {"model": str(model), "share": [0.1, 0.2], "max_length": 64} | self.domains
        return api.localize(LocalizeConfig.read(None, **(plain | settings), out=out)).path


@dataclass(frozen=True)
class Place:
    """Where a case runs.

    Attributes:
        device: ``cpu`` or ``gpu:0``.
        out: an empty folder; what a case writes here is compared.
        world: what it starts from.
    """

    device: str
    out: Path
    world: World

    def put(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the device."""
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def write(self, **numbers: Any) -> None:
        """Write numbers to compare."""
        (self.out / "numbers.json").write_text(json.dumps(numbers), encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """Something that is done on both devices.

    Attributes:
        name: of it.
        run: does it.
        sample: whether a short run of the tests includes it.
    """

    name: str
    run: Callable[[Place], None]
    sample: bool = True


@dataclass
class Outcome:
    """What became of a case on the emulated GPU.

    Attributes:
        error: type and first line of what it raised, none by default.
        where: the last line of geffect in the traceback.
        on_cpu: what it raised on the CPU.
        same: whether its numbers are the CPU's, bit for bit.
        difference: the largest difference of two numbers, relative to the larger.
        differs: the file and place of that difference.
        steps: optimizer steps that ``step`` is the mean of: all but the first.
        step: what happened between two optimizer steps (`Traffic.to_json`, divided by ``steps``).
        total: what happened in all (`Traffic.to_json`).
        seconds: that it took on both devices.
    """

    error: str = ""
    where: str = ""
    on_cpu: str = ""
    same: bool = False
    difference: float = 0.0
    differs: str = ""
    steps: int = 0
    step: dict[str, Any] = field(default_factory=dict)
    total: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def all_cases() -> Iterator[Case]:
    """Every case, by verb."""
    yield from _unlearning()
    yield from _verbs()
    yield from _loops()
    yield from _two_devices()


def _unlearning() -> Iterator[Case]:
    sample = {
        *itertools.product(("ga", "npo"), ("none", "gru"), ("full",)),
        ("ga", "grail", "full"),
        ("kl", "gru", "lora"),
    }
    for (name, text), rectifier, weights in itertools.product(OBJECTIVES.items(), RECTIFIERS, WEIGHTS):
        settings: dict[str, Any] = {"objective": text, "rectifier": rectifier, "weights": weights}
        run, short = partial(_unlearn, **settings), (name, rectifier, weights) in sample
        label = f"unlearn {name}, {rectifier}, {weights}"
        yield Case(label, run, sample=short)
        if name in ("ga", "npo", "gd"):
            yield Case(f"{label}, not measured", partial(run, **UNMEASURED), sample=False)
    for name, settings in EXTRAS.items():
        yield Case(
            f"unlearn with {name}", partial(_unlearn, **settings), sample=name in ("overlap", "prediction", HOST)
        )
    for name, rectifier in FREEZING.items():
        settings = {"rectifier": rectifier, "objective": "npo + gd"}
        yield Case(f"unlearn with {name}", partial(_unlearn, **settings), sample=name == "memflex")
    yield Case("likelihood on the second device", _on_second)
    yield Case("unlearn on the second device", _unlearn_on_second)
    yield Case("unlearn where the Trainer sees two GPUs", _beside_another, sample=False)
    yield Case("unlearn, resumed", _resume)
    yield Case("finetune", partial(_finetune))
    yield Case("finetune, lora", partial(_finetune, lora=2), sample=False)


def _verbs() -> Iterator[Case]:
    for labels in ("random", "true", "corrupted"):
        yield Case(f"localize, {labels} labels", partial(_localize, labels=labels), sample=labels == "random")
    for importance in ("mean_square", "zscore"):
        run = partial(_localize, importance=importance, masks_only=importance == "zscore")
        yield Case(f"localize by {importance}", run, sample=False)
    yield Case("localize, adapter", partial(_localize, adapter=True), sample=False)
    yield Case("inspect", _inspect)
    for name, settings in INSPECTIONS.items():
        yield Case(f"inspect, {name}", partial(_inspect, **settings), sample=False)
    yield Case("evaluate", _evaluate)
    varied: dict[str, Any] = {"rounded": True, "relearn": 1, "limit": 2, "calibrate": "start"}
    yield Case("evaluate, variants", partial(_evaluate, **varied), sample=False)
    yield Case("doctor", _doctor)


def _loops() -> Iterator[Case]:
    yield Case("monitor", partial(_monitor, make=models.gpt2), sample=False)
    yield Case("monitor, update", partial(_monitor, make=models.llama, update=True))
    yield Case("monitor, lora", partial(_monitor, make=models.lora, update=True), sample=False)
    yield Case("callback", _callback)
    yield Case("callback, update", partial(_callback, update=True), sample=False)


def _two_devices() -> Iterator[Case]:
    two: dict[str, Callable[[Place, Any], None]] = {
        "Gram and norms": _gram,
        "generation": _generation,
        "likelihood": _likelihood,
        "localization": _localization,
        "token effects": _token_effects,
        "reference": _reference,
        "monitor": _monitor_of,
    }
    for name, run in two.items():
        yield Case(f"{name} over two devices", lambda place, run=run: run(place, _over_two(place)))  # type: ignore[misc]
        alone = lambda place, run=run: run(place, models.llama().to(place.device))  # noqa: E731
        yield Case(f"{name} on one device", alone, sample=False)


def _unlearn(place: Place, weights: str = "full", *, domains: bool = False, **settings: Any) -> None:
    world, freezes = place.world, str(settings.get("rectifier")).startswith(("grail", "memflex"))
    plain = PLAIN | (world.domains | {"balance": "cut"} if domains or freezes else world.targets)
    if freezes and weights == "lora":
        plain |= {"model": str(world.adapter), "masks": world.adapter_masks}
    else:
        plain |= {"model": str(world.start)} | ({"masks": world.masks} if freezes else {})
        plain |= {"lora": 2} if weights == "lora" else {}
    api.unlearn(UnlearnConfig.read(None, **(plain | settings), out=place.out / "run"))


def _on_second(place: Place) -> None:
    """On the device that is named, and not on the first."""
    device = "cpu" if place.device == "cpu" else f"{NAME}:1"
    model = api.load_model(str(place.world.start), device=device).model
    assert {str(p.device) for p in model.parameters()} == {device}
    with contextlib.nullcontext() if device == "cpu" else made_on(torch.device(device)):
        _likelihood(place, model)


def _unlearn_on_second(place: Place) -> None:
    """A whole training on the device that is named."""
    device = "cpu" if place.device == "cpu" else f"{NAME}:1"
    with contextlib.nullcontext() if device == "cpu" else made_on(torch.device(device)):
        _unlearn(place, objective="npo", rectifier="gru", device=device)


def _beside_another(place: Place) -> None:
    """A Trainer left to itself would copy the model onto both, in silence."""
    with mock.patch.multiple(torch.cuda, device_count=lambda: 2, get_device_name=str):
        _unlearn(place)


def _resume(place: Place) -> None:
    """Stop a run after its second step, and resume it."""
    from geffect.record.writer import RunDirectory

    class Stopped(Exception):
        """Stops the run."""

    written: list[Any] = []

    def append(self: RunDirectory, *line: Any) -> None:
        plain(self, *line)
        written.append(line)
        if len(written) == STEPS:
            raise Stopped

    settings = PLAIN | place.world.targets | {"model": str(place.world.start), "save_every": 1, "objective": "npo"}
    config = UnlearnConfig.read(None, **settings, rectifier="gru(space=both)", out=place.out / "run")
    plain = RunDirectory.append
    with mock.patch.object(RunDirectory, "append", append), contextlib.suppress(Stopped):
        api.unlearn(config)
    api.unlearn(config, resume=True)


def _finetune(place: Place, **settings: Any) -> None:
    sets = [place.world.sets[name] for name in ("forget", "retain")]
    plain = {"model": str(place.world.start), "train": sets, "steps": STEPS}
    more: dict[str, Any] = {"batch_size": 4, "max_length": 64, "learning_rate": 1e-3}
    api.finetune(FinetuneConfig.read(None, **(plain | more | settings), out=place.out / "run"))


def _localize(place: Place, *, adapter: bool = False, **settings: Any) -> None:
    world = place.world
    world.localize(world.adapter if adapter else world.start, place.out / "masks", **settings)


def _inspect(place: Place, **settings: Any) -> None:
    plain = {"checkpoints": [str(place.world.run)], "objective": ["npo + gd"]}
    api.inspect(InspectConfig.read(None, **(plain | settings), batch_size=4, out=place.out / "inspection"))


def _evaluate(place: Place, **settings: Any) -> None:
    plain = {"model": str(place.world.start), "suite": "builtin", "limit": 3, "max_new_tokens": 8, "batch_size": 4}
    if settings.get("calibrate"):
        plain |= {"model": str(place.world.adapter)}
        settings["calibrate"] = str(place.world.start)
    api.evaluate(EvaluateConfig.read(None, **(plain | settings), out=place.out / "evaluation"))


def _doctor(place: Place) -> None:
    config = DoctorConfig.read(**PLAIN, **place.world.targets, model=str(place.world.start))
    place.write(**{finding.name: [finding.status, finding.found] for finding in api.doctor(config)})


def _monitor(place: Place, make: Callable[[], Any], *, update: bool = False) -> None:
    _monitor_of(place, make().to(place.device), update=update)


def _monitor_of(place: Place, model: Any, *, update: bool = True) -> None:
    forget, retain = made_rows([7, 5, 9], 0), made_rows([6, 8], 1)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = place.put(models.make_batch([6, 9, 7], seed=5))
    with Monitor(
        model, {"forget": forget, "retain": retain}, update=update, batch_size=2, out=place.out / "run"
    ) as monitor:
        for _ in range(STEPS):
            model(**batch).loss.backward()
            monitor.step()
            optimizer.step()
            monitor.updated()
            optimizer.zero_grad()
    _save_weights(place, model)


def _callback(place: Place, **settings: Any) -> None:
    from transformers import Trainer, TrainingArguments

    forget, retain, model = made_rows([7, 5, 9], 0), made_rows([6, 8], 1), models.gpt2()
    arguments = TrainingArguments(
        output_dir=str(place.out / "checkpoints"),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        max_grad_norm=0.5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    callback = Callback({"forget": forget, "retain": retain}, batch_size=2, out=place.out / "run", **settings)
    trainer = Trainer(model, arguments, train_dataset=forget + retain, data_collator=padded, callbacks=[callback])
    trainer.train()
    _save_weights(place, trainer.model)


def _save_weights(place: Place, model: Any) -> None:
    weights = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
    save_file(weights, place.out / "weights.safetensors")


def _over_two(place: Place) -> Any:
    """An untied Llama whose second block and head lie on a second device, as accelerate places them."""
    from accelerate import dispatch_model

    model = models.llama()
    if place.device == "cpu":
        model.hf_device_map = {"model": "cpu", "lm_head": "cpu:0"}  # all logits are computed, as over two devices
        return model
    first, second = GPU, f"{NAME}:1"
    layers = {"model.embed_tokens": first, "model.rotary_emb": first, "model.layers.0": first}
    layers |= {"model.layers.1": second, "model.norm": second, "lm_head": second}
    return dispatch_model(model, layers, main_device=first)


def _gram(place: Place, model: Any) -> None:
    batches = {name: place.put(models.make_batch([9, 5, 7], seed=i)) for i, name in enumerate(("forget", "retain"))}

    def loss(batch: dict[str, Tensor]) -> Callable[[], Tensor]:
        return lambda: mean_nll(forward(model, batch), Counts.of([batch]))

    gram = Gram.of(capture_gradients(model, {name: loss(batch) for name, batch in batches.items()}))
    place.write(gram=gram.to_record(), total=gram.total().tolist())


def _generation(place: Place, model: Any) -> None:
    ids = place.put(models.make_batch([4, 4]))
    tokens = model.generate(inputs=ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=4)
    place.write(tokens=tokens.tolist())


def _likelihood(place: Place, model: Any) -> None:
    rows = [EncodedExample(i, row["input_ids"], row["labels"]) for i, row in enumerate(made_rows([7, 5, 9], 0))]
    place.write(likelihood=asdict(compute_likelihood(model, rows, 0, 2)))


def _localization(place: Place, model: Any) -> None:
    """With the masks that it leads to."""

    def loss(seed: int) -> Tensor:
        batch = place.put(models.make_batch([9, 5, 7], seed=seed))
        return mean_nll(forward(model, batch), Counts.of([batch]))

    losses = {f"{role}/a": [partial(loss, seed)] for seed, role in enumerate(("forget", "retain"))}
    localized = localize(trainable_parameters(model), losses, [0.1])
    mask = GRAIL(k_unlearn=0.1, k_retain=0.1).gradient_mask(trainable_parameters(model), localized)
    left = {name: mask.apply("forget", name, p.detach()) for name, p in trainable_parameters(model).items()}
    save_file({name: each.cpu() for name, each in left.items() if each is not None}, place.out / "masked.safetensors")
    place.write(overlap=localized.overlaps[0.1].to_record(), frozen=mask.shares())


def _token_effects(place: Place, model: Any) -> None:
    batch = place.put(models.make_batch([9, 5, 7]))
    gradient = capture_gradients(model, {"forget": lambda: mean_nll(forward(model, batch), Counts.of([batch]))})
    effects = token_effects(model, batch, gradient["forget"])
    place.write(effects=effects.total.tolist())


def _reference(place: Place, model: Any) -> None:
    batch = place.put(models.make_batch([9, 5, 7]))
    outputs = forward_beside(model, Reference(model), batch, frozenset({"ref_logits", "ref_hidden", "hidden"}))
    place.write(logits=outputs.need("ref_logits").tolist())


@contextlib.contextmanager
def _on(device: str) -> Iterator[None]:
    """A device is that of Hugging Face's Trainer, and what `auto` stands for."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with mock.patch.dict(os.environ, ACCELERATE_TORCH_DEVICE=device):
        yield


def carry_out(case: Case, world: World, before_it: tuple[Case, Outcome] | None = None) -> Outcome:
    """Run a case on both devices, and compare; on the CPU the case before it may have been the same."""
    began, outcome = time.perf_counter(), Outcome()
    ran = before_it is not None and before_it[0].run is case.run
    if before_it is not None and ran:
        outcome.on_cpu = before_it[1].on_cpu
    places = {device: Place(device, world.folder / "out" / device.partition(":")[0], world) for device in ("cpu", GPU)}
    for device, place in places.items():
        if device == "cpu" and ran:
            continue
        shutil.rmtree(place.out, ignore_errors=True)
        place.out.mkdir(parents=True)
        os.environ["GEFFECT_CACHE"] = str(place.out / ".cache")  # else one device would read what the other computed
        before, marks = TRAFFIC.copy(), list[Traffic]()
        hook = register_optimizer_step_post_hook(partial(_mark, marks))
        try:
            with _on(device), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.manual_seed(0)
                case.run(place)
        except Exception as error:
            _note(outcome, error, device)
        finally:
            hook.remove()
        if device == GPU:
            outcome.total = (TRAFFIC - before).to_json()
            outcome.steps = max(0, len(marks) - 1)
            outcome.step = _a_step(marks) if outcome.steps else {}
    if not (outcome.error or outcome.on_cpu):
        _compare(outcome, *(place.out for place in places.values()))
    outcome.seconds = round(time.perf_counter() - began, 2)
    return outcome


def _mark(marks: list[Traffic], *_: Any) -> None:
    marks.append(TRAFFIC.copy())


def _a_step(marks: list[Traffic]) -> dict[str, Any]:
    count = len(marks) - 1

    def mean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: mean(each) for name, each in value.items()}
        return [mean(each) for each in value] if isinstance(value, list) else round(value / count, 2)

    a_step: dict[str, Any] = mean((marks[-1] - marks[0]).to_json())
    return a_step


def _note(outcome: Outcome, error: Exception, device: str) -> None:
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
    if device == "cpu":
        outcome.on_cpu = text
        return
    frames = [
        each
        for each in traceback.extract_tb(error.__traceback__)
        if each.filename.startswith(PACKAGE) and each.name != "__torch_dispatch__"
    ]
    outcome.error = text
    outcome.where = f"{frames[-1].filename.removeprefix(PACKAGE)}:{frames[-1].lineno}" if frames else ""


def _compare(outcome: Outcome, cpu: Path, gpu: Path) -> None:
    numbers = [dict(_numbers(each)) for each in (cpu, gpu)]
    outcome.same = bool(numbers[0]) and list(numbers[0]) == list(numbers[1])
    for name in dict.fromkeys(itertools.chain(*numbers)):
        a, b = (each.get(name) for each in numbers)
        difference = _difference(a, b)
        outcome.same &= difference == 0
        if difference > outcome.difference or (difference and not outcome.differs):
            outcome.difference, outcome.differs = difference, name


def _difference(a: Any, b: Any) -> float:
    """0 of values that are the same, the relative difference of two numbers, or of tensors at most; else infinite."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return torch.inf
        if torch.equal(a, b):
            return 0.0
        return float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-30))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.inf
    if a == b or (a != a and b != b):
        return 0.0
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) / max(abs(a), abs(b))
    return torch.inf


def _numbers(folder: Path) -> Iterator[tuple[str, Any]]:
    """File and place → value, of everything in a folder that has numbers."""
    for file in sorted(each for each in folder.rglob("*") if ".cache" not in each.parts):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            yield from ((f"{name}:{key}", tensor) for key, tensor in load_file(file).items())
        elif file.suffix == ".jsonl":
            for i, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
                yield from _leaves(f"{name}:{i}", json.loads(line))
        elif file.name in ("metrics.json", "numbers.json"):
            yield from _leaves(name, json.loads(file.read_text(encoding="utf-8")))
        elif file.suffix == ".csv":
            yield name, file.read_text(encoding="utf-8")


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            if key not in UNCOMPARED:
                yield from _leaves(f"{place}.{key}", each)
    elif isinstance(value, list):
        for i, each in enumerate(value):
            yield from _leaves(f"{place}.{i}", each)
    else:
        yield place, value


def emulation() -> dict[str, Any]:
    """What the device does in cases that are known: the error of each that is refused, and what is counted."""
    here, there, host = torch.ones(3, device=GPU), torch.ones(3, device=f"{NAME}:1"), torch.ones(3)
    refused: dict[str, Callable[[], Any]] = {
        "a host tensor": lambda: here + host,
        "another device": lambda: here + there,
        "a host tensor written to": lambda: host.add_(here),
        "a host number stacked": lambda: torch.stack([here.sum(), torch.tensor(1.0)]),
        "a host mask": lambda: here.masked_fill(host.bool(), 0),
        "a host tensor indexed": lambda: host[here.long()],
        "numpy": lambda: here.numpy(),
        "in a hook": lambda: _backward_into(lambda parameter: parameter.grad + host),
    }
    counted: dict[str, Callable[[], Any]] = {
        "a host number": lambda: here + torch.tensor(2.0),
        "to the host": lambda: here.cpu(),
        "to the device": lambda: host.to(GPU),
        "not waited for": lambda: host.to(GPU, non_blocking=True),
        "to another device": lambda: here.to(f"{NAME}:1"),
        "item": lambda: float(here.sum()),
        "tolist": lambda: here.tolist(),
        "truth": lambda: bool((here > 0).all()),
        "a mask's entries": lambda: here[here > 0],
        "nonzero": lambda: here.nonzero(),
        "equal": lambda: torch.equal(here, here),
        "host indices": lambda: here[torch.tensor([0, 1])],
        "a view": lambda: here.view(3, 1)[:2].T,
    }
    return {
        "refused": {name: _error(run) for name, run in refused.items()},
        "counted": {name: _events(run) for name, run in counted.items()},
    }


def _backward_into(hook: Callable[[Any], Any]) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, device=GPU))
    parameter.register_post_accumulate_grad_hook(lambda each: hook(each) and None)
    parameter.sum().backward()


def _error(run: Callable[[], Any]) -> str:
    try:
        return f"none: {run()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _events(run: Callable[[], Any]) -> dict[str, int]:
    before = TRAFFIC.copy()
    run()
    happened = TRAFFIC - before
    totals = {"waits": happened.waits.total(), "launches": happened.launches.total()}
    return {kind: happened.count(kind) for kind in sorted({event.kind for event in happened.events})} | {
        name: total for name, total in totals.items() if total
    }


def main(
    out: Path,
    only: Annotated[list[str] | None, typer.Option(help="run cases whose name has this text; repeat it")] = None,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="run all cases, not only the sample")] = False,
) -> None:
    """Carry out cases, and write what became of each to a JSON file."""
    import logging

    emulate()
    checked = emulation()
    gc.collect()
    gc.freeze()  # a Trainer collects all there is, modules included, again and again
    logging.disable(logging.WARNING)
    outcomes = {}
    drawing = mock.patch.object(api, "plot")  # figures take longer than all else
    with tempfile.TemporaryDirectory() as folder, drawing:
        world, before = World(Path(folder)), None
        for case in all_cases():
            named = any(text in case.name for text in only or [])
            if named or (not only and (case.sample or exhaustive)):
                outcomes[case.name] = outcome = carry_out(case, world, before)
                before = case, outcome
                became = outcome.error or outcome.on_cpu or outcome.same
                written = {name: asdict(each) for name, each in outcomes.items()}
                out.write_text(json.dumps({"emulation": checked, "cases": written}), encoding="utf-8")
                print(f"{outcome.seconds:6.2f} {case.name}: {became}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
