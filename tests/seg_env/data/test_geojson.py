"""Outlines in the coordinates of the map."""

import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import rasterio.features
import rasterio.warp
import shapely
from PIL import Image
from rasterio.transform import Affine
from shapely.geometry import shape

from seg_env.data import Coco, RecordError, open_dataset
from seg_env.data.__main__ import command_line
from seg_env.data.geojson import export_geojson
from seg_env.geometry.rle import Rle

HEIGHT, WIDTH = 40, 60
NORTH_UP = Affine(0.5, 0, 399960.25, 0, -0.5, 5800020.75)
TURNED = NORTH_UP @ Affine.rotation(30) @ Affine.scale(1, 1.5)
SOUTH_UP = Affine(0.5, 0, 399960, 0, 0.5, 5800020)
DEGREES = Affine(0.001, 0, 13.25, 0, -0.001, 52.5)


def ring_with_island():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:30, 3:40] = True
    mask[6:26, 8:34] = False
    mask[10:20, 12:24] = True
    mask[13:16, 15:18] = False
    mask[33:38, 50:58] = True
    return mask


def noise(seed):
    return np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.55


def write_maps(folder, masks, transforms=(NORTH_UP,), systems=("EPSG:32633",)):
    """A data set in COCO's form: one GeoTIFF and one object for each mask."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").mkdir()
    images, annotations = [], []
    for number, mask in enumerate(masks):
        name = f"tile{number}.tif"
        profile = {"driver": "GTiff", "dtype": "uint16", "count": 4}
        with rasterio.open(
            folder / "train2017" / name, "w", width=WIDTH, height=HEIGHT, **profile,
            crs=systems[number % len(systems)], transform=transforms[number % len(transforms)],
        ) as file:  # fmt: skip
            file.write(np.full((4, HEIGHT, WIDTH), 900, np.uint16))
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        counts = Rle.from_mask(mask).counts.tolist()
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
            }
        )
    record = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "field"}],
    }
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(record))
    return folder


def independent(mask, transform):
    """The same object as rasterio outlines it."""
    found = rasterio.features.shapes(
        mask.astype(np.uint8), mask=mask, connectivity=4, transform=transform
    )
    return shapely.unary_union([shape(geometry) for geometry, _ in found])


def check_rings(geometry):
    """RFC 7946, 3.1.6: closed rings, outer ones counterclockwise, holes clockwise."""
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else None
    for rings in parts or [geometry["coordinates"]]:
        for number, ring in enumerate(rings):
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert shapely.LinearRing(ring).is_ccw == (number == 0)


@pytest.mark.parametrize(
    "transform", [NORTH_UP, TURNED, SOUTH_UP], ids=["north", "turned", "south"]
)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_outlines_are_those_that_rasterio_draws(tmp_path, transform, seed):
    mask = ring_with_island() if seed is None else noise(seed)
    root = write_maps(tmp_path / "maps", [mask], [transform])
    path = export_geojson(Coco(root), tmp_path / "out")
    assert path == tmp_path / "out" / "train2017.geojson"
    (feature,) = json.loads(path.read_text())["features"]
    check_rings(feature["geometry"])
    found, expected = shape(feature["geometry"]), independent(mask, transform)
    assert found.is_valid
    assert found.area == pytest.approx(mask.sum() * abs(transform.determinant), rel=1e-9)
    assert found.symmetric_difference(expected).area < 1e-6 * expected.area
    burnt = rasterio.features.rasterize([found], (HEIGHT, WIDTH), transform=transform)
    assert (burnt == mask).all()
    if seed is None:
        assert sorted(len(part.interiors) for part in found.geoms) == [0, 1, 1]
        assert not found.contains(shapely.Point(transform * (9, 8)))  # in the outer hole


def test_the_coordinate_system_is_named_unless_it_is_that_of_the_standard(tmp_path):
    masks = [ring_with_island()]
    metres = write_maps(tmp_path / "metres", masks)
    whole = json.loads(export_geojson(Coco(metres), tmp_path / "a").read_text())
    assert whole["type"] == "FeatureCollection"
    assert whole["crs"]["properties"] == {"name": "urn:ogc:def:crs:EPSG::32633"}
    degrees = write_maps(tmp_path / "degrees", masks, [DEGREES], ["EPSG:4326"])
    whole = json.loads(export_geojson(Coco(degrees), tmp_path / "b").read_text())
    assert whole.keys() == {"type", "features"}
    (feature,) = whole["features"]
    assert feature["type"] == "Feature"
    assert feature["properties"]["expression"] == "field"
    assert feature["properties"]["image"] == "tile0.tif"
    west, south, east, north = shape(feature["geometry"]).bounds  # longitude first
    assert (west, east) == pytest.approx((13.253, 13.308))
    assert (south, north) == pytest.approx((52.462, 52.498))


def test_maps_of_several_systems_are_brought_into_one(tmp_path):
    masks = [ring_with_island(), ring_with_island()]
    root = write_maps(tmp_path / "maps", masks, systems=["EPSG:32633", "EPSG:32634"])
    with pytest.raises(RecordError, match=r"tile1\.tif has coordinates of EPSG:32634.*--crs"):
        export_geojson(Coco(root, per_annotation=True), tmp_path / "out")
    path = export_geojson(Coco(root, per_annotation=True), tmp_path / "out", crs="EPSG:4326")
    whole = json.loads(path.read_text())
    assert whole.keys() == {"type", "features"}
    for number, feature in enumerate(whole["features"]):
        check_rings(feature["geometry"])
        expected = rasterio.warp.transform_geom(
            f"EPSG:{32633 + number}", "EPSG:4326", independent(masks[0], NORTH_UP)
        )
        found = shape(feature["geometry"])
        assert found.symmetric_difference(shape(expected)).area < 1e-6 * found.area
        assert abs(found.centroid.x - (13.5 + 6 * number)) < 0.1


def test_an_object_that_is_not_there_has_no_geometry(tmp_path):
    root = write_maps(tmp_path / "maps", [ring_with_island()])
    line = {"image": "train2017/tile0.tif", "expression": "a lake", "rings": []}
    (root / "train.jsonl").write_text(json.dumps(line))
    for crs in (None, "EPSG:4326"):
        path = export_geojson(open_dataset(str(root / "train.jsonl")), tmp_path / "out", crs=crs)
        (feature,) = json.loads(path.read_text())["features"]
        assert feature["geometry"] is None
        assert feature["properties"]["expression"] == "a lake"


def test_images_without_a_place_on_the_map_are_named(tmp_path):
    mask = [ring_with_island()]
    no_system = write_maps(tmp_path / "a", mask, systems=[None])
    with pytest.raises(RecordError, match=r"tile0\.tif has no coordinate system; .*jsonl"):
        export_geojson(Coco(no_system), tmp_path / "out")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        no_transform = write_maps(tmp_path / "b", mask, [Affine.identity()])
    with pytest.raises(RecordError, match=r"tile0\.tif has no transform to the map"):
        export_geojson(Coco(no_transform), tmp_path / "out")
    with pytest.raises(RecordError, match="lies in no file"):
        export_geojson(open_dataset("scenes"), tmp_path / "out")
    with pytest.raises(ValueError, match="crs='mars' is no coordinate system"):
        export_geojson(Coco(no_system), tmp_path / "out", crs="mars")
    (no_system / "train2017" / "tile0.tif").unlink()
    with pytest.raises(FileNotFoundError, match=r"tile0\.tif"):
        export_geojson(Coco(no_system), tmp_path / "out")
    Image.new("RGB", (WIDTH, HEIGHT)).save(no_system / "train2017" / "tile0.tif", "PNG")
    with pytest.raises(RecordError, match=r"tile0\.tif has no place on a map"):
        export_geojson(Coco(no_system), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outlines_of_another_size_are_not_placed(tmp_path):
    root = write_maps(tmp_path / "maps", [ring_with_island()])
    line = {"image": "train2017/tile0.tif", "expression": "it", "size": [20, 30]}
    line["rings"] = [[[0, 0], [1, 0], [1, 1]]]
    (root / "train.jsonl").write_text(json.dumps(line))
    with pytest.raises(RecordError, match=r"60 x 40 pixels.*annotations say 30 x 20"):
        export_geojson(open_dataset(str(root / "train.jsonl")), tmp_path / "out")


def test_the_command_writes_it(tmp_path, capsys):
    root = write_maps(tmp_path / "maps", [ring_with_island()])
    command = ["export", "--dataset", "coco", "--data-root", str(root), "--format", "geojson"]
    command += ["--output", str(tmp_path / "out")]
    options = ["--crs", "EPSG:4326", "--bands", "4", "3", "2", "--stretch", "percentiles"]
    subprocess.run([sys.executable, "-m", "seg_env.data", *command, *options], check=True)
    written = json.loads((tmp_path / "out" / "train2017.geojson").read_text())
    assert len(written["features"]) == 1
    assert command_line([*command, "--form", "rings"]) == 2
    assert "--form says nothing about --format geojson" in capsys.readouterr().err
    assert command_line([*command[:5], "--crs", "EPSG:4326", *command[7:]]) == 2
    assert "--crs says nothing about --format jsonl" in capsys.readouterr().err
