"""Data sets: procedural scenes and readers of annotated images.

Readers are imported when they are first named, so that importing this package stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seg_env.data.base import Dataset, KnowsOthers
from seg_env.data.scenes import Scenes

if TYPE_CHECKING:
    from seg_env.data.export import export_jsonlines
    from seg_env.data.faults import Fault, RecordError
    from seg_env.data.leakage import held_out_images, images_of
    from seg_env.data.readers.coco import Coco
    from seg_env.data.readers.grefcoco import GRefCoco
    from seg_env.data.readers.hub import Parquet
    from seg_env.data.readers.jsonlines import JsonLines
    from seg_env.data.readers.labelme import LabelMe
    from seg_env.data.readers.reasonseg import ReasonSeg
    from seg_env.data.readers.refer import Refer, load_refer
    from seg_env.data.sources import DATASET_NAMES, open_dataset

__all__ = [
    "DATASET_NAMES",
    "Coco",
    "Dataset",
    "Fault",
    "GRefCoco",
    "JsonLines",
    "KnowsOthers",
    "LabelMe",
    "Parquet",
    "ReasonSeg",
    "RecordError",
    "Refer",
    "Scenes",
    "export_jsonlines",
    "held_out_images",
    "images_of",
    "load_refer",
    "open_dataset",
]

_HOMES = {
    "DATASET_NAMES": "sources",
    "Coco": "readers.coco",
    "Fault": "faults",
    "GRefCoco": "readers.grefcoco",
    "JsonLines": "readers.jsonlines",
    "LabelMe": "readers.labelme",
    "Parquet": "readers.hub",
    "ReasonSeg": "readers.reasonseg",
    "RecordError": "faults",
    "Refer": "readers.refer",
    "export_jsonlines": "export",
    "held_out_images": "leakage",
    "images_of": "leakage",
    "load_refer": "readers.refer",
    "open_dataset": "sources",
}


def __getattr__(name: str) -> Any:
    """Import a reader when it is first named."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
