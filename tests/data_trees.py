"""Small files in the forms that data sets are published in, for tests of their readers."""

import json
import pickle

import numpy as np
from PIL import ExifTags, Image

from seg_env.data import Dataset

HEIGHT, WIDTH = 40, 60
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
BESIDE = [25.0, 20.0, 45.0, 20.0, 45.0, 35.0, 25.0, 35.0]
FAR = [70.0, 10.0, 90.0, 10.0, 90.0, 30.0, 70.0, 30.0]
"""A polygon that lies beside the picture."""
PHOTO = "COCO_train2014_000000000009.jpg"


def box_mask(*boxes):
    """A mask with some boxes ``(x0, y0, x1, y1)`` filled."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


SQUARE_MASK = box_mask((10, 10, 30, 30))
BOTH_MASK = box_mask((10, 10, 30, 30), (25, 20, 45, 35))


def write_photo(path, size=(WIDTH, HEIGHT), colour=(10, 200, 30)):
    """Write a picture of one colour; ``size`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_json(path, value):
    """Write a file of JSON and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def annotation(number, segmentation, category_id=3, image_id=9, **more):
    """An annotation of COCO's form."""
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "bbox": [0, 0, 1, 1],
        "area": 1.0,
        "iscrowd": 0,
        **more,
    }


def instances(*annotations, images=(9,)):
    """An ``instances.json`` of some annotations and of pictures by id."""
    return {
        "info": {},
        "images": [
            {
                "id": number,
                "file_name": f"COCO_train2014_{number:012d}.jpg",
                "height": HEIGHT,
                "width": WIDTH,
            }
            for number in images
        ],
        "annotations": list(annotations),
        "categories": [{"id": 3, "name": "person"}, {"id": 4, "name": "dog"}],
    }


def reference(ref_id, ann_id, sentences, split="val", image_id=9, category_id=3):
    """A reference of the RefCOCO family."""
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "sent_ids": [10 * ref_id + k for k in range(len(sentences))],
        "sentences": [
            {"sent_id": 10 * ref_id + k, "sent": text, "raw": text, "tokens": text.split()}
            for k, text in enumerate(sentences)
        ],
    }


def assert_protocol(dataset, count):
    """What every data set can do: length, indexing, pickling, pictures of the target's size."""
    assert isinstance(dataset, Dataset)
    assert callable(dataset.others)
    assert len(dataset) == count == len(list(dataset))
    assert len({sample.id for sample in dataset}) == count
    copy = pickle.loads(pickle.dumps(dataset))
    for sample, again in zip(dataset, copy, strict=True):
        assert (sample.id, sample.expression) == (again.id, again.expression)
        assert sample.image.shape == (*sample.target.size, 3)
        np.testing.assert_array_equal(sample.target.mask(), again.target.mask())
        assert json.loads(json.dumps(dict(sample.metadata))) == sample.metadata
    assert dataset[-1].id == dataset[count - 1].id
    for index in (count, -count - 1):
        try:
            dataset[index]
        except IndexError:
            continue
        raise AssertionError(f"index {index} is no error")


def write_turned(path, orientation):
    """Write a picture whose EXIF data turn it; upright it is `HEIGHT` x `WIDTH`, its square red."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    pixels[SQUARE_MASK] = (200, 0, 0)
    back = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (upright if back is None else upright.transpose(back)).save(path, exif=exif, quality=95)
    return path
