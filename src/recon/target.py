"""What is judged: a function in someone's file or module, or tensors in a file."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from recon import saving
from recon.census import OF_A_FILE
from recon.deadline import USUAL, NeverEndsError, TimeUpError, within
from recon.errors import UsageError

# What makes an import end from outside.
_NOT_ITS_OWN = (KeyboardInterrupt, TimeUpError)
_FORMS = "FILE.py:FUNCTION, package.module:FUNCTION or a file of captures"


# -- functions -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Target:
    """A function to judge, and where it stands; ``line`` is 0 if that is not known."""

    function: Callable[..., Any]
    file: str
    line: int


@contextmanager
def load_function(target: str, timeout: float | None = None) -> Iterator[Target]:
    """Import what ``FILE.py:FUNCTION`` or ``package.module:FUNCTION`` names.

    Its directory stays on ``sys.path`` until the block is left, for imports that the
    function makes when it runs. Raises UsageError where there is no such file, module
    or function, or where importing it raises or takes longer than ``timeout`` seconds.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UsageError(f"{target}: expected {_FORMS}{_functions_in(target)}")
    path = Path(place)
    is_file = path.suffix == ".py" or path.is_file()
    with _importable(path.resolve().parent if is_file else Path.cwd()):
        file, package = partial(_import_file, path), partial(_import_module, place)
        try:
            module = within(timeout or USUAL, file if is_file else package)
        except NeverEndsError as error:
            raise UsageError(f"{place} cannot be imported: it {error}") from None
        try:
            yield _target(_function(module, name, place), module)
        finally:
            if is_file:
                sys.modules.pop(module.__name__, None)


def _functions_in(target: str) -> str:
    """Say how the functions of a file would be named, without running it."""
    path = Path(target)
    if path.suffix != ".py" or not path.is_file():
        return ""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return f"; there is {', '.join(f'{target}:{name}' for name in names)}"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        # The code may have edited the path, too.
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name of its own, so that it hides no other module."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    name = f"{OF_A_FILE}{path.stem}"
    spec = spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: is no Python file; expected {_FORMS}")
    module = module_from_spec(spec)
    # Dataclasses and pickle look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, _NOT_ITS_OWN):
            raise
        raise UsageError(_why(str(path), error)) from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"there is no module {error.name!r} here; expected {_FORMS}"
            ) from error
        raise UsageError(_why(name, error)) from error
    except _NOT_ITS_OWN:
        raise
    except BaseException as error:
        raise UsageError(_why(name, error)) from error


def _why(place: str, error: BaseException) -> str:
    """Say in one line why an import failed, and at which line of whose file."""
    words = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
    hint = ""
    if isinstance(error, ImportError) and "relative import" in str(error):
        hint = "; name it as package.module:FUNCTION"
    return f"{place} cannot be imported: {what}{_raised_at(error)}{hint}"


def _raised_at(error: BaseException) -> str:
    """Name the line of the innermost file that was being imported."""
    frames = traceback.extract_tb(error.__traceback__)
    files = [frame.filename for frame in frames if frame.name == "<module>"]
    if isinstance(error, SyntaxError) or not files:
        # Its own words end in file and line.
        return ""
    lines = [frame.lineno for frame in frames if frame.filename == files[-1]]
    return f" ({Path(files[-1]).name}, line {lines[-1]})"


def _function(module: ModuleType, name: str, place: str) -> Callable[..., Any]:
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UsageError(f"{place} has no {name!r}{_near(module, name)}") from None
    if not callable(found):
        raise UsageError(f"{place}:{name} is a {type(found).__name__}, no function")
    function: Callable[..., Any] = found
    return function


def _near(module: ModuleType, name: str) -> str:
    own = [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    near = get_close_matches(name, own, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {', '.join(near)}?"
    return f"; its functions are {', '.join(own)}" if own else "; it has no function"


def _target(function: Callable[..., Any], module: ModuleType) -> Target:
    code = getattr(_unwrapped(function), "__code__", None)
    file = getattr(code, "co_filename", "") or getattr(module, "__file__", "") or ""
    return Target(function, _from_here(file), getattr(code, "co_firstlineno", 0))


def _unwrapped(function: Any) -> Any:
    """Return the function within decorators, partials and callable objects."""
    inner = inspect.unwrap(function)
    while isinstance(inner, partial):
        inner = inspect.unwrap(inner.func)
    if inspect.isroutine(inner) or inspect.isclass(inner):
        return inner
    return type(inner).__call__


def _from_here(file: str) -> str:
    """Name a file from the working directory if it is in there, else in full."""
    path = Path(file).resolve()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


# -- tensors -------------------------------------------------------------------


def is_captures(target: str) -> bool:
    """Whether a target names a file of tensors, by its suffix."""
    return Path(target).suffix.lower() in _READERS


def load_tensors(path: Path) -> dict[str, Any]:
    """Read captures from safetensors, npz or pt, in which they may be nested.

    Nothing is unpickled but tensors and containers. Raises UsageError for a file that
    is not there, cannot be read, or holds no tensor.
    """
    if not is_captures(str(path)):
        raise UsageError(f"{path}: expected a file of {', '.join(_READERS)}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        found = _READERS[path.suffix.lower()](path)
    except UsageError:
        raise
    except UnpicklingError as error:
        raise UsageError(
            f"{path}: refused, or damaged: it holds more than tensors, lists and "
            "mappings; save a plain dict of tensors"
        ) from error
    except Exception as error:  # readers raise whatever they like
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path}: cannot be read as captures: {words}") from error
    if not any(_holds_tensor(value) for value in found.values()):
        raise UsageError(f"{path}: holds no tensor")
    return found


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") == saving.FORMAT:
        return {str(place): held for place, held in saving.read(path).tensors.items()}
    found: dict[str, Any] = load_file(path)
    return found


def _npz(path: Path) -> dict[str, Any]:
    # numpy leaves a file that it opened itself open where it is damaged.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: _tensor(path, name, arrays[name]) for name in arrays.files}


def _tensor(path: Path, name: str, array: np.ndarray[Any, Any]) -> Tensor:
    native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(native).reshape(array.shape)
    except TypeError as error:
        raise UsageError(f"{path}: {name!r} holds {array.dtype}, no numbers") from error


def _torch(path: Path) -> dict[str, Any]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, Mapping):
        return {str(name): value for name, value in found.items()}
    if isinstance(found, Tensor | list | tuple):
        return {path.stem: found}
    raise UsageError(
        f"{path}: expected a mapping of tensors, found {type(found).__name__}"
    )


_READERS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
}
