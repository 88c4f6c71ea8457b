"""torchvision's model classes beside any build of torch, also one that torchvision's compiled part does not load in.

The published wheels need CUDA libraries. Without them the import stops at two operators that were never declared;
the model classes use neither, so declaring them is enough.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from real_checkpoints import fetch

if TYPE_CHECKING:
    import torch

_NMS_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> ModuleType:
    """Return `torchvision.models`; from then on ``from torchvision.models import mobilenet_v2`` works as usual.

    An installed torchvision that imports is used as it is.

    Raises:
        DownloadError: torchvision is not installed and could not be downloaded.
    """
    if importlib.util.find_spec("torchvision") is None:
        sys.path.append(str(fetch("torchvision")))
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for half_imported in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[half_imported]
        _declare_operators()
        return importlib.import_module("torchvision.models")


@functools.cache  # The declarations last as long as the library object.
def _declare_operators() -> torch.library.Library:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _NMS_SIGNATURE)
    return library
