"""The two files of pinned versions agree on everything but what they are two for."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIFFERENT = {"torch", "torchvision"}


def pins(name):
    """Versions by package, as pip writes names."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in found)
    return {re.sub("[-_.]+", "-", package).lower(): version for package, version in found}


def test_both_files_of_pins_agree():
    plain, vision = pins("constraints.txt"), pins("constraints-vision.txt")
    assert plain.keys() <= vision.keys()
    assert {name for name, version in plain.items() if vision[name] != version} == DIFFERENT


def test_what_the_processors_need_is_pinned():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = settings["project"]["optional-dependencies"]
    named = {
        re.split("[>=<]", package)[0]
        for extra in ("test", "vision", "lora")
        for package in [*extras[extra], "dashscope"]
    }
    assert named <= pins("constraints-vision.txt").keys()


def test_the_commands_in_the_pins_name_their_own_versions():
    text = (ROOT / "constraints-vision.txt").read_text(encoding="utf-8")
    vision = pins("constraints-vision.txt")
    for package in DIFFERENT:
        assert f"{package}=={vision[package]}" in text.split("absl")[0]
        assert f"{package}=={vision[package]}" in (ROOT / "agents/policy/loading.py").read_text()
