"""Parts of the user's own, named by a dotted path: ``package.module.name`` or ``package.module:name``."""

from __future__ import annotations

import importlib
import operator
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from amc.errors import AmcError, SettingError, brief, did_you_mean, out_of_memory


def is_dotted(name: str) -> bool:
    """Whether a name is a path to code and not one of a table."""
    return "." in name or ":" in name


def imported(path: str, kind: str) -> Any:
    """Return what a dotted path names; the current directory is searched last.

    Args:
        path: the dotted path, which the user has given: importing runs code.
        kind: what it should be, for messages, such as ``"runtime"``.

    Raises:
        SettingError: the path is malformed, or the module has no such name.
        AmcError: the module cannot be imported.
    """
    module, name = _parts(path, kind)
    found = imported_module(module, path, kind)
    try:
        return operator.attrgetter(name)(found)
    except AttributeError as error:
        near = did_you_mean(name, vars(found))
        raise SettingError(f"{kind} {path!r}: {module} has no {name!r}{near}") from error


def imported_module(module: str, path: str, kind: str) -> ModuleType:
    """Return a module of the user's own; the current directory is searched last.

    Args:
        module: its name; importing it runs code.
        path, kind: the dotted path that names it, and what that should be, for messages.

    Raises:
        AmcError: it cannot be imported.
    """
    if "" not in sys.path:
        sys.path.append("")  # the current directory, which is not on the path of a console script
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[
            :300
        ]  # one line of what may be many
        raise AmcError(
            f"{kind} {path!r}: importing {module!r} failed: {reason}; expected a module that is installed or "
            "lies in the current directory"
        ) from error


@contextmanager
def own_part(kind: str, name: str) -> Iterator[None]:
    """Turn an error of a part of the user's own into one line; parts of this package raise their own.

    Args:
        kind: what it is, for messages, such as ``"runtime"``.
        name: its dotted path, or the name of a part of this package.

    Raises:
        AmcError: the user's part fails.
    """
    try:
        yield
    except AmcError:
        raise
    except Exception as error:  # it raises anything
        if not is_dotted(name) or isinstance(error, OSError) or out_of_memory(error):
            raise
        raise AmcError(f"{kind} {name!r} fails: {brief(error)}") from error


def check_present(path: str, kind: str) -> None:
    """Refuse a dotted path to a module that is nowhere; nothing is imported, so that no code runs.

    Args:
        path: the dotted path.
        kind: as for ``imported``.

    Raises:
        SettingError: the path is malformed.
        AmcError: there is no such module.
    """
    module, _ = _parts(path, kind)
    if not is_present(module):
        raise AmcError(
            f"{kind} {path!r}: there is no module {module!r}; expected one that is installed or lies in the "
            "current directory"
        )


def is_present(module: str) -> bool:
    """Whether a module is installed or lies in the current directory; nothing is imported."""
    return module in sys.modules or _found(module) is not None


def _parts(path: str, kind: str) -> tuple[str, str]:
    """Return the module and the name in it."""
    module, _, name = path.rpartition(":" if ":" in path else ".")
    if not module or not name or module.startswith("."):
        raise SettingError(f"{kind} {path!r}: expected package.module.name or package.module:name")
    return module, name


def _found(module: str) -> ModuleSpec | None:
    """Return where a module lies, or None; a finder of its own would import the packages around it."""
    top, *inner = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # a module that is loaded and lies nowhere, such as __main__
        return None
    spec = spec or PathFinder.find_spec(top, [os.getcwd()])
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return spec
