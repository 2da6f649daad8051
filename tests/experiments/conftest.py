"""The policy that short runs start from."""

import pytest
from agents_fixtures import cloned_policy


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory):
    """A small policy that has learned a little, in a folder of its own."""
    folder = tmp_path_factory.mktemp("policy")
    cloned_policy().save(folder)
    return folder
