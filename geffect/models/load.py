"""Load a model, its tokenizer and its adapter by name."""

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from geffect.core.architectures import CAUSAL, CausalLM, Tokenizer, check_class, check_runs, freeze_non_text
from geffect.core.devices import AUTO, find_device, seeded
from geffect.errors import GeffectError
from geffect.io.hub import offline_if_unreachable
from geffect.io.readers import check_regular, read_json
from geffect.io.system import check_memory
from geffect.models.builtin import convert_gguf, is_built_in, make_tiny, make_tokenizer, smollm2_file
from geffect.models.cache import fingerprint, weights_sha256
from geffect.models.checkpoints import (
    ADAPTER_FILE,
    CHECKSUMS,
    check_adapter,
    check_checksums,
    check_config,
    check_directory,
    check_loading_info,
    check_patterns,
    check_size,
    checkpoints,
    read_errors,
    resize_vocabulary,
)
from geffect.models.names import UNTRAINED, hub_id
from geffect.models.tokenizers import has_tokenizer, read_template, read_tokenizer, set_template

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig

LOGGER = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass
class Loaded:
    """A model ready to be trained or measured.

    Attributes:
        model: the causal language model, a `peft.PeftModel` where there is an adapter.
        tokenizer: its tokenizer.
        source: the directory or hub id it came from.
        sha256: hash of the weights in that directory; None for a hub id.
    """

    model: CausalLM
    tokenizer: Tokenizer
    source: str
    sha256: str | None

    def fingerprint(self) -> str | None:
        """The hash of all that decides what the model computes; None where its weights have no hash."""
        if self.sha256 is None:
            return None
        places = filter(None, (self.source, base_of_adapter(self.source)))
        return fingerprint(self.model, self.sha256, map(Path, places))


def resolve(spec: str) -> Path | str:
    """The directory or hub id that a name (`geffect.models.names.FORMS`) stands for; a run's is its last checkpoint."""
    if spec == "smollm2":
        return convert_gguf(smollm2_file())
    if spec.startswith("gguf:"):
        return convert_gguf(Path(spec.removeprefix("gguf:")).expanduser())
    path = Path(spec).expanduser()
    if path.is_dir():
        return _model_directory(path).resolve()  # an adapter's configuration will name this path
    return hub_id(spec)


def _model_directory(path: Path) -> Path:
    """The directory itself, or a run's last checkpoint."""
    for candidate in (path, *reversed(checkpoints(path))):
        if any((candidate / name).is_file() for name in ("config.json", "adapter_config.json")):
            if candidate != path and not (path / "DONE").exists():
                LOGGER.warning("%s did not finish; its last complete checkpoint is %s", path, candidate.name)
            check_regular(candidate)
            return candidate
    message = f"There is no config.json, adapter_config.json or checkpoint in {path}"
    raise GeffectError(message, remedy="Name the directory of a model, an adapter or a run")


def load(
    spec: str,
    dtype: str = "float32",
    *,
    device: str = AUTO,
    trust_remote_code: bool = False,
    tokenizer: str | None = None,
    chat_template: str | None = None,
) -> Loaded:
    """Load a model onto a device for training or measuring; `geffect.load_model` also loads the built-in ones.

    ``device`` is a name that `geffect.core.devices.find_device` takes. An adapter is put on its base and made
    trainable, its base frozen. The weights have the dtype of the argument, not the checkpoint's; on a bfloat16 base
    PEFT keeps the adapter's in float32. ``trust_remote_code`` runs code that comes with the model. ``tokenizer`` names
    a model or directory whose tokenizer replaces the model's own (an adapter's before its base's), ``chat_template``
    is ``none``, one of its several templates, or a file; None keeps its own.
    """
    if dtype not in DTYPES:
        raise GeffectError(f"There is no dtype {dtype!r}", remedy=f"Choose one of {', '.join(DTYPES)}")
    place = find_device(device)
    if dtype == "float64" and place.type == "mps":
        raise GeffectError("Apple's GPUs have no float64", remedy="Choose --device cpu or another --dtype")
    with model_errors(spec):
        source = resolve(spec)
        if isinstance(source, Path) and (source / CHECKSUMS).exists():
            check_checksums(source, "*.safetensors")
        _outline(source, trust_remote_code, check_files=True)  # refuses what would fill the memory
        model = _read_weights(source, dtype, trust_remote_code)
        words = load_tokenizer(source, model.config, trust_remote_code, tokenizer, chat_template)
        loaded = Loaded(model, words, str(source), sha256_of(source))
    _move(model, place)
    return loaded


def _move(model: CausalLM, device: torch.device) -> None:
    """Move a model to a device; a quantized one stays where its kernels put it."""
    if getattr(model, "is_quantized", False):
        return
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
        message = f"The weights take {size:.1f} GB, more than {device} has free"
        raise GeffectError(message, remedy="Choose another --device, or --dtype bfloat16") from error


