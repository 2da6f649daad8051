"""From web pictures to training data: detect, segment, outline, describe, sort out, write.

Every stage is a small class behind a protocol (`stages`), named by a word or an import path, so any
of them can be replaced. Output is what `seg_env.data.open_dataset` opens.
"""

from seg_env.data.annotate.job import Job
from seg_env.data.annotate.nouns import (
    Box,
    Detection,
    Found,
    Picture,
    RawPicture,
    Reason,
    Rejected,
    Segment,
    Shard,
)
from seg_env.data.annotate.run import Progress, annotate
from seg_env.data.annotate.stages import (
    DEFAULT_FILTERS,
    Describer,
    Detector,
    Filter,
    ImageSource,
    Segmenter,
    load_stage,
)
from seg_env.data.annotate.tally import Tally
from seg_env.data.annotate.truth import write_scene_shards

__all__ = [
    "DEFAULT_FILTERS",
    "Box",
    "Describer",
    "Detection",
    "Detector",
    "Filter",
    "Found",
    "ImageSource",
    "Job",
    "Picture",
    "Progress",
    "RawPicture",
    "Reason",
    "Rejected",
    "Segment",
    "Segmenter",
    "Shard",
    "Tally",
    "annotate",
    "load_stage",
    "write_scene_shards",
]
