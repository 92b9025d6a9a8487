"""Objects of the user's code, named as `module:attribute` or `file.py:attribute`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# Modules made from files here: name -> file. Other processes need both to unpickle what they hold.
files: dict[str, str] = {}


def load(spec: str, what: str, kind: str) -> Any:
    """The object that `spec` names.

    Args:
        spec: "package.module:attribute", or "file.py:attribute" (relative paths start at the
            working directory).
        what: what it is for, in the messages: "task", "reward".
        kind: what it should be, in the messages: "class", "function".

    Raises:
        ValueError: there is no such module, file or attribute. An import that fails inside the
            user's module is raised as it is.
    """
    source, _, attribute = spec.rpartition(":")
    module = import_source(source, f"{what} {spec!r}")
    found = getattr(module, attribute, None) if attribute else None
    if found is None:
        raise ValueError(f"{what} {spec!r}: {source} has no {kind} {attribute!r}")
    return found


def import_source(source: str, who: str) -> ModuleType:
    """The module named `source`, or made from the file `source` if that ends in .py."""
    if source.endswith(".py"):
        path = Path(source).expanduser().resolve()
        if not path.is_file():
            raise ValueError(
                f"{who} cannot be imported: there is no file {source} (relative paths start at "
                f"{Path.cwd()})"
            )
        return from_file(_name(path), str(path))
    try:
        return importlib.import_module(source)
    except (ModuleNotFoundError, ValueError) as error:
        # A module that the user's own module fails to import is not ours to rename.
        missing = getattr(error, "name", None)
        if missing is not None and not f"{source}.".startswith(f"{missing}."):
            raise
        raise ValueError(
            f"{who} cannot be imported: there is no module {source!r}; is it installed or on "
            "PYTHONPATH? A file is named with its ending: file.py:Name"
        ) from error


def from_file(name: str, path: str) -> ModuleType:
    """The module `name` made from a file, once; modules beside the file can be imported from it."""
    if name in files:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[name], files[name] = module, path
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name], files[name]
        raise
    return module


def _name(path: Path) -> str:
    """The file's stem, or where another module has that name, one that only this file has."""
    for name, known in files.items():
        if known == str(path):
            return name
    if path.stem.isidentifier() and path.stem not in sys.modules:
        found = importlib.util.find_spec(path.stem)
        if found is None or found.origin == str(path):
            return path.stem
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
