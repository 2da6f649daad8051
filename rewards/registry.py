"""Finding a reward by name: registered classes, installed plug-ins, import paths."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from operator import attrgetter
from typing import TypeVar

from rewards.base import Reward

ENTRY_POINT_GROUP = "simpleseg.rewards"
"""Entry-point group through which installed packages offer rewards."""

_REGISTERED: dict[str, type[Reward]] = {}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")

RewardClass = TypeVar("RewardClass", bound=type[Reward])


def register_reward(name: str) -> Callable[[RewardClass], RewardClass]:
    """Class decorator that makes a reward known under ``name``.

    The class's ``name`` becomes the registered one. Defining the same class again (a notebook cell
    run twice, a module reloaded) replaces the earlier definition.

    Raises:
        TypeError: What is decorated is not a subclass of `Reward`.
        ValueError: The name is malformed, differs from the ``name`` that the class itself gives, or
            belongs to another class already.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"reward name {name!r} is malformed: use letters, digits, '_', '-' and '.', starting "
            f'with a letter, as in @register_reward("compactness")'
        )

    def register(reward_class: RewardClass) -> RewardClass:
        if not (inspect.isclass(reward_class) and issubclass(reward_class, Reward)):
            raise TypeError(
                f"@register_reward({name!r}) decorates {reward_class!r}, which is not a subclass "
                f"of rewards.Reward"
            )
        own_name = reward_class.__dict__.get("name", name)
        if own_name not in (name, reward_class.__name__):
            raise ValueError(
                f"{_path(reward_class)} calls itself {own_name!r} and is registered as {name!r}; "
                f"give both the same name"
            )
        known = _REGISTERED.get(name)
        if known is not None and _path(known) != _path(reward_class):
            raise ValueError(
                f"reward name {name!r} belongs to {_path(known)}; register {_path(reward_class)} "
                f"under another name"
            )
        reward_class.name = name
        _REGISTERED[name] = reward_class
        return reward_class

    return register


def known_rewards() -> tuple[str, ...]:
    """Names that `make_reward` accepts now, sorted: registered ones and installed plug-ins."""
    plugged_in = {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return tuple(sorted(plugged_in | _REGISTERED.keys()))


def make_reward(key: str) -> Reward:
    """Build a reward.

    Args:
        key: A registered name (``"mask_iou"``), the name of an entry point in the group
            ``simpleseg.rewards``, or an import path (``"my_pkg.rewards:Compactness"``) to a class
            that can be built without arguments or to a ready instance.

    Raises:
        ValueError: Nothing is known by this name, or the import path leads nowhere.
        TypeError: What was found is not a reward, or needs arguments to be built.
    """
    if ":" in key:
        return _instance(key, _import(key))
    if key not in _REGISTERED:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=key):
            found = entry.load()
            if isinstance(found, Reward) and found.name == key:
                return found
            register_reward(key)(found)
    if key not in _REGISTERED:
        known = known_rewards()
        close = difflib.get_close_matches(key, known, n=1)
        suggestion = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"unknown reward {key!r}: {suggestion}known are {', '.join(known)}; any other class is "
            f"named by its import path, package.module:Class"
        )
    return _instance(key, _REGISTERED[key])


def _import(path: str) -> object:
    """The object that ``module:attribute`` names."""
    module_name, _, attribute = path.partition(":")
    wanted = "an import path is package.module:Class, for example my_pkg.rewards:Compactness"
    if not module_name or not attribute or module_name.startswith("."):
        raise ValueError(f"reward {path!r} is malformed: {wanted}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's module fails to import is the user's bug and keeps its traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"reward {path!r}: there is no module {error.name!r}; install its package or put its "
            f"folder on PYTHONPATH ({wanted})"
        ) from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError as error:
        offered = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, Reward) and value is not Reward
        ]
        raise ValueError(
            f"reward {path!r}: {module_name!r} has no {attribute!r}; rewards it defines: "
            f"{', '.join(sorted(offered)) or 'none'}"
        ) from error


def _instance(key: str, found: object) -> Reward:
    """Build ``found`` if it is a concrete reward class; pass a ready reward through."""
    if isinstance(found, Reward):
        return found
    if not (inspect.isclass(found) and issubclass(found, Reward)):
        raise TypeError(
            f"reward {key!r} is {found!r}, which is not a reward; a reward is a subclass of "
            f"rewards.Reward with __call__(predictions, targets)"
        )
    if inspect.isabstract(found):
        raise TypeError(
            f"reward {key!r} is abstract; define {', '.join(sorted(found.__abstractmethods__))}"
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise TypeError(
            f"reward {key!r} cannot be built without arguments: {error}; pass a ready object and "
            f"its weight, [({found.__name__}(...), 0.2)], or name a ready instance by its import "
            f"path"
        ) from error
    return found()


def _path(reward_class: type) -> str:
    return f"{reward_class.__module__}:{reward_class.__qualname__}"
