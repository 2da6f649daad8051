"""Where the metrics of a run are shown: TensorBoard, trackio, Weights & Biases, SwanLab."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from seg_env.errors import WrongOptionError

TrackerName = Literal["tensorboard", "trackio", "wandb", "swanlab", "none"]
PROJECT = "simpleseg-rl"
"""Project that runs are filed under; the variable SIMPLESEG_PROJECT names another one."""


class Tracker(ABC):
    """Takes the metrics and pictures of a run as they come."""

    @abstractmethod
    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of one update."""

    @abstractmethod
    def show(self, update: int, name: str, picture: Path) -> None:
        """Add a picture, a PNG file."""

    @abstractmethod
    def close(self) -> None:
        """Finish writing."""


class TensorBoard(Tracker):
    """Event files in the run's folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        rows = [f"| {name} | {value} |" for name, value in config.items()]
        self._board.add_text("config", "\n".join(["| setting | value |", "|---|---|", *rows]))

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.write`."""
        for name, value in metrics.items():
            self._board.add_scalar(name, value, update)

    def show(self, update: int, name: str, picture: Path) -> None:
        """See `Tracker.show`."""
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._board.add_image(name, pixels, update, dataformats="HWC")

    def close(self) -> None:
        """See `Tracker.close`."""
        self._board.close()


class _Logging(Tracker):
    """Trackers whose packages have ``log``, ``Image`` and ``finish``."""

    def __init__(self, package: str) -> None:
        self._package = import_module(package)

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.write`."""
        self._package.log(dict(metrics), step=update)

    def show(self, update: int, name: str, picture: Path) -> None:
        """See `Tracker.show`."""
        self._package.log({name: self._package.Image(str(picture))}, step=update)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._package.finish()


class Trackio(_Logging):
    """A local database, shown by ``trackio show``."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        super().__init__("trackio")
        self._package.init(
            project=_project(),
            name=folder.name,
            config=dict(config),
            resume="allow",
            embed=False,
        )


class WeightsAndBiases(_Logging):
    """Files in the run's folder for ``wandb sync``, or its server where WANDB_MODE is online."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        super().__init__("wandb")
        self._package.init(
            project=_project(),
            name=folder.name,
            id=_identifier(folder),
            resume="allow",
            dir=folder,
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )


class SwanLab(_Logging):
    """A log in the run's folder, shown by ``swanlab watch``."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        super().__init__("swanlab")
        self._package.init(
            project=_project(),
            experiment_name=folder.name,
            config=dict(config),
            logdir=str(folder / "swanlab"),
            mode=os.environ.get("SWANLAB_MODE", "local"),
        )


TRACKERS: dict[TrackerName, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
    "swanlab": SwanLab,
}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Make sure that trackers are installed before anything is trained.

    Raises:
        WrongOptionError: One is not, or ``none`` is named beside another.
    """
    if "none" in names and len(names) > 1:
        raise WrongOptionError(f"--track {' '.join(names)}: none goes alone")
    for name in names:
        if name not in ("none", "tensorboard") and find_spec(name) is None:
            raise WrongOptionError(
                f"--track {name} needs the package {name}, which is not installed: pip install "
                f"{name}, or choose others of {', '.join(get_args(TrackerName))}"
            )


def open_trackers(
    names: Sequence[TrackerName], folder: Path, config: Mapping[str, Any], start: int
) -> list[Tracker]:
    """Open trackers for a run in a folder, which has the updates up to ``start`` already."""
    return [TRACKERS[name](folder, config, start) for name in names if name != "none"]


def _project() -> str:
    return os.environ.get("SIMPLESEG_PROJECT", PROJECT)


def _identifier(folder: Path) -> str:
    """An id that a resumed run gets again: from the folder's path, in characters ids may have."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return f"{folder.name[:40]}-{digest[:8]}"
