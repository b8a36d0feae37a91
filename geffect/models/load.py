"""Load a model, its tokenizer and its adapter from any of the names a user may give."""

import contextlib
import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from geffect.core.architectures import CAUSAL, check_class, check_runs, freeze_beside_text
from geffect.errors import GeffectError
from geffect.io.limits import check_memory
from geffect.io.readers import check_regular
from geffect.models.adapters import FILE, check_adapter, check_patterns, grow_vocabulary
from geffect.models.builtin import BUILT_IN, UNTRAINED, is_built_in, make_tiny, make_tokenizer
from geffect.models.cache import weights_sha256
from geffect.models.checkpoints import checkpoints
from geffect.models.checksums import CHECKSUMS, check_checksums
from geffect.models.gguf import converted, smollm2_file
from geffect.models.stored import check_config, check_directory, check_loaded, check_size
from geffect.models.tokenizers import choose_template, holds_tokenizer, own_template, read_tokenizer

LOGGER = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?(@[\w./-]+)?$")
FORMS = (
    f"{', '.join(BUILT_IN)} (each also {UNTRAINED}), smollm2, gguf:FILE, a hub id ORG/NAME or ORG/NAME@REVISION, "
    "or a directory with a model, an adapter or a run"
)


@dataclass
class Loaded:
    """A model ready to be trained or measured.

    Attributes:
        model: the causal language model, a `peft.PeftModel` where there is an adapter.
        tokenizer: its tokenizer.
        source: the directory or hub id it came from.
        sha256: hash of the weights in that directory; None for a hub id.
    """

    model: Any
    tokenizer: Any
    source: str
    sha256: str | None


def resolve(spec: str) -> Path | str:
    """What a model's name stands for.

    Args:
        spec: see `FORMS`.

    Returns:
        A directory, or a hub id.

    Raises:
        GeffectError: it stands for nothing.
    """
    if spec == "smollm2":
        return converted(smollm2_file())
    if spec.startswith("gguf:"):
        return converted(Path(spec.removeprefix("gguf:")).expanduser())
    path = Path(spec).expanduser()
    if path.is_dir():
        return _model_directory(path).resolve()  # an adapter made from it names it by this
    local = "/" in spec and Path(spec.partition("/")[0]).is_dir()  # runs/nope is a missing directory, no hub id
    if local or spec.startswith(("builtin:", ".", "/", "~")) or not HUB_ID.match(spec):
        raise GeffectError(f"a model: {FORMS}", repr(spec), "name one of these")
    return spec


def _model_directory(path: Path) -> Path:
    """The directory itself, or a run's last checkpoint."""
    for candidate in (path, *reversed(checkpoints(path))):
        if any((candidate / name).is_file() for name in ("config.json", "adapter_config.json")):
            if candidate != path and not (path / "DONE").exists():
                LOGGER.warning("%s did not finish; its last whole state is %s", path, candidate.name)
            check_regular(candidate)
            return candidate
    raise GeffectError(
        f"config.json, adapter_config.json or checkpoints in {path}",
        "none of them",
        "name a model, adapter or run directory",
    )


def load(
    spec: str,
    dtype: str = "float32",
    *,
    trust_remote_code: bool = False,
    tokenizer: str | None = None,
    chat_template: str | None = None,
) -> Loaded:
    """Load a model for training or measuring.

    An adapter is put on its base and made trainable, its base frozen. The dtype of the weights is always the one
    asked for, never the checkpoint's own; on a bfloat16 base PEFT keeps the adapter's in float32.

    Args:
        spec: see `FORMS`; those built in are known to `geffect.api.load_model` alone.
        dtype: ``float32``, ``bfloat16`` or ``float64``.
        trust_remote_code: run code that comes with the model.
        tokenizer: a model or directory whose tokenizer takes the place of its own, which is an adapter's before its
            base's.
        chat_template: as of `geffect.models.tokenizers.choose_template`.

    Returns:
        Model and tokenizer.

    Raises:
        GeffectError: there is no such model, or it cannot be read.
    """
    if dtype not in DTYPES:
        raise GeffectError(f"a dtype among {', '.join(DTYPES)}", repr(dtype), "choose one of these")
    with reading(spec):
        source = resolve(spec)
        if isinstance(source, Path) and (source / CHECKSUMS).exists():
            check_checksums(source, "*.safetensors")
        model = (_with_adapter if _is_adapter(source) else _plain)(str(source), dtype, trust_remote_code)
        chosen = tokenizer_of(source, model.config, trust_remote_code, tokenizer, chat_template)
        return Loaded(model, chosen, str(source), sha256_of(source))


def _is_adapter(source: Path | str) -> TypeGuard[Path]:
    return isinstance(source, Path) and (source / "adapter_config.json").is_file()


