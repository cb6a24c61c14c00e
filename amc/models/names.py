"""The names of networks, known without an import of torch.

torchvision and timm list their names once they are imported, which takes 1 and 10 s. Their sources mark each
network with ``@register_model``, so that the names can be read from there in hundredths of a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from amc.dotted import is_present
from amc.errors import SettingError, did_you_mean

ZOO = (
    *("mobilenet_v1", "mobilenet_v2", "plain20", "resnet110", "resnet20", "resnet32", "resnet44", "resnet56"),
    "vgg16_bn",
)
"""Networks of this package, sorted."""
TORCHVISION = "torchvision:"
"""Begin of a name that is torchvision's, also where the zoo has the same."""
TIMM_HINT = "pip install amc-search[timm]"
_MARKED = re.compile(
    r"^@register_model(?:\((?:name=[\"'](\w+)[\"'])?\))?\n(?:[@ \t)].*\n)*?def (\w+)\(", re.MULTILINE
)
"""A marked function; the mark may give another name than the function's."""
_RENAMED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\}\)", re.DOTALL)
_OLD_NAME = re.compile(r"^\s*[\"'](\w+)[\"']:", re.MULTILINE)


@cache
def torchvision_names() -> tuple[str, ...]:
    """Return torchvision's classifiers, detectors and segmentation networks, sorted."""
    folders = ("", "detection", "segmentation")
    texts = (text for folder in folders for text in _sources("torchvision", "models", folder))
    return _marked(texts)


def timm_names() -> tuple[str, ...]:
    """Return timm's architectures, sorted; () if it is not installed."""
    return _timm_names() if _place("timm") is not None else ()


def known_names() -> list[str]:
    """Return every name that ``amc.models.build`` knows: the zoo, torchvision and, where installed, timm."""
    return list(dict.fromkeys((*ZOO, *torchvision_names(), *timm_names())))


def is_code(name: str) -> bool:
    """Whether a name is the path of the user's own factory; a timm name may have a tag after a dot."""
    if name.startswith(("timm:", TORCHVISION)) or not ("." in name or ":" in name):
        return False
    return ":" in name or name.partition(".")[0] not in timm_names()


def may_be_one(name: str, other: str) -> bool:
    """Whether two names may be of one network.

    The libraries' prefixes and the tags of timm's weights do not count. A path of code may be any network.
    """
    if is_code(name) or is_code(other):
        return True
    plain, wanted = (own.rpartition(":")[2].partition(".")[0] for own in (name, other))
    return plain == wanted


def check_listed(name: str) -> None:
    """Refuse a name that no library lists; tags of timm's weights and paths of code are not looked up.

    Raises:
        SettingError: the name is unknown; the message suggests the nearest.
    """
    module, _, _ = name.rpartition(".")
    if is_code(name) and ":" not in name and module and not timm_names() and not is_present(module):
        raise SettingError(
            f"model {name!r}: there is no module {module!r}; expected one that is installed or lies in the "
            f"current directory, or a model of timm, which needs {TIMM_HINT}"
        )
    if is_code(name) or not torchvision_names():  # a package without its sources
        return
    if name.startswith(TORCHVISION):
        if name.removeprefix(TORCHVISION) not in torchvision_names():
            raise unknown_of_torchvision(name)
    elif name.startswith("timm:"):
        architecture = name.removeprefix("timm:").partition(".")[0]
        if timm_names() and architecture not in _timm_with_old_names():
            raise unknown(name, [f"timm:{each}" for each in timm_names()])
    elif name.partition(".")[0] not in {*ZOO, *torchvision_names()} and not is_listed_by_timm(name):
        raise unknown(name, known_names())


def is_listed_by_timm(name: str) -> bool:
    """Whether timm's sources have an architecture of this name, which may have a tag of its weights."""
    return name.partition(".")[0] in _timm_with_old_names()


def unknown(name: str, known: Iterable[str]) -> SettingError:
    """Return the error about an unknown name, with the nearest of the ``known``."""
    hint = did_you_mean(name, dict.fromkeys(known), most=3) or f"; the zoo has {', '.join(ZOO)}"
    timm = "" if timm_names() else f" (timm models need {TIMM_HINT})"
    return SettingError(f"model {name!r}: unknown name{hint}{timm}")


def unknown_of_torchvision(name: str) -> SettingError:
    """Return the error about a name that begins with ``TORCHVISION``."""
    return unknown(name, [TORCHVISION + known for known in torchvision_names()])


@cache
def _timm_names() -> tuple[str, ...]:
    return _marked(_sources("timm", "models"))


@cache
def _timm_with_old_names() -> frozenset[str]:
    """Return timm's architectures, with the names that it still accepts from earlier releases."""
    tables = (table for text in _sources("timm", "models") for table in _RENAMED.findall(text))
    return frozenset((*_timm_names(), *(name for table in tables for name in _OLD_NAME.findall(table))))


def _marked(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({own or function for text in texts for own, function in _MARKED.findall(text)}))


def _sources(package: str, *folders: str) -> list[str]:
    """Return the source files of one folder of a package, which is not imported."""
    place = _place(package)
    if place is None:
        return []
    folder = place.joinpath(*folders)
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))]


def _place(package: str) -> Path | None:
    """Return the folder of an installed package, or None."""
    try:
        spec = find_spec(package)
    except ValueError:  # its import is forbidden
        return None
    found = spec.submodule_search_locations if spec is not None else None
    return Path(found[0]) if found else None
