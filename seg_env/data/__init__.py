"""Data sets: procedural scenes and readers of annotated images."""

from seg_env.data.base import Dataset
from seg_env.data.export import export_jsonlines
from seg_env.data.readers.annotated_images import images_of
from seg_env.data.readers.coco import Coco
from seg_env.data.readers.hub import Parquet
from seg_env.data.readers.jsonlines import JsonLines
from seg_env.data.readers.labelme import LabelMe
from seg_env.data.readers.masks import Masks
from seg_env.data.readers.reasonseg import ReasonSeg
from seg_env.data.readers.refer import GRefCoco, Refer, load_refer
from seg_env.data.readers.yolo import Yolo
from seg_env.data.records import Fault, RecordError
from seg_env.data.scenes import Scenes
from seg_env.data.sources import DATASET_NAMES, held_out_images, open_dataset

__all__ = [
    "DATASET_NAMES",
    "Coco",
    "Dataset",
    "Fault",
    "GRefCoco",
    "JsonLines",
    "LabelMe",
    "Masks",
    "Parquet",
    "ReasonSeg",
    "RecordError",
    "Refer",
    "Scenes",
    "Yolo",
    "export_jsonlines",
    "held_out_images",
    "images_of",
    "load_refer",
    "open_dataset",
]
