"""Experiments of open-unlearning as configurations of ``geffect unlearn``: what was mapped, and all that was not."""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from geffect.config import UnlearnConfig
from geffect.config.presets import preset_settings
from geffect.config.schema import MANY, TEXT_LENGTH, read_mapping
from geffect.core.registry import Call, Value, parse
from geffect.errors import GeffectError, shorten, unknown_name, visible_text

COMPOSED = (
    "Name .hydra/config.yaml in its output folder, or write it with: python src/train.py … --cfg job > experiment.yaml"
)
REFERENCE = re.compile(r"\$\{([^${}]*)\}")
SUBSTITUTIONS = 100  # of one value: a chain that is longer does not end
PER_EXAMPLE = 40  # examples of tofu:forgetNN a percent: 4,000 in all
MODEL, ARGS, METHOD = "model.model_args", "trainer.args", "trainer.method_args"


class Handler(NamedTuple):
    """How a trainer of open-unlearning is written here.

    Attributes:
        preset: whose objective has its forget term.
        parameters: its argument → the term's parameter, and the value where the file has none.
        weights: γ of the forget and α of the retain term where the file has none; None without a retain term.
    """

    preset: str
    parameters: Mapping[str, tuple[str, Value]] = {}
    weights: tuple[float, float] | None = (1.0, 1.0)


HANDLERS = {
    "GradAscent": Handler("GradAscent", weights=None),
    "GradDiff": Handler("GradDiff"),
    "NPO": Handler("NPO", {"beta": ("beta", 1.0)}),
    "SimNPO": Handler("SimNPO", {"beta": ("beta", 1.0), "delta": ("gamma", 0.0)}),
    "WGA": Handler("WGA", {"beta": ("alpha", 1.0)}),
    "SatImp": Handler("SatImp", {"beta1": ("beta1", 5.0), "beta2": ("beta2", 1.0)}, (1.0, 0.1)),
    "RMU": Handler("RMU", {"steering_coeff": ("c", 20.0)}),
    "DPO": Handler("DPO", {"beta": ("beta", 1.0)}),
    "UNDIAL": Handler("UNDIAL", {"beta": ("beta", 1.0)}),
    "CEU": Handler("CE-U", {"ignore_first_n_answer_tokens": ("skip", 1)}, None),
    "PDU": Handler("PDU"),
}
DUAL = {"retain_loss_eps": ("eps", 0.0), "dual_step_size": ("eta", 1.0)}
RETAIN = {"NLL": "gd", "KL": "kl(variant=tofu)", "EMBED_DIFF": "rr(dims=mean)"}
PLAIN: Mapping[str, tuple[str, type, object]] = {  # their key → our setting, its type, Hugging Face's default
    f"{ARGS}.learning_rate": ("learning_rate", float, 5e-5),
    f"{ARGS}.per_device_train_batch_size": ("batch_size", int, 8),
    f"{ARGS}.gradient_accumulation_steps": ("grad_accum_steps", int, 1),
    f"{ARGS}.weight_decay": ("weight_decay", float, 0.0),
    f"{ARGS}.max_grad_norm": ("max_grad_norm", float, 1.0),
    f"{ARGS}.lr_scheduler_type": ("schedule", str, "linear"),
    f"{ARGS}.gradient_checkpointing": ("gradient_checkpointing", bool, None),
    f"{ARGS}.seed": ("seed", int, 42),
    f"{MODEL}.pretrained_model_name_or_path": ("model", str, None),
    f"{MODEL}.torch_dtype": ("dtype", str, None),
    "model.tokenizer_args.pretrained_model_name_or_path": ("tokenizer", str, None),
}
DATASETS = ("QADataset", "PretrainingDataset", "QAwithIdkDataset")
WHOLE = ("eval", "collator", "paths", "hydra")  # named in one line each where nothing of them is mapped