def _is_adapter(source: Path | str) -> TypeGuard[Path]:
    return isinstance(source, Path) and (source / "adapter_config.json").is_file()


def sha256_of(source: Path | str) -> str | None:
    """The hash of a directory's weights, those under an adapter included; None for a hub id."""
    if not isinstance(source, Path):
        return None
    if not _is_adapter(source):
        return weights_sha256(source)
    return hashlib.sha256(f"{weights_sha256(source)}{sha256_of(resolve(_base_of(source)))}".encode()).hexdigest()


@contextlib.contextmanager
def model_errors(spec: str, what: str = "model") -> Iterator[None]:
    """Report any exception that a broken model or tokenizer causes as one error; each kind of file has its own."""
    with read_errors(f"{what} at {spec}", "Check the directory or hub id"):
        try:
            yield
        except Exception as error:
            if isinstance(error, GeffectError) or "trust_remote_code" not in str(error):
                raise
            message = f"transformers cannot load {spec} itself: it comes with code of its own"
            raise GeffectError(message, remedy="Add --trust-remote-code if you trust that code") from error


def load_tokenizer(
    source: Path | str,
    config: "PretrainedConfig | None",
    trust: bool,
    instead: str | None = None,
    chat_template: str | None = None,
) -> Tokenizer:
    """The tokenizer of a resolved model, or of another model or directory ``instead``; see `load`."""
    if instead is None:
        tokenizer = _own_tokenizer(source, config, trust)
    elif is_built_in(instead):
        tokenizer = make_tokenizer(name=instead.removesuffix(UNTRAINED))
    else:
        path = Path(instead).expanduser()
        with model_errors(instead, "tokenizer"):
            place = path if path.is_dir() and has_tokenizer(path) else resolve(instead)
            tokenizer = _own_tokenizer(place, None, trust)
    return set_template(tokenizer, chat_template)


def _own_tokenizer(source: Path | str, config: "PretrainedConfig | None", trust: bool) -> Tokenizer:
    """An adapter's tokenizer, else its base's; in either case the adapter's chat template replaces its base's."""
    with quiet_transformers(), offline_if_unreachable(str(source)):
        if not _is_adapter(source):
            name, revision = _revision(str(source))
            return read_tokenizer(name, trust, **revision)
        if has_tokenizer(source):
            return read_tokenizer(str(source), trust, config)
        tokenizer = _own_tokenizer(resolve(_base_of(source)), config, trust)
        tokenizer.chat_template = read_template(source) or tokenizer.chat_template
        return tokenizer