def sha256_of(source: Path | str) -> str | None:
    """The hash of a directory's weights, those under an adapter included."""
    if not isinstance(source, Path):
        return None
    if not _is_adapter(source):
        return weights_sha256(source)
    return hashlib.sha256(f"{weights_sha256(source)}{sha256_of(resolve(_base_of(source)))}".encode()).hexdigest()


@contextlib.contextmanager
def reading(spec: str, what: str = "model") -> Iterator[None]:
    """Turn whatever a broken file makes its reader raise into one line; each kind of file has its own exceptions.

    Args:
        spec: what is read.
        what: it is.

    Yields:
        Nothing.

    Raises:
        GeffectError: it cannot be read.
    """
    try:
        yield
    except GeffectError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        if "trust_remote_code" in str(error):
            reason, remedy = "one that comes with code of its own", "add --trust-remote-code if you trust that code"
            raise GeffectError(f"a model at {spec} that transformers can load itself", reason, remedy) from error
        raise GeffectError(f"a readable {what} at {spec}", reason, "check the directory or hub id") from error


def tokenizer_of(
    source: Path | str, config: Any, trust: bool, instead: str | None = None, chat_template: str | None = None
) -> Any:
    """The tokenizer a model is used with.

    Args:
        source: as of `resolve`.
        config: of the model.
        trust: run code that comes with the tokenizer.
        instead: a model or directory whose tokenizer is taken.
        chat_template: as of `geffect.models.tokenizers.choose_template`.

    Returns:
        The tokenizer.
    """
    if instead is None:
        found = _own_tokenizer(source, config, trust)
    elif is_built_in(instead):
        found = make_tokenizer(name=instead.removesuffix(UNTRAINED))
    else:
        path = Path(instead).expanduser()
        with reading(instead, "tokenizer"):
            found = _own_tokenizer(path if path.is_dir() and holds_tokenizer(path) else resolve(instead), None, trust)
    return choose_template(found, chat_template)


def _own_tokenizer(source: Path | str, config: Any, trust: bool) -> Any:
    """An adapter's own tokenizer, else its base's; a template of its own wins over its base's in either case."""
    with quiet_transformers():
        if not _is_adapter(source):
            name, revision = _revision(str(source))
            return read_tokenizer(name, trust, **revision)
        if holds_tokenizer(source):
            return read_tokenizer(str(source), trust, config)
        found = _own_tokenizer(resolve(_base_of(source)), config, trust)
        found.chat_template = own_template(source) or found.chat_template
        return found


def _plain(source: str, dtype: str, trust: bool) -> Any:
    from transformers import AutoConfig

    outlined = _on_meta(source, trust)  # refuses what would fill the memory first
    if Path(source).is_dir():
        check_size(Path(source), sum(p.numel() for p in outlined.parameters()))
    with quiet_transformers():
        name, revision = _revision(source)
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust, **revision)
        model, info = _auto_class(config).from_pretrained(
            name,
            dtype=DTYPES[dtype],
            trust_remote_code=trust,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            use_safetensors=True,
            **revision,
        )
        check_loaded(source, info)
        freeze_beside_text(model)
        check_runs(model)
        return model


