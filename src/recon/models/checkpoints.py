"""A GPT-2 out of a directory or the hub, or in one line what kept it from loading."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from recon.errors import UnsupportedError, UsageError

Tokenizer: TypeAlias = Any
Kind: TypeAlias = type[PreTrainedModel]

_KINDS: Mapping[str, Kind] = {
    "GPT2LMHeadModel": GPT2LMHeadModel,
    "GPT2Model": GPT2Model,
}
# What a config calls the dtype of its weights, and from_pretrained with it.
_DTYPE = "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"
# What stands behind an error of transformers, and what it means, around its own words;
# the first one counts.
_Meanings: TypeAlias = tuple[tuple[type[BaseException], str], ...]
_HUB: _Meanings = (
    (hub.LocalEntryNotFoundError, "the hub cannot be reached, and no copy is here"),
    (hub.OfflineModeIsEnabled, "the hub is switched off, and no copy is here"),
    (hub.GatedRepoError, "the hub has it for those only who accepted its terms"),
    (hub.RepositoryNotFoundError, "the hub has no such model, or not for everyone"),
    (hub.EntryNotFoundError, "the hub has no such file of it"),
    (hub.HFValidationError, "no directory, and no name that the hub could have"),
)
_CONFIG: _Meanings = (
    (UnicodeDecodeError, "its config.json is no text: {}"),
    (json.JSONDecodeError, "its config.json is no JSON: {}"),
)
_WEIGHTS: _Meanings = (
    (SafetensorError, "its weights are damaged, or cut short: {}"),
    (UnpicklingError, "its weights are no plain tensors, and nothing is unpickled"),
    (json.JSONDecodeError, "the index of its weights is no JSON: {}"),
)
# What a local directory may hold weights in.
_FILES = [
    f"{stem}{index}"
    for stem in ("model.safetensors", "pytorch_model.bin")
    for index in ("", ".index.json")
]


def config_of(source: str, name: str, others: list[str]) -> tuple[GPT2Config, Kind]:
    """Read a config, and which of the two classes it is of.

    ``others`` are names that ``name`` may be misspelt from. Raises UsageError for a
    config that cannot be had or makes none, UnsupportedError for no GPT-2.
    """
    _require_reachable(source, name)
    values = _values(source, name, others)
    kind = _class(values, name)
    _require_numbers(values, name)
    with quiet():
        try:
            config = GPT2Config.from_dict(values)
        except Exception as error:  # of any kind, when a value in it is none
            raise _makes_none(name, error) from error
    return config, kind


def require_buildable(config: GPT2Config, kind: Kind, name: str) -> None:
    """Raise UsageError where the values of a config do not fit together."""
    try:
        with quiet(), torch.device("meta"):
            kind(config)
    except Exception as error:  # of any kind
        raise _makes_none(name, error) from error


def weighted(
    source: str, name: str, config: GPT2Config, kind: Kind, dtype: torch.dtype | None
) -> PreTrainedModel:
    """Load a model with every weight of its own; raises UsageError for one that lacks.

    ``dtype`` defaults to that of the checkpoint.
    """
    stored = getattr(config, _DTYPE, None) or torch.float32
    # Annotations know nothing of the second value that is returned.
    options: dict[str, Any] = {"config": config, "output_loading_info": True}
    options |= {_DTYPE: dtype or stored, "ignore_mismatched_sizes": True}
    _require_weights(source, name)
    with quiet():
        try:
            loaded: Any = kind.from_pretrained(source, **options)
        except Exception as error:  # of any kind: readers raise whatever they like
            what = _meaning(error, _HUB + _WEIGHTS)
            what = what or f"its weights cannot be read: {_words(error)}"
            raise UsageError(f"{name}: {what}") from error
    model: PreTrainedModel = loaded[0]
    _require_all(name, loaded[1])
    return model


def tokenizer_of(source: str) -> Tokenizer | None:
    """Return the tokenizer beside a model, if there is one with a vocabulary."""
    with quiet():
        try:
            found = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError, TypeError, ImportError):
            return None
    # Where there is no vocabulary, transformers makes up one of special tokens only.
    words = len(found) - len(found.all_special_tokens)
    return found if words > 0 else None


# -- the config ----------------------------------------------------------------


def _require_reachable(source: str, name: str) -> None:
    path = Path(source)
    try:
        there = path.exists()
    except OSError as error:
        raise UsageError(f"model {name[:80]!r}: {error.strerror}") from error
    if not name.strip():
        raise UsageError(
            f"model {name!r} is no name; expected a directory made by "
            f"save_pretrained, a hub id, bundled or random:SIZE"
        )
    looks_local = there or source.startswith((".", "/", "~")) or source.count("/") > 1
    if not looks_local:
        return
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UsageError(
            f"{name} {what}; expected a directory made by save_pretrained, a hub id, "
            f"bundled or random:SIZE"
        )
    if not (path / "config.json").is_file():
        raise UsageError(
            f"{name} has no config.json; expected a save_pretrained directory"
        )


def _values(source: str, name: str, others: list[str]) -> dict[str, Any]:
    """Return what stands in config.json, of whatever architecture."""
    values: Any
    with quiet():
        try:
            values, _ = PretrainedConfig.get_config_dict(source)
        except Exception as error:  # of any kind
            if Path(source).is_dir():
                what = _meaning(error, _CONFIG)
                what = what or f"its config.json cannot be read: {_words(error)}"
                raise UsageError(f"{name}: {what}") from error
            near = [one for one in get_close_matches(name, others, 1) if one != name]
            hint = f" (did you mean {near[0]}?)" if near else ""
            what = _meaning(error, _HUB + _CONFIG) or _words(error)
            raise UsageError(f"cannot load model {name!r}{hint}: {what}") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise UsageError(f"{name}: its config.json is a {kind}, expected an object")
    return values


def _class(values: Mapping[str, Any], name: str) -> Kind:
    architecture = values.get("model_type")
    if architecture is None:
        raise UsageError(f"{name}: its config.json names no model_type; expected gpt2")
    listed = values.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else None
    if architecture != "gpt2":
        what = named or "a model"
        raise UnsupportedError(
            f"recon checks GPT-2, found {what} ({architecture}) in {name}"
        )
    named = named or "GPT2LMHeadModel"
    if named not in _KINDS:
        raise UnsupportedError(
            f"recon checks GPT2LMHeadModel and GPT2Model, found {named} in {name}"
        )
    return _KINDS[named]


def _require_numbers(values: Mapping[str, Any], name: str) -> None:
    """Refuse words where GPT-2 has numbers; version 4 would stumble in the pass."""
    usual = GPT2Config().to_dict() | {"n_inner": 1}
    for field, number in usual.items():
        given = values.get(field)
        if isinstance(number, int | float) and isinstance(given, str | list | dict):
            raise UsageError(
                f"{name}: no model can be made: {field} is {given!r} in its "
                "config.json, expected a number"
            )


def _makes_none(name: str, error: BaseException) -> UsageError:
    return UsageError(f"{name}: no model can be made of its config: {_words(error)}")


# -- the weights ---------------------------------------------------------------


def _require_weights(source: str, name: str) -> None:
    folder = Path(source)
    if folder.is_dir() and not any((folder / file).is_file() for file in _FILES):
        raise UsageError(f"{name} has no weights; expected {_FILES[0]} in it")


def _require_all(name: str, info: Mapping[str, Any]) -> None:
    """Refuse weights of other shapes, and missing ones: they were made up."""
    for one in sorted(info["mismatched_keys"], key=str)[:1]:
        # Before version 5 the names alone.
        weight, *shapes = (one,) if isinstance(one, str) else one
        told = ", not ".join(str(tuple(shape)) for shape in shapes)
        raise UsageError(
            f"{name}: {weight} has another shape than its config.json asks for"
            + (f": {told}" if told else "")
        )
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"{name}: {len(missing)} weights are missing, {missing[0]} for one"
        )


# -- errors of transformers ----------------------------------------------------


def _meaning(error: BaseException, meanings: _Meanings) -> str:
    """Say what an error comes from, if it is one of those known; else nothing."""
    causes = list(_causes(error))
    for kind, words in meanings:
        for one in causes:
            if isinstance(one, kind):
                return words.format(_words(one))
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException) -> str:
    """Return an error's text in one line, with its kind where that says more."""
    kind = f"{type(error).__name__} " if isinstance(error, KeyError) else ""
    return kind + (" ".join(str(error).split())[:300] or type(error).__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own messages and bars off the terminal while it loads."""
    level = transformers_logging.get_verbosity()
    bars = bool(transformers_logging.is_progress_bar_enabled())
    disable_bars: Callable[[], None] = transformers_logging.disable_progress_bar
    enable_bars: Callable[[], None] = transformers_logging.enable_progress_bar
    transformers_logging.set_verbosity(logging.ERROR)
    disable_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            enable_bars()
