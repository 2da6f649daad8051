"""Writing the outlines of a data set in the coordinates of the map that its images show."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from seg_env.data.base import Dataset
from seg_env.data.images import georeference
from seg_env.data.records import RecordError
from seg_env.geometry.polygon import roles
from seg_env.types import Target

if TYPE_CHECKING:
    from rasterio.crs import CRS

LONGITUDE_LATITUDE = ("EPSG:4326", "OGC:CRS84")
"""The only coordinate system of RFC 7946, longitude first; files need not name it."""


def export_geojson(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    crs: str | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Path:
    """Write ``<split>.geojson``: one feature for each sample, outlined along the edges of pixels.

    Outer rings run counterclockwise on the map and holes clockwise, as RFC 7946 requires. It only
    has longitude and latitude; any other coordinate system is named in the member ``crs`` of the
    format's first version (2008), which GIS programs read. A sample without an object has no
    geometry (null).

    Args:
        dataset: A data set whose images are GeoTIFF files.
        folder: Where to write.
        crs: Coordinate system to write, such as ``"EPSG:4326"``; by default that of the images.
        limit: Number of samples, by default all.
        progress: Called with the number written so far and in all.

    Returns:
        The file, which gets its name when it is complete.

    Raises:
        ValueError: An image is not georeferenced, or has another coordinate system than the first
            while ``crs`` is not given, or a record of the data set is broken.
    """
    from rasterio.crs import CRS
    from rasterio.errors import CRSError
    from rasterio.warp import transform as reproject

    try:
        system = CRS.from_user_input(crs) if crs else None
    except CRSError as error:
        raise ValueError(f"{crs=} is no coordinate system; use for example EPSG:4326") from error
    place_of = lru_cache(maxsize=1)(georeference)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    features = []
    for index in range(count):
        sample = dataset[index]
        path: Path | None = dataset.image_path(index) if hasattr(dataset, "image_path") else None
        if path is None:
            raise RecordError(f"{sample.id}: its image lies in no file that knows its map")
        affine, found = place_of(path, sample.target.size)
        system = system or found
        if crs is None and found != system:
            raise RecordError(
                f"{path} has coordinates of {found.to_string()}, images before it of "
                f"{system.to_string()}; name one for all, for example --crs EPSG:4326"
            )
        shape = pixel_polygons(sample.target)
        x, y = affine * tuple(shapely.get_coordinates(shape).T)
        if found != system:
            x, y = reproject(found, system, x, y)
        if not np.isfinite((x, y)).all():
            raise RecordError(f"{path} does not lie within the coordinate system {crs}")
        shape = shapely.set_coordinates(shape, np.column_stack((x, y)))
        shape = shapely.orient_polygons(shape, exterior_cw=False)
        parts = shapely.get_parts(shape)
        geometry = shapely.geometry.mapping(parts[0] if len(parts) == 1 else shape)
        features.append(
            {
                "type": "Feature",
                "id": sample.id,
                "geometry": geometry if len(parts) else None,
                "properties": {
                    "expression": sample.expression,
                    "image": path.name,
                    **sample.metadata,
                },
            }
        )
        if progress is not None:
            progress(index + 1, count)
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if system is not None and ":".join(system.to_authority() or ()) not in LONGITUDE_LATITUDE:
        collection = {"crs": _named(system), **collection}
    root = Path(folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{dataset.split}.geojson"
    unfinished = target.with_suffix(".geojson.part")
    unfinished.write_text(json.dumps(collection, allow_nan=False), encoding="utf-8")
    os.replace(unfinished, target)
    return target


def pixel_polygons(target: Target) -> shapely.MultiPolygon:
    """The outline in pixels, every hole in the part that it was cut from."""
    sides = np.array([target.size[1], target.size[0]])
    rings = np.array(
        [shapely.linearrings(np.rint(ring * sides)) for ring in target.rings], dtype=object
    )
    filled = roles(target.rings)
    shells, holes = shapely.polygons(rings[filled]), shapely.polygons(rings[~filled])
    # A hole belongs to the smallest part around it; islands in it are smaller, but not around it.
    inner, outer = shapely.STRtree(shells).query(holes, predicate="covered_by")
    order = np.argsort(-shapely.area(shells[outer]), kind="stable")
    owner = np.zeros(len(holes), dtype=np.int64)
    owner[inner[order]] = outer[order]
    cut = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[cut], np.arange(len(shells) + 1))
    cut_out = [rings[~filled][cut[start:end]] for start, end in pairwise(ends)]
    parts = [shapely.Polygon(*pair) for pair in zip(rings[filled], cut_out, strict=True)]
    return shapely.MultiPolygon(parts)


def _named(system: CRS) -> dict[str, Any]:
    """The member ``crs`` of GeoJSON 2008."""
    if system.to_authority() is None:
        raise RecordError(
            "the coordinate system of the images has no number to name it by; use --crs EPSG:4326"
        )
    authority, code = system.to_authority()
    return {"type": "name", "properties": {"name": f"urn:ogc:def:crs:{authority}::{code}"}}
