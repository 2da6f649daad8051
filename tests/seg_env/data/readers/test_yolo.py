"""Data labelled for YOLO's segmentation."""

import numpy as np
import pytest
from data_trees import assert_protocol, write_photo

from seg_env.data import Yolo, open_dataset
from seg_env.data.records import RecordError

WIDTH, HEIGHT = 40, 20
LEFT = "1 0 0 .25 0 .25 .5 0 .5"
RIGHT = "1 .5 .5 1 .5 1 1 .5 1"
TOP = "0 .5 0 1 0 1 .25 .5 .25"
AREAS = {LEFT: 10 * 10, RIGHT: 20 * 10, TOP: 20 * 5}


@pytest.fixture
def tree(tmp_path):
    def write(label=f"{LEFT}\n\n{RIGHT}\n{TOP}\n", split="train", form="images/{}"):
        folder = form.format(split)
        write_photo(tmp_path / folder / "a.jpg", (WIDTH, HEIGHT))
        path = tmp_path / folder.replace("images", "labels") / "a.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(label)
        (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: images/train\n")
        return tmp_path

    return write


def test_a_class_is_one_sample_and_fractions_are_of_its_image(tree):
    dataset = Yolo(tree())
    assert_protocol(dataset, 2)
    dogs, cat = dataset
    assert (dogs.expression, dogs.target.area) == ("dog", AREAS[LEFT] + AREAS[RIGHT])
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[:10, :10] = expected[10:, 20:] = True
    np.testing.assert_array_equal(dogs.target.mask(), expected)
    assert (cat.expression, cat.target.area) == ("cat", AREAS[TOP])
    assert [other.area for other in dataset.others(1)] == [AREAS[LEFT], AREAS[RIGHT]]


def test_each_line_is_a_sample_per_annotation(tree):
    dataset = Yolo(tree(), per_annotation=True)
    assert [sample.target.area for sample in dataset] == list(AREAS.values())
    assert len({sample.id for sample in dataset}) == 3


@pytest.mark.parametrize("form", ["images/{}", "{}/images"])
def test_splits_lie_where_people_have_them(tree, form):
    root = tree(split="val", form=form)
    assert len(open_dataset(str(root), split="val")) == 2
    with pytest.raises(FileNotFoundError, match="no images of the split 'test'"):
        open_dataset(str(root), split="test")


def test_a_folder_that_the_configuration_names_is_the_split(tree):
    root = tree(split="first2017")
    (root / "data.yaml").write_text("names: {0: cat, 1: dog}\nval: ../images/first2017\n")
    assert len(Yolo(root, "val")) == len(Yolo(root / "data.yaml", "val")) == 2


def test_boxes_and_images_without_a_label_are_counted(tree):
    root = tree(f"0 .5 .5 .2 .2\n{LEFT}\n")
    write_photo(root / "images/train/b.jpg", (WIDTH, HEIGHT))
    dataset = Yolo(root)
    assert len(dataset) == 1
    assert dataset.unused == {"boxes": 1, "images without a label file": 1}


def test_a_target_is_never_what_is_left_beside_a_box(tree):
    root = tree(f"1 .5 .5 .2 .2\n{LEFT}\n{TOP}\n")
    dataset = Yolo(root)
    assert [sample.expression for sample in dataset] == ["cat"]
    assert dataset.unused == {
        "boxes": 1,
        "outlines of a class that has boxes beside them": 1,
    }
    assert len(Yolo(root, per_annotation=True)) == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("cat 0 0 1 0 1 1", "line 2: expected a class and numbers"),
        ("1 0 0 1 0 1", "line 2: 5 numbers after the class"),
        ("7 0 0 1 0 1 1", "line 2: the class 7 has no name"),
        ("1 0 0 nan 0 1 1", "finite"),
        ("1 30 30 31 30 31 31", "outside the image"),
        ("1 .1 .1 .1 .1 .1 .1", "fills not one pixel"),
    ],
)
def test_a_broken_line_is_named_or_left_out(tree, line, told):
    root = tree(f"{LEFT.replace('1', '0', 1)}\n{line}\n")
    with pytest.raises(RecordError, match=told):
        [sample.target for sample in Yolo(root)]
    dataset = Yolo(root, on_error="skip")
    assert sum(dataset.skipped.values()) == 1


def test_a_configuration_that_leads_out_of_the_folder_is_refused(tree):
    root = tree()
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: ../../../etc\n")
    with pytest.raises(RecordError, match="leads out of"):
        Yolo(root)
    (root / "data.yaml").write_text("names: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(RecordError, match="is not valid YAML"):
        Yolo(root)


def test_names_are_text_whatever_yaml_makes_of_them(tree):
    root = tree(f"{TOP}\n{LEFT}\n")
    (root / "data.yaml").write_text("names: {0: no, 1: 2024-01-01}\n")
    assert [sample.expression for sample in Yolo(root)] == ["no", "2024-01-01"]


def test_names_that_unfold_without_end_are_refused(tree):
    root = tree()
    folds = "".join(f"- &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 30))
    (root / "data.yaml").write_text(f"bomb:\n- &a0 [x]\n{folds}names: [*a29]\n")
    with pytest.raises(RecordError, match="'names' must list names"):
        Yolo(root)


def test_other_encodings_are_named_or_refused(tree):
    root = tree(f"{TOP}\n")
    (root / "data.yaml").write_bytes("names: [\u676f\u5b50]\n".encode("gbk"))
    with pytest.raises(RecordError, match=r"data\.yaml is not text in UTF-8.*--encoding"):
        Yolo(root)
    assert Yolo(root, encoding="gbk")[0].expression == "\u676f\u5b50"


def test_a_large_configuration_is_not_read(tree):
    root = tree()
    (root / "data.yaml").write_text("names: [cat, dog]\n" + "#" * (1 << 20))
    with pytest.raises(RecordError, match="config_bytes"):
        Yolo(root)
