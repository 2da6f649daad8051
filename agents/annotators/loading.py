"""Loading models of transformers for annotation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agents.policy.loading import check_checkpoint, explained, open_processor, quiet_progress


def load_model(kind: Any, name_or_path: str, device: str | None) -> Any:
    """A model for inference, of a class of transformers such as ``SamModel``.

    Raises:
        CheckpointError: There is no such folder or id, or it cannot be opened.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = local_or_id(name_or_path)
    check_checkpoint(found)
    with quiet_progress(), explained(found):
        model = kind.from_pretrained(found, dtype=torch.float32)
    return model.to(place).eval()


def load_processor(name_or_path: str) -> Any:
    """The processor of a model, see `agents.policy.loading.open_processor`."""
    return open_processor(local_or_id(name_or_path))


def local_or_id(name_or_path: str) -> str:
    """A folder with ``~`` written out, or an id as it is."""
    path = Path(name_or_path).expanduser()
    return str(path) if path.exists() else name_or_path
