"""Where the files of the RefCOCO family lie below a ``data_root``."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "refclef": "unc"}
"""The data sets, and the partition papers report on."""

COCO_FOLDERS = (
    "images/mscoco/images/train2014",
    "images/coco_2014/train2014",
    "images/train2014",
    "train2014",
)
CLEF_FOLDERS = ("images/saiapr_tc-12", "saiapr_tc-12")


def default_split_by(name: str) -> str:
    """The partition that papers report on; gRefCOCO has one."""
    return DEFAULT_SPLIT_BY.get(name, "unc")


def layout(name: str) -> str:
    """The files of a data set, as a small tree."""
    folder, example = (
        (CLEF_FOLDERS[0], "38/images/38685.jpg")
        if name == "refclef"
        else (COCO_FOLDERS[0], "COCO_train2014_000000581857.jpg")
    )
    return (
        "<data_root>/\n"
        f"  {name}/\n"
        "    instances.json\n"
        f"    {_prefix(name)}({default_split_by(name)}).p   (or .json)\n"
        f"  {folder}/\n"
        f"    {example} ..."
    )


def find_references(root: Path, name: str, split_by: str | None) -> tuple[Path, str]:
    """The file of references and who made its partition; JSON is preferred to a pickle.

    Raises:
        FileNotFoundError: It is missing; names the partitions that are there.
    """
    wanted = split_by or default_split_by(name)
    prefix = _prefix(name)
    present = {
        path.stem.removeprefix(f"{prefix}(").removesuffix(")")
        for pattern in (f"{prefix}(*).json", f"{prefix}(*).p")
        for path in (root / name).glob(pattern)
    }
    if split_by is None and wanted not in present and len(present) == 1:
        wanted = present.pop()
    for suffix in (".json", ".p"):
        path = root / name / f"{prefix}({wanted}){suffix}"
        if path.is_file():
            return path, wanted
    there = f"split_by can be {', '.join(sorted(present))}. " if present else ""
    raise _missing(path, root, name, there)


def find_images(
    root: Path, name: str, image_root: str | os.PathLike[str] | None, first: str
) -> Path:
    """The folder in which the split's first picture lies.

    Raises:
        FileNotFoundError: It is in none of the folders where it could be; names them.
    """
    if image_root is not None:
        folders = [Path(image_root).expanduser()]
    else:
        places = CLEF_FOLDERS if name == "refclef" else COCO_FOLDERS
        folders = [root / place for place in places]
    for folder in folders:
        if (folder / first).is_file():
            return folder
    looked = "Looked in " + ", ".join(str(folder) for folder in folders) + ". "
    raise _missing(folders[0] / first, root, name, looked)


def find_instances(root: Path, name: str) -> Path:
    """The file of images and annotations.

    Raises:
        FileNotFoundError: It is missing.
    """
    path = root / name / "instances.json"
    if not path.is_file():
        raise _missing(path, root, name)
    return path


def _prefix(name: str) -> str:
    return "grefs" if name == "grefcoco" else "refs"


def _missing(path: Path, root: Path, name: str, hint: str = "") -> FileNotFoundError:
    return FileNotFoundError(
        f"{path} is missing. {hint}data_root is {str(root)!r}; expected there:\n{layout(name)}"
    )