@dataclass
class Imported:
    """A configuration made of an experiment.

    Attributes:
        title: what it was made of.
        settings: of ``geffect unlearn``, by name.
        sources: setting → where it comes from.
        unmapped: key of the experiment → its value as it stands there, or how many values it has.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    unmapped: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """A YAML file for ``geffect unlearn``: every setting with its source, then what was not mapped, as comments."""
        lines = [f"# {self.title}"]
        lines += [f"{_yaml({name: value})}  # {self.sources[name]}" for name, value in self.settings.items()]
        lines += ["# not mapped:", *(f"#   {key}: {value}" for key, value in self.unmapped.items())]
        return "\n".join(visible_text(line, lines=False) for line in lines) + "\n"


def import_experiment(path: Path) -> Imported:
    """Turn an experiment of open-unlearning, as Hydra composed it, into a configuration of ``geffect unlearn``.

    Args:
        path: the YAML file, or the output folder that has it as ``.hydra/config.yaml``.

    Raises:
        GeffectError: it is no such file, or not composed; its trainer or a value that is mapped has no counterpart.
    """
    file = path / ".hydra" / "config.yaml" if path.is_dir() else path
    content = read_mapping(file)
    if "defaults" in content:
        raise GeffectError(f"{file} is not composed: it has defaults", remedy=COMPOSED)
    for key in ("trainer", "model", "data"):
        if not isinstance(content.get(key), dict):
            raise GeffectError(f"{file} is no experiment of open-unlearning: it has no {key}", remedy=COMPOSED)
    reader = _Reader(file, content)
    reader.run()
    return reader.finished()


def objective_text(handler: str, arguments: Mapping[str, object]) -> str:
    """The objective of a trainer with its ``method_args``.

    >>> objective_text("SimNPO", {"beta": 4.5, "gamma": 0.125})
    '0.125*simnpo(beta=4.5, gamma=0.0) + gd'
    """
    content = {"trainer": {"handler": handler, "method_args": dict(arguments)}}
    return _Reader(Path("experiment"), content).objective(handler, HANDLERS[handler])


def _yaml(content: object) -> str:
    """A name and a value, or a value, on one line."""
    dumped = yaml.safe_dump(content, width=math.inf, default_flow_style=False).removesuffix("...\n").rstrip("\n")
    if "\n" in dumped:  # of a text with line feeds
        name, value = next(iter(content.items())) if isinstance(content, dict) else ("", content)
        dumped = f"{name}: {json.dumps(value)}" if name else json.dumps(value)
    return dumped


class _Reader:
    """Reads values by their dotted keys, resolved, and notes which were read."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file, self.content = file, content
        self.leaves, self.used = dict(_leaves(content)), set[str]()
        self.imported = Imported("")

    def get(self, key: str, default: object = None, kind: type = object) -> Any:
        """The value of a key, of a type; the default where there is none or it is null. It counts as mapped."""
        value = self.leaves.get(key)
        if value is None:
            self.used.add(key)
            return default
        value = self._resolved(key, value) if isinstance(value, str) else value
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            if kind in (int, float) and not isinstance(value, bool):
                number = float(value)  # YAML reads 1e-5 as a text
                value = int(number) if kind is int and number == int(number) else number
        fits = isinstance(value, kind) and not (isinstance(value, bool) and kind in (int, float))
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            wanted = {int: "a whole number", float: "a finite number", bool: "true or false"}.get(kind, "a text")
            raise self._refusal(f"{key} is {shorten(repr(value))}", f"It should be {wanted}")
        self.used.add(key)
        return value

    def _resolved(self, key: str, text: str) -> Any:
        """A text with its references replaced by what they name in the file."""
        for _ in range(SUBSTITUTIONS):
            found = REFERENCE.search(text)
            if found is None and "${" not in text and text != "???":
                return text
            name = found[1].strip() if found else ""
            if not found or isinstance(self.leaves.get(name), list | dict | None):
                break
            self.used.add(name)
            if found[0] == text and not isinstance(self.leaves[name], str):
                return self.leaves[name]
            text = text[: found.start()] + str(self.leaves[name]) + text[found.end() :]
            if len(text) > TEXT_LENGTH:
                break
        raise self._refusal(
            f"{key} is {shorten(repr(self.leaves[key]))}, which the file does not resolve",
            f"Write its value into the file. {COMPOSED.replace('--cfg job', '--cfg job --resolve')}",
        )

    def _refusal(self, problem: str, remedy: str) -> GeffectError:
        return GeffectError(f"{self.file}: {problem}", remedy=remedy)

    def set(self, name: str, value: object, source: str) -> None:
        """A setting, and where it comes from."""
        self.imported.settings[name], self.imported.sources[name] = value, source

    def finished(self) -> Imported:
        """What was mapped, checked, and what was not, in the file's order."""
        names = ("model", "forget", "retain", "out")
        UnlearnConfig.draft({**dict.fromkeys(names, "given later"), **self.imported.settings})
        for key, value in self.leaves.items():
            top = key.partition(".")[0]
            if top in WHOLE:
                count = sum(each.startswith(f"{top}.") for each in self.leaves)
                self.imported.unmapped[top] = f"{count} values"
            elif key not in self.used and value not in (None, [], {}):
                self.imported.unmapped[key] = shorten(_yaml(value) if isinstance(value, str) else repr(value))
        if "steps" not in self.imported.settings:
            self.imported.unmapped[f"{ARGS}.num_train_epochs"] = "give steps: passes × examples to forget / batch"
        return self.imported

    def run(self) -> None:
        """Map all that has a counterpart."""
        handler = self.get("trainer.handler", "", str)
        if not handler:
            remedy = f"Choose one of {', '.join(HANDLERS)}"
            raise GeffectError(f"{self.file} names no trainer (trainer.handler)", remedy=remedy)
        if handler not in HANDLERS:
            raise unknown_name("a trainer of open-unlearning that unlearns", handler, HANDLERS)
        self.imported.title = f"{self.file.name}: trainer {handler} of open-unlearning, on one device"
        for key, (name, kind, default) in PLAIN.items():
            value = self.get(key, default, kind)
            if value is not None:
                self.set(name, value, key if key in self.leaves else f"{key}, Hugging Face's default")
        self._drop_needless()
        self._optimizer()
        self._template()
        for role in ("forget", "retain"):
            self._data(role)
        self.set("objective", self.objective(handler, HANDLERS[handler]), f"trainer.handler, {METHOD}")
        self._length()

    def _drop_needless(self) -> None:
        found = self.imported.settings
        if found.get("tokenizer") == found.get("model"):
            found.pop("tokenizer", None)
        if self.get(f"{ARGS}.bf16", False, bool):
            self.set("autocast", "bfloat16", f"{ARGS}.bf16")

    def _optimizer(self) -> None:
        name = self.get(f"{ARGS}.optim", "adamw_torch", str)
        plain = "adamw_torch" if name == "paged_adamw_32bit" else name  # the same update, its state not paged
        self.set("optimizer", plain, f"{ARGS}.optim: {name}")

    def _template(self) -> None:
        place = "model.template_args"
        if self.leaves.get(f"{place}.apply_chat_template") is not True:
            return
        self.used.add(f"{place}.apply_chat_template")
        for key, name in (("system_prompt", "system_prompt"), ("date_string", "template_date")):
            if (text := self.get(f"{place}.{key}", None, str)) is not None:
                self.set(name, text, f"{place}.{key}")

    def _data(self, role: str) -> None:
        """One role's set, and the columns and length that both share."""
        names = list(_mapping(self.content["data"], role))
        place = f"data.{role}.{names[0] if names else ''}"
        handler = self.leaves.get(f"{place}.handler")
        if len(names) != 1 or handler not in DATASETS or (spec := self._set(f"{place}.args.hf_args")) is None:
            return
        place += ".args"
        self.set(role, spec, f"data.{role}")
        self.used.add(f"data.{role}.{names[0]}.handler")
        self.used |= {"data.anchor"} if self.leaves.get("data.anchor") == "forget" else set()
        kinds = {"question_key": str, "answer_key": str, "text_key": str, "max_length": int}
        for key, kind in kinds.items():
            name = key.replace("_key", "_column")
            value = self.get(f"{place}.{key}", None, kind)
            if value is not None and self.imported.settings.get(name, value) == value:
                self.set(name, value, f"{place}.{key}")
            elif value is not None:
                self.used.discard(f"{place}.{key}")  # the other set has another one

    def _set(self, place: str) -> str | None:
        """The name of a set here: of TOFU, a file, or one of the hub's."""
        keys = [f"{place}.{key}" for key in ("path", "name", "split", "data_files")]
        path, name, split, files = (self.get(key, "", str) for key in keys)
        if files:
            return str(files)
        if path == "locuslab/TOFU" and split == "train":
            return f"tofu:{name}"
        if path.count("/") == 1 and split:
            return f"hub:{'/'.join(filter(None, (path, name, split)))}"
        self.used -= set(keys)
        return None

    def objective(self, handler: str, how: Handler) -> str:
        """The text of the objective: the preset's forget term with the file's numbers, and the retain term."""
        forget, *rest = parse(str(preset_settings(f"open_unlearning:{how.preset}")["objective"]))
        forget = replace(forget, weight=1.0, parameters=forget.parameters | self._parameters(how.parameters))
        layer = self._layer() if handler == "RMU" else {}
        forget = replace(forget, parameters=forget.parameters | layer | (self._answers() if handler == "DPO" else {}))
        if how.weights is None:
            return _write(forget)
        gamma, alpha = (
            self.get(f"{METHOD}.{key}", w, float) for key, w in zip(("gamma", "alpha"), how.weights, strict=True)
        )
        retain = self._retain(alpha, layer)
        if handler == "PDU" and self.get(f"{METHOD}.primal_dual", False, bool):
            retain = replace(
                rest[0], wrapped=replace(retain, weight=1.0), parameters=self._parameters(DUAL) | {"start": alpha}
            )
        terms = [replace(forget, weight=gamma), *([retain] if retain.weight else [])]
        return " + ".join(_write(each) for each in terms)

    def _parameters(self, names: Mapping[str, tuple[str, Value]]) -> dict[str, Value]:
        return {ours: self.get(f"{METHOD}.{key}", value, type(value)) for key, (ours, value) in names.items()}

    def _retain(self, alpha: float, layer: dict[str, Value]) -> Call:
        kind = self.get(f"{METHOD}.retain_loss_type", "NLL", str)
        if kind not in RETAIN or (kind == "EMBED_DIFF" and not layer):
            known = [name for name in RETAIN if layer or name != "EMBED_DIFF"]
            raise self._refusal(f"{METHOD}.retain_loss_type is {kind!r}", f"It should be {' or '.join(known)}")
        [call] = parse(RETAIN[kind])
        return replace(call, weight=alpha, parameters=call.parameters | (layer if kind == "EMBED_DIFF" else {}))

    def _layer(self) -> dict[str, Value]:
        """RMU's hidden state: open-unlearning counts blocks from 0, and block l's output is hidden state l + 1."""
        regex = self.get(f"{METHOD}.module_regex", r"model\.layers\.7", str)
        found = re.fullmatch(r"model\\?\.layers\\?\.([0-9]{1,3})", regex)
        if found is None:
            raise self._refusal(f"{METHOD}.module_regex is {regex!r}", r"It should be model\.layers\.NUMBER")
        if self.leaves.get(f"{METHOD}.trainable_params_regex") == [".*"]:
            self.used.add(f"{METHOD}.trainable_params_regex")  # all weights are trained here, too
        return {"layer": int(found[1]) + 1}

    def _answers(self) -> dict[str, Value]:
        """The file of refusals that DPO prefers."""
        key = next((key for key in self.leaves if re.fullmatch(r"data\.forget\.[^.]+\.args\.idk_path", key)), "")
        original = key.replace("idk_path", "return_original")
        self.used |= {original} if self.leaves.get(original) is True else set()
        answers = self.get(key, None, str) if key else None
        return {"answers": answers} if answers else {}

    def _length(self) -> None:
        """Steps of the run and of its warm-up: an epoch is one pass over the forget set."""
        most, warm = self.get(f"{ARGS}.max_steps", -1, int), self.get(f"{ARGS}.warmup_steps", 0, int)
        found = self.imported.settings
        size = re.fullmatch(r"tofu:forget([0-9]{2})", str(found.get("forget")))
        examples, batch = PER_EXAMPLE * int(size[1]) if size else 0, max(1, found["batch_size"])
        accumulated = max(1, found["grad_accum_steps"])
        if most > 0:
            self.set("steps", most, f"{ARGS}.max_steps")
        elif examples:
            epochs = self.get(f"{ARGS}.num_train_epochs", 3.0, float)
            steps = math.ceil(min(epochs, MANY) * math.ceil(math.ceil(examples / batch) / accumulated))
            self.set("steps", steps, f"{ARGS}.num_train_epochs: {epochs:g} passes over {examples} examples")
        if examples and f"{ARGS}.warmup_epochs" in self.leaves:
            epochs = self.get(f"{ARGS}.warmup_epochs", 0.0, float)
            warm = int(min(epochs, MANY) * examples // (batch * accumulated))
            self.set("warmup_steps", warm, f"{ARGS}.warmup_epochs: {epochs:g}")
        elif warm:
            self.set("warmup_steps", warm, f"{ARGS}.warmup_steps")


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key → value of all that is no mapping with entries."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value.isoformat() if isinstance(value, date) else value


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _write(call: Call) -> str:
    """The text of a term."""
    parts = [_write(call.wrapped)] if call.wrapped else []
    for name, value in call.parameters.items():
        parts.append(f"{name}={value if isinstance(value, str) and value.isidentifier() else repr(value)}")
    text = call.name + (f"({', '.join(parts)})" if parts else "")
    return text if call.weight == 1 else f"{call.weight!r}*{text}"
