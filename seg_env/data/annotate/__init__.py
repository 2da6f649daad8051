"""From web images to training data: detect, segment, outline, describe, filter, write.

Every stage is a small class behind a protocol (`stages`), named by a word or an import path, so any
of them can be replaced. Output is what `seg_env.data.open_dataset` opens.
"""

from seg_env.data.annotate.job import Job
from seg_env.data.annotate.pipeline import annotate
from seg_env.data.annotate.stages import DEFAULT_FILTERS, load_stage
from seg_env.data.annotate.truth import write_scene_shards

__all__ = ["DEFAULT_FILTERS", "Job", "annotate", "load_stage", "write_scene_shards"]
