"""Parts of the user's own, named by a dotted path: ``package.module.name`` or ``package.module:name``."""

from __future__ import annotations

import importlib
import operator
import sys
from typing import Any

from amc.errors import AmcError, SettingError, did_you_mean


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
    separator = ":" if ":" in path else "."
    module, _, name = path.rpartition(separator)
    if not module or not name or module.startswith("."):
        raise SettingError(f"{kind} {path!r}: expected package.module.name or package.module:name")
    if "" not in sys.path:
        sys.path.append("")  # the current directory, which is not on the path of a console script
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise AmcError(
            f"{kind} {path!r}: importing {module!r} failed: {type(error).__name__}: {error}; expected a "
            "module that is installed or lies in the current directory"
        ) from error
    try:
        return operator.attrgetter(name)(found)
    except AttributeError as error:
        near = did_you_mean(name, vars(found))
        raise SettingError(f"{kind} {path!r}: {module} has no {name!r}{near}") from error
