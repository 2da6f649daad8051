"""Policies on the Hugging Face hub."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
)

from seg_env.errors import ExplainedError


class HubError(ExplainedError, RuntimeError):
    """A folder could not be uploaded to the hub."""


def push_folder(folder: str | Path, repository: str, *, private: bool | None = None) -> str:
    """Upload a policy's folder to the hub as ``"owner/name"``, which is created if missing.

    The token is that of ``hf auth login`` or the variable HF_TOKEN.

    Args:
        folder: What `VLMPolicy.save` wrote.
        repository: Its name on the hub.
        private: Who may see a new one; by default the owner's setting.

    Returns:
        Its address.

    Raises:
        HubError: The hub cannot be reached, or refuses.
    """
    hub = HfApi()
    # Which HTTP package is used depends on the hub's version; each has its own connection error.
    session = import_module("huggingface_hub.utils").get_session()
    client = import_module(type(session).__module__.partition(".")[0])
    refusals = (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError)
    try:
        made = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Policy by SimpleSeg-RL"
        )
    except (*refusals, client.HTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubError(
            f"{folder} could not be put on the hub as {repository!r}: {reason}. Log in by "
            f"`hf auth login`, look at the name, or upload the folder later"
        ) from error
    return str(made)
