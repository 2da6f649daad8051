"""Loading models of transformers for annotation."""

from __future__ import annotations

from typing import Any

import torch

from agents.policy.loading import (
    CheckpointError,
    adapter_folder,
    check_checkpoint,
    explained,
    quiet_progress,
)


def load_model(kind: Any, name_or_path: str, device: str | None) -> Any:
    """A model for inference, of a transformers class such as ``SamModel``.

    Raises:
        CheckpointError: There is no such folder or id, or it cannot be opened.
    """
    check_checkpoint(name_or_path)
    if adapter_folder(name_or_path) is not None:
        raise CheckpointError(f"{name_or_path}: is an adapter, which only policies can have")
    with quiet_progress(), explained(name_or_path):
        model = kind.from_pretrained(name_or_path, dtype=torch.float32)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
