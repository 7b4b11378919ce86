"""From a trained network to a bioimage.io model zip.

The package is callable, because it has the name of the public function ``gap_bioimage.export``: once it is
imported, Python finds it in the function's place.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call ``gap_bioimage.export.archive.export``."""
        from gap_bioimage.export.archive import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
