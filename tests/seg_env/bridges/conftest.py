"""Tests of bridges are collected where the other framework is installed, see ``.ci/run``."""

from importlib.util import find_spec

collect_ignore = [
    f"test_{name}.py" for name in ("openenv", "verifiers", "torchrl") if find_spec(name) is None
]