def _auto_class(config: Any) -> Any:
    """The class that loads a model of this configuration, multimodal where the weights are.

    Args:
        config: the configuration.

    Returns:
        One of transformers' auto classes.

    Raises:
        GeffectError: the model is no causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    names = getattr(config, "architectures", None) or [config.model_type]
    check_class(names[0], config)
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM
    autos = [
        each
        for each in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
        if type(config) in each._model_mapping
    ]
    if not autos:
        raise GeffectError(CAUSAL, f"{names[0]}, of the model type {config.model_type}", "choose another model")
    return next((each for each in autos if each._model_mapping[type(config)].__name__ == names[0]), autos[0])


def _revision(source: str) -> tuple[str, dict[str, str]]:
    """A hub id without its revision, and the revision; a directory may have an @ in its name."""
    name, at, revision = source.partition("@")
    return (source, {}) if not at or Path(source).exists() else (name, {"revision": revision})


def _with_adapter(source: str, dtype: str, trust: bool) -> Any:
    from peft import PeftModel

    base = str(resolve(_base_of(Path(source))))
    if not (Path(source) / FILE).is_file():
        raise GeffectError(f"{FILE} in {source}", "none", "save the adapter anew as safetensors")
    _adapter_outline(source, trust)  # refuses an adapter that is not whole
    base_model = _plain(base, dtype, trust)
    grow_vocabulary(base_model, Path(source))
    with quiet_transformers():
        return PeftModel.from_pretrained(base_model, source, is_trainable=True)


def adapter_of(source: Path | str) -> str | None:
    """What the base of an adapter directory stands for; None where the directory holds none.

    Args:
        source: as of `resolve`.

    Returns:
        The base's directory or hub id.

    Raises:
        GeffectError: the base is missing, or is not named.
    """
    if not _is_adapter(source):
        return None
    with reading(str(source)):
        return str(resolve(_base_of(source)))


def _base_of(adapter: Path) -> str:
    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise GeffectError(
            f"base_model_name_or_path in {adapter / 'adapter_config.json'}", "none", "name the base there"
        )
    here, beside = Path(str(base)).expanduser(), adapter / str(base)
    if here.is_absolute() and not here.exists():
        remedy = f"move it back, or correct base_model_name_or_path in {adapter / 'adapter_config.json'}"
        raise GeffectError(f"the base of the adapter in {adapter} at {base}", "none", remedy)
    return str(beside if beside.is_dir() and not here.exists() else base)


def outline(
    spec: str, *, trust_remote_code: bool = False, tokenizer: str | None = None, chat_template: str | None = None
) -> tuple[Any, Any]:
    """A model's shapes without its weights (on the meta device), and its tokenizer.

    Args:
        spec: see `FORMS`.
        trust_remote_code: run code that comes with the model.
        tokenizer: as of `load`.
        chat_template: as of `load`.

    Returns:
        The model, an adapter's own parameters included and alone trainable, and the tokenizer.

    Raises:
        GeffectError: there is no such model, or it cannot be read.
    """
    if is_built_in(spec):
        model, own = make_tiny(0, spec.removesuffix(UNTRAINED))
        chosen = own if tokenizer is None else tokenizer_of(spec, model.config, trust_remote_code, tokenizer)
        return model.to("meta"), choose_template(chosen, chat_template)
    with reading(spec):
        source = resolve(spec)
        model = (_adapter_outline if _is_adapter(source) else _plain_outline)(str(source), trust_remote_code)
        return model, tokenizer_of(source, model.config, trust_remote_code, tokenizer, chat_template)


def _plain_outline(source: str, trust: bool) -> Any:
    model = _on_meta(source, trust)
    freeze_beside_text(model)
    return model


def _on_meta(source: str, trust: bool) -> Any:
    """A model's shapes, once its files and its configuration are seen to be in order."""
    from transformers import AutoConfig, PretrainedConfig

    if Path(source).is_dir():
        check_directory(Path(source))
    with quiet_transformers(), torch.device("meta"):
        name, revision = _revision(source)
        check_config(source, PretrainedConfig.get_config_dict(name, **revision)[0])
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust, **revision)
        return _auto_class(config).from_config(config, trust_remote_code=trust)


def _adapter_outline(source: str, trust: bool) -> Any:
    from peft import PeftConfig, get_peft_model

    check_directory(Path(source))
    config = PeftConfig.from_pretrained(source)
    config.inference_mode = False
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # the values come from the file; some ways to draw them need the base's
    base = resolve(_base_of(Path(source)))
    model = (_adapter_outline if _is_adapter(base) else _plain_outline)(str(base), trust)
    check_patterns(config, [name for name, _ in model.named_modules()])
    with quiet_transformers(), torch.device("meta"):
        whole = (Path(source) / FILE).is_file()
        if whole:
            grow_vocabulary(model, Path(source))
        adapted = get_peft_model(model, config)
        if whole:
            check_adapter(adapted, Path(source))
        return adapted


def add_lora(model: Any, rank: int, seed: int, dropout: float = 0.0) -> Any:
    """A fresh LoRA on every linear layer but the head (alpha = 2·rank), the base frozen.

    Args:
        model: the base model.
        rank: r.
        seed: of A's initial values; B starts at zero, so the model starts as its base.
        dropout: on the adapter's inputs, where a run keeps dropout.

    Returns:
        The `peft.PeftModel`.

    Raises:
        GeffectError: the model already carries an adapter, or memory does not hold one of this rank.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise GeffectError(
            "a model without an adapter for --lora", "one with an adapter", "leave --lora out to train that one"
        )
    _check_rank(model, rank)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _check_rank(model: Any, rank: int) -> None:
    """Raise where memory does not hold an adapter with its gradient and Adam's averages: before PEFT takes it."""
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear | torch.nn.Embedding)]
    numbers = rank * sum(sum(each.weight.shape) for each in linear)
    check_memory(f"an adapter of rank {rank}", 4 * 4 * numbers, "lower --lora")


@contextlib.contextmanager
def quiet_transformers() -> Any:
    """No weight-loading bars or advice while this lasts; the host's settings return after."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft 0.21 reads a property that transformers 5.23 renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", ".* keys did not match any targeted module", RuntimeWarning)  # told by us
            warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path` was renamed")  # a moved base
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
