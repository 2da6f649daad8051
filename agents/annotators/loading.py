"""Loading models of transformers for annotation."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from agents.policy import quiet_progress


def load_model(kind: Any, name_or_path: str, device: str | None) -> Any:
    """A model for inference.

    Args:
        kind: Class of transformers, such as ``SamModel``.
        name_or_path: Folder, or id on the hub.
        device: Where it runs; by default CUDA where there is one.

    Raises:
        OSError: There is no such folder or id.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with quiet_progress():
        model = kind.from_pretrained(local_or_id(name_or_path), dtype=torch.float32)
    return model.to(place).eval()


def load_processor(name_or_path: str) -> Any:
    """The processor of a model; without torchvision the one that needs Pillow only."""
    backend = None if find_spec("torchvision") else "pil"
    return AutoProcessor.from_pretrained(local_or_id(name_or_path), backend=backend)


def local_or_id(name_or_path: str) -> str:
    """A folder with ``~`` written out, or an id as it is."""
    path = Path(name_or_path).expanduser()
    return str(path) if path.exists() else name_or_path
