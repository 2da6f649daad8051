"""What help pages need of agents comes without the libraries that agents are built on."""

import subprocess
import sys

import pytest

import agents
from agents.gspo import GSPO, GSPOConfig


def test_settings_import_neither_torch_nor_transformers():
    code = (
        "import sys, agents; from agents.settings import *; from agents import GSPOConfig\n"
        "assert not {'torch', 'transformers', 'trl', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_names_its_agents():
    assert agents.GSPO is GSPO
    assert agents.GSPOConfig is GSPOConfig
    assert all(hasattr(agents, name) for name in agents.__all__)
    with pytest.raises(AttributeError, match="SAC"):
        agents.SAC  # noqa: B018
