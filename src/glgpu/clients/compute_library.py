"""google-cloud-compute without the hundred clients that nobody here calls: half of what its import takes."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

NAME = "google.cloud.compute_v1"


class _Sparing(ModuleType):
    """The package before its ``__init__``, which imports every client: it brings in what is asked for.

    What is in none of the places where the library documents it is left to ``__init__``.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or find_spec(f"{NAME}.{name}"):
            raise AttributeError(name)  # a part of the package is imported by whoever asks for it
        client = re.fullmatch(r"(\w+)Client", name)
        where = f"services.{re.sub('(?<!^)(?=[A-Z])', '_', client[1]).lower()}" if client else "types"
        try:
            found = getattr(import_module(f"{NAME}.{where}"), name)
        except (ImportError, AttributeError):
            return getattr(_whole(self), name)
        setattr(self, name, found)
        return found


def _whole(package: ModuleType) -> ModuleType:
    """The package as it is meant to be."""
    package.__class__ = ModuleType
    spec = package.__spec__
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(package)
    return package


def lighten() -> None:
    """Have ``from google.cloud import compute_v1`` import little, unless it has been imported."""
    if NAME in sys.modules:
        return
    spec = find_spec(NAME)
    if spec is not None:
        package = module_from_spec(spec)
        package.__class__ = _Sparing
        sys.modules[NAME] = package
