"""Where the metrics of a run are shown: TensorBoard, trackio, Weights & Biases, SwanLab."""

from __future__ import annotations

import os
import re
import secrets
import warnings
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
IDENTIFIER = "tracking_id.txt"
"""File in a run's folder with the id that trackers know the run by."""


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
            name=f"{folder.name}-{_identifier(folder)}",  # by which runs are resumed
            config=dict(config),
            resume=_resume(start),
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
            resume=_resume(start),
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
    """Open trackers for a run in a folder, which has the updates up to ``start`` already.

    With ``start`` below 0 the run is a new one, whatever ran in the folder before.
    """
    if start < 0:
        (folder / IDENTIFIER).unlink(missing_ok=True)
    return [TRACKERS[name](folder, config, start) for name in names if name != "none"]


def _project() -> str:
    return os.environ.get("SIMPLESEG_PROJECT", PROJECT)


def _resume(start: int) -> Literal["allow", "never"]:
    return "allow" if start >= 0 else "never"


def _identifier(folder: Path) -> str:
    """The id drawn when the run began: names and paths of folders are used again."""
    path = folder / IDENTIFIER
    if path.is_file():
        with path.open("rb") as file:
            found = file.read(100).decode("ascii", "replace").strip()
        if re.fullmatch("[0-9a-f]{8}", found):
            return found
        warnings.warn(f"{path} has no id of a run: trackers show another run", stacklevel=2)
    drawn = secrets.token_hex(4)  # the generators that are seeded stay as they are
    path.unlink(missing_ok=True)  # a link would be written through
    path.write_text(f"{drawn}\n", "utf-8")
    return drawn