def _read_weights(source: Path | str, dtype: str, trust: bool) -> CausalLM:
    """The model of a directory whose outline was checked (`_outline`)."""
    from peft import PeftModel
    from transformers import AutoConfig

    if _is_adapter(source):
        base = _read_weights(resolve(_base_of(source)), dtype, trust)
        resize_vocabulary(base, source)
        with quiet_transformers():
            adapted: CausalLM = PeftModel.from_pretrained(base, str(source), is_trainable=True)
            return adapted
    with quiet_transformers(), offline_if_unreachable(str(source)):
        name, revision = _revision(str(source))
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust, **revision)
        model, info = _auto_class(config).from_pretrained(
            name,
            dtype=DTYPES[dtype],
            trust_remote_code=trust,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_loading_info` refuses them by name
            use_safetensors=True,
            **revision,
        )
        check_loading_info(str(source), info)
        freeze_non_text(model)
        check_runs(model)
        loaded: CausalLM = model
        return loaded


def _auto_class(config: "PretrainedConfig") -> Any:
    """transformers' auto class that loads a model of this configuration, multimodal where the weights are."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    names = getattr(config, "architectures", None) or [config.model_type]
    check_class(names[0], config)
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM
    classes = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
    autos = [auto for auto in classes if type(config) in auto._model_mapping]
    if not autos:
        message = f"{names[0]}, of the model type {config.model_type}, is not {CAUSAL}"
        raise GeffectError(message, remedy="Choose another model")
    return next((auto for auto in autos if auto._model_mapping[type(config)].__name__ == names[0]), autos[0])


def _revision(source: str) -> tuple[str, dict[str, str]]:
    """A hub id without its revision, and the revision; a directory may have an @ in its name."""
    name, at, revision = source.partition("@")
    return (source, {}) if not at or Path(source).exists() else (name, {"revision": revision})


def base_of_adapter(source: Path | str) -> str | None:
    """The directory or hub id of the base of an adapter directory; None for any other directory."""
    if not _is_adapter(Path(source)):
        return None
    with model_errors(str(source)):
        return str(resolve(_base_of(Path(source))))


def _base_of(adapter: Path) -> str:
    file = adapter / "adapter_config.json"
    base = read_json(file).get("base_model_name_or_path")
    if not base:
        raise GeffectError(f"{file} has no base_model_name_or_path", remedy="Name the base there")
    here, beside = Path(str(base)).expanduser(), adapter / str(base)
    if here.is_absolute() and not here.exists():
        message = f"The base of the adapter in {adapter} is not at {base}"
        raise GeffectError(message, remedy=f"Move it back, or correct base_model_name_or_path in {file}")
    return str(beside if beside.is_dir() and not here.exists() else base)


def outline(
    spec: str, *, trust_remote_code: bool = False, tokenizer: str | None = None, chat_template: str | None = None
) -> tuple[CausalLM, Tokenizer]:
    """A model's shapes without its weights (on the meta device), and its tokenizer.

    An adapter's own parameters are included and alone trainable. The arguments are those of `load`, and ``spec`` may
    be built in.
    """
    if is_built_in(spec):
        model, words = make_tiny(0, spec.removesuffix(UNTRAINED))
        if tokenizer is not None:
            words = load_tokenizer(spec, model.config, trust_remote_code, tokenizer)
        return model.to("meta"), set_template(words, chat_template)
    with model_errors(spec):
        source = resolve(spec)
        model = _outline(source, trust_remote_code)
        return model, load_tokenizer(source, model.config, trust_remote_code, tokenizer, chat_template)


def _outline(source: Path | str, trust: bool, *, check_files: bool = False) -> CausalLM:
    """A model's shapes, once its files and its configuration are checked.

    ``check_files``: the weights must be there, and be about as large as the configuration says.
    """
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(source, Path):
        check_directory(source)
    if _is_adapter(source):
        return _adapter_outline(source, trust, check_files)
    with quiet_transformers(), offline_if_unreachable(str(source)), torch.device("meta"):
        name, revision = _revision(str(source))
        check_config(str(source), PretrainedConfig.get_config_dict(name, **revision)[0])
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust, **revision)
        model: CausalLM = _auto_class(config).from_config(config, trust_remote_code=trust)
    if check_files and isinstance(source, Path):
        check_size(source, sum(p.numel() for p in model.parameters()))
    if not check_files:  # else done when the weights are read
        freeze_non_text(model)
    return model


def _adapter_outline(source: Path, trust: bool, check_files: bool) -> CausalLM:
    from peft import PeftConfig, get_peft_model

    place = resolve(_base_of(source))
    if _is_adapter(place):
        message = f"The base of the adapter in {source} is an adapter itself, in {place}"
        raise GeffectError(message, remedy="Merge that into its own base first")
    has_weights = (source / ADAPTER_FILE).is_file()
    if check_files and not has_weights:
        raise GeffectError(f"There is no {ADAPTER_FILE} in {source}", remedy="Re-save the adapter as safetensors")
    config = PeftConfig.from_pretrained(str(source))
    config.inference_mode = False
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # the values come from the file; some initializations need the base's
    base = _outline(place, trust, check_files=check_files)
    check_patterns(config, [name for name, _ in base.named_modules()])
    with quiet_transformers(), torch.device("meta"):
        if has_weights:
            resize_vocabulary(base, source)
        adapted: CausalLM = get_peft_model(base, config)
        if has_weights:
            check_adapter(adapted, source)
        return adapted


def add_lora(model: torch.nn.Module, rank: int, seed: int, dropout: float = 0.0) -> "PeftModel":
    """A fresh LoRA on every linear layer but the head (alpha = 2·rank), the base frozen.

    ``seed`` draws A; B is zero, so the model computes what its base does. ``dropout`` is on the adapter's inputs. Raise
    where the model has an adapter, or memory cannot hold one of this rank.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise GeffectError("--lora cannot be used: the model has an adapter", remedy="Omit --lora to train that one")
    _check_rank(model, rank)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with quiet_transformers(), seeded(seed):
        return get_peft_model(model, config)


def _check_rank(model: torch.nn.Module, rank: int) -> None:
    """Raise where memory cannot hold an adapter with its gradient and Adam's averages, before PEFT allocates it."""
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear | torch.nn.Embedding)]
    numbers = rank * sum(sum(each.weight.shape) for each in linear)
    check_memory(f"an adapter of rank {rank}", 4 * 4 * numbers, "Lower --lora")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn off weight-loading bars and advice; the previous settings return after."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft 0.21 reads a property that transformers 5.23 renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            # `check_adapter` logs these keys
            warnings.filterwarnings("ignore", ".* keys did not match any targeted module", RuntimeWarning)
            # the base of an adapter has moved
            warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path` was renamed")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
