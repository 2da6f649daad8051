"""Rings, masks and run lengths: tracing, filling by COCO's rule, and overlap."""

from seg_env.geometry.contour import trace
from seg_env.geometry.overlap import PreparedTarget, iou_batch, overlap_batch, prepare
from seg_env.geometry.polygon import (
    Ring,
    canonical,
    is_simple,
    ring_area,
    ring_perimeter,
    roles,
)
from seg_env.geometry.raster import rasterize, rasterize_rle
from seg_env.geometry.rle import Rle
from seg_env.geometry.simplify import simplify_rings

__all__ = [
    "PreparedTarget",
    "Ring",
    "Rle",
    "canonical",
    "iou_batch",
    "is_simple",
    "overlap_batch",
    "prepare",
    "rasterize",
    "rasterize_rle",
    "ring_area",
    "ring_perimeter",
    "roles",
    "simplify_rings",
    "trace",
]
