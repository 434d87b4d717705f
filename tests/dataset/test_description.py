"""Reading dataset YAMLs: what Ultralytics accepts is read alike, what is broken is explained."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.dataset.description import Dataset, read_dataset
from nas.dataset.labels import label_path, read_labels, read_polygons
from nas.errors import InputError

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"
GOOD = "0 0.5 0.5 0.2 0.2\n"
BOTH = GOOD + "1 0.4 0.4 0.2 0.2\n"  # every class occurs


def make(root: Path, yaml: str = YAML, train: int = 3, val: int = 2, label: str | None = BOTH) -> Path:
    """A dataset whose images are never decoded; a label of None writes no label files."""
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            write(root / f"images/{split}/{index}.jpg", "pixels")
            if label is not None:
                write(root / f"labels/{split}/{index}.txt", label)
    return write(root / "data.yaml", yaml)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("yaml", "names"),
    [
        (YAML, ("cat", "dog")),
        (YAML.replace("[cat, dog]", "{1: dog, 0: cat}"), ("cat", "dog")),
        (YAML.replace("[cat, dog]", "{'0': 7, 1: yes}"), ("7", "True")),
        (YAML.replace("names: [cat, dog]", "nc: 2.0"), ("class_0", "class_1")),
        (YAML.replace("val:", "validation:"), ("cat", "dog")),
        ("path: .\n" + YAML, ("cat", "dog")),
        ("path: {root}\n" + YAML, ("cat", "dog")),
        (YAML.replace("images/train", "../images/train"), ("cat", "dog")),
        (YAML.replace("images/train", "[images/train/0.txt, images/train]"), ("cat", "dog")),
        (YAML.replace("images/train", "train.txt"), ("cat", "dog")),
    ],
)
def test_every_form_of_description_is_read(tmp_path, yaml, names):
    root = tmp_path / "my dätä [1]"
    make(root, yaml.replace("{root}", str(root)), train=0 if "0.txt" in yaml else 3)
    if "0.txt" in yaml:
        write(root / "images/train/0.txt", "./a.jpg\n")
        for name in "abc":
            write(root / f"images/train/{name}.jpg", "pixels")
            write(root / f"labels/train/{name}.txt", BOTH)
    write(root / "train.txt", f"./images/train/0.jpg\nimages/train/1.jpg\n\n{root}/images/train/2.jpg\n")
    dataset = read_dataset(root / "data.yaml")
    assert dataset.names == names
    assert (len(dataset.train), len(dataset.val), dataset.test, dataset.problems) == (3, 2, (), ())
    assert list(dataset.train) == sorted(dataset.train)
    assert all(path.is_file() and label_path(path).is_file() for path in dataset.train + dataset.val)


def test_path_in_the_working_folder_or_in_ultralytics_datasets_folder(tmp_path, monkeypatch):
    make(tmp_path / "datasets" / "pets")
    yaml = write(tmp_path / "elsewhere" / "pets.yaml", "path: pets\n" + YAML)
    monkeypatch.chdir(tmp_path / "datasets")
    assert len(read_dataset(yaml).train) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    with pytest.raises(InputError, match="images of 'train' not found"):
        read_dataset(yaml)
    folder = str(tmp_path / "datasets").replace("\\", "/")
    write(tmp_path / "Ultralytics" / "settings.json", f'{{"datasets_dir": "{folder}"}}')
    dataset = read_dataset(yaml)
    assert len(dataset.train) == 3
    assert dataset.root == tmp_path / "datasets" / "pets"
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "a worker's own"))
    with pytest.raises(InputError, match="images of 'train' not found"):
        read_dataset(yaml)
    assert read_dataset(yaml, dataset.root) == dataset


def test_labels_boxes_polygons_background(tmp_path):
    image = tmp_path / "images" / "a.b.jpg"
    label = tmp_path / "labels" / "a.b.txt"
    assert label_path(image) == label
    assert label_path(Path("/images/x/images/1.png")) == Path("/images/x/labels/1.txt")
    assert label_path(Path("flat/1.png")) == Path("flat/1.txt")
    assert read_labels(image, 2).shape == (0, 5)
    write(label, "\n")
    assert read_labels(image, 2).shape == (0, 5)
    write(label, "\ufeff1 0.1 0.2 0.5 0.2 0.5 0.8\n\n0.0 0.2 0.2 0.4 0.2 0.4 0.6 0.2 0.6\n0 0.2 0.2 0.4 0.2 0.4 0.6 0.2 0.6")
    rows = read_labels(image, 2)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [(1, 0.3, 0.5, 0.4, 0.6), (0, 0.3, 0.4, 0.2, 0.4)], rtol=1e-6)
    write(label, "1 1.005 0.5 0.1 0\n")  # Ultralytics tolerates 1%
    assert len(read_labels(image, 2)) == 1


TRIANGLE = "0 0.1 0.2 0.5 0.2 0.5 0.8\n"


def test_polygons_are_kept_where_they_are_asked_for(tmp_path):
    image, label = tmp_path / "images" / "a.jpg", tmp_path / "labels" / "a.txt"
    assert read_polygons(image, 2) == []
    write(label, f"{TRIANGLE}\n1 0.2 0.2 0.4 0.2 0.4 0.6 0.2 0.6\n{TRIANGLE}")
    polygons = read_polygons(image, 2)
    assert [len(polygon) for polygon in polygons] == [3, 4]  # of equal ones the first, in the order of their boxes
    np.testing.assert_allclose(polygons[0], [(0.1, 0.2), (0.5, 0.2), (0.5, 0.8)], rtol=1e-6)
    for (_, x, y, w, h), polygon in zip(read_labels(image, 2), polygons, strict=True):
        np.testing.assert_allclose([*polygon.min(0), *polygon.max(0)], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], atol=1e-6)


def test_segmentation_refuses_boxes_in_one_line(tmp_path):
    yaml = make(tmp_path)
    assert read_dataset(yaml).problems == ()
    with pytest.raises(InputError) as caught:
        read_dataset(yaml, polygons=True)
    first = tmp_path / "labels/train/0.txt"
    assert caught.value.message == f"{first}:1: a box, where segmentation needs a polygon (and so in 4 other files)"
    assert "class x1 y1 x2 y2 x3 y3" in caught.value.hint
    assert "yolo11n.yaml" in caught.value.hint
    with pytest.raises(InputError, match=r"0\.txt:1: a box"):
        read_polygons(tmp_path / "images/train/0.jpg", 2)


def test_a_few_boxes_among_polygons_are_left_out_and_said(tmp_path):
    yaml = make(tmp_path, train=197, val=3, label=TRIANGLE + TRIANGLE.replace("0", "1", 1))
    write(tmp_path / "labels/train/7.txt", GOOD)
    dataset = read_dataset(yaml, polygons=True)
    assert len(dataset.train) == 196
    assert len(dataset.problems) == 1
    assert "7.txt:1: a box, where segmentation needs a polygon; the image is left out" in dataset.problems[0]
    assert dataset.digest == read_dataset(yaml).digest
    assert len(read_dataset(yaml).train) == 197  # a detection search takes both


@pytest.mark.parametrize(
    ("row", "message", "cure"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2, but the dataset names 2", "add the class to 'names'"),
        ("-1 0.5 0.5 0.1 0.1", "class -1", "correct the label"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not a whole number", "class x y width height"),
        ("nan 0.5 0.5 0.1 0.1", "class nan", "class x y width height"),
        ("0 0.5 nan 0.1 0.1", "not inside the image", "from 0 to 1"),
        ("0 320 240 64 48", "not inside the image", "not pixels"),
        ("0 0.5 0.5 -0.1 0.1", "not inside the image", "from 0 to 1"),
        ("0 0.5 0.5 0.1", "4 numbers", "class x y width height"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers", "class x y width height"),
        ("cat 0.5 0.5 0.1 0.1", "'cat' is not a number", "class x y width height"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "boxes and polygons", "all rows"),
    ],
)
def test_a_bad_row_names_file_line_and_cure(tmp_path, row, message, cure):
    yaml = make(tmp_path)
    label = write(tmp_path / "labels/train/1.txt", f"{GOOD}\n{row}\n")
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path / "images/train/1.jpg", 2)
    assert f"{label}:3: " in caught.value.message
    assert message in caught.value.message
    assert cure in str(caught.value.hint)
    with pytest.raises(InputError) as caught:  # one of five images is more than what is tolerated
        read_dataset(yaml)
    assert f"{yaml}: 1 of 5 images" in caught.value.message
    assert f"{label}:3: " in caught.value.message


@pytest.mark.parametrize(
    ("yaml", "message", "cure"),
    [
        (YAML.replace("train: images/train\n", ""), "data.yaml: no key 'train'", "train: images/train"),
        (YAML.replace("val: images/val\n", ""), "data.yaml: no key 'val'", "val: images/val"),
        (YAML.replace("names: [cat, dog]\n", ""), "data.yaml: no key 'names'", "names: [cat, dog]"),
        (YAML + "nc: 3\n", "data.yaml:4: 'nc' is 3, but 'names' has 2", "remove 'nc'"),
        (YAML + "nc: many\n", "data.yaml:4: 'nc' is 'many'", "number of classes"),
        (YAML.replace("[cat, dog]", "{1: cat, 2: dog}"), "data.yaml:3: 'names' must be numbered 0 to 1", "from 0"),
        (YAML.replace("[cat, dog]", "{cat: 0}"), "data.yaml:3: a key of 'names'", "0: cat"),
        (YAML.replace("[cat, dog]", "cat"), "data.yaml:3: 'names' must list", "[cat, dog]"),
        (YAML.replace("images/val", "{a: b}"), "data.yaml:2: 'val' must be a folder", "val: images/val"),
        (YAML.replace("images/val", "images/vla"), "data.yaml:2: images of 'val' not found", "folder in the YAML"),
        (YAML.replace("images/val", "empty"), "data.yaml:2: no images of 'val' in empty", ".jpg"),
        (YAML.replace("images/val", "images/val/0.jpg"), "data.yaml:2: no images of 'val'", ".jpg"),
        (YAML.replace("images/val", "binary"), "binary: not a readable list", "text file of paths"),
        (YAML.replace("images/val", "gone.txt"), "gone.txt.jpg: no such image", "correct these"),
        ("path: gone\ndownload: https://x/y.zip\n" + YAML, "gone/images/train", "nas downloads nothing"),
        ("path: [a]\n" + YAML, "data.yaml:1: 'path' must be", "quotation marks"),
        (YAML + "kpt_shape: [17, 3]\n", "data.yaml:4: a dataset of keypoints", "boxes or polygons"),
        (YAML + "channels: 10\n", "data.yaml:4: images of 10 channels", "colour images"),
        (YAML + "a: [1, 2\nb: 3\n", "data.yaml:5: ", "YAML"),
        (YAML + "a: &x [1]\nb: *x\n", "data.yaml:5: alias", "write the value out"),
        ("just words", "data.yaml: ", "compare"),
        (YAML + f"a: {'[' * 1000}{']' * 1000}", "data.yaml: nested more than 50 deep", "YAML file"),
    ],
)
def test_a_broken_description_names_the_place_and_the_cure(tmp_path, yaml, message, cure):
    path = make(tmp_path, yaml)
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    write(tmp_path / "gone.txt", "gone.txt.jpg\n")
    with pytest.raises(InputError) as caught:
        read_dataset(path)
    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert cure in str(caught.value.hint)


def test_what_is_no_description_at_all(tmp_path):
    yaml = make(tmp_path)
    for given_path, message, cure in [
        (tmp_path / "dat.yaml", "dat.yaml: no such file", "did you mean 'data.yaml'?"),
        (tmp_path / "no" / "data.yaml", "data.yaml: no such file", "None"),
        (tmp_path, "a folder, not a dataset YAML", str(yaml)),
        (tmp_path / "images", "a folder, not a dataset YAML", "names: [cat, dog]"),
        (tmp_path / "images/train/0.jpg", "an image, not a dataset YAML", "names: [cat, dog]"),
    ]:
        with pytest.raises(InputError) as caught:
            read_dataset(given_path)
        assert f"{given_path}: " in caught.value.message
        assert message in caught.value.message
        assert cure in str(caught.value.hint)


@pytest.mark.parametrize(
    ("label", "message", "cure"),
    [
        (None, "none of the 3 images of 'train' has a label file, as ", "folder 'labels'"),
        ("", "data.yaml:1: the label files of 'train' are all empty", "label some objects"),
    ],
)
def test_a_dataset_without_objects_is_refused(tmp_path, label, message, cure):
    with pytest.raises(InputError) as caught:
        read_dataset(make(tmp_path, label=label))
    assert message in caught.value.message
    assert cure in str(caught.value.hint)


def test_few_faults_are_left_out_and_reported(tmp_path):
    yaml = make(tmp_path, train=199, val=1)
    write(tmp_path / "labels/train/7.txt", "9 0.5 0.5 0.1 0.1\n")
    dataset = read_dataset(yaml)
    assert len(dataset.train) == len(dataset.train_classes) == 198
    (problem,) = dataset.problems
    assert f"{tmp_path / 'labels/train/7.txt'}:1: class 9" in problem
    write(tmp_path / "labels/train/7.txt", GOOD)
    write(tmp_path / "labels/val/0.txt", "9 0.5 0.5 0.1 0.1\n")
    with pytest.raises(InputError, match="no usable images in 'val'"):
        read_dataset(yaml)


def test_an_unusable_test_part_and_shared_images_are_reported_only(tmp_path):
    make(tmp_path, YAML.replace("images/val", "images/train") + "test: images/test\n")
    missing = read_dataset(tmp_path / "data.yaml")
    write(tmp_path / "images/test/0.jpg", "pixels")
    unlabelled = read_dataset(tmp_path / "data.yaml")
    assert missing.test == unlabelled.test == ()
    assert ["not used" in problem for problem in missing.problems] == [True, False]
    assert "3 images of 'val' are in 'train' too" in missing.problems[1]
    assert "'test' has no labelled object" in unlabelled.problems[0]


def test_a_class_that_never_occurs_is_said(tmp_path):
    yaml = make(tmp_path, YAML.replace("[cat, dog]", "[cat, dog, cow, hen, pig, owl, bat, fox]"))
    (problem,) = read_dataset(yaml).problems
    assert "6 of 8 classes never occur in 'train': 'cow', 'hen', 'pig', 'owl', 'bat', …" in problem


def test_copies_share_the_digest_and_any_change_changes_it(tmp_path):
    yaml = make(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert read_dataset(tmp_path / "two" / "data.yaml").digest == read_dataset(yaml).digest
    digests = {read_dataset(yaml).digest}
    for path, text in [
        (tmp_path / "one/labels/val/1.txt", "1 0.5 0.5 0.2 0.2\n"),
        (tmp_path / "one/images/val/1.jpg", "more pixels"),
        (tmp_path / "one/images/val/2.jpg", "pixels"),
        (yaml, YAML.replace("dog", "hog")),
    ]:
        write(path, text)
        digests.add(read_dataset(yaml).digest)
    assert len(digests) == 5


def test_an_image_counts_once_whatever_paths_lead_to_it(tmp_path):
    real = tmp_path / "real"
    make(real)
    link = tmp_path / "link"
    link.symlink_to(real)
    (real / "images/train/again.jpg").symlink_to(real / "images/train/0.jpg")
    write(real / "train.txt", f"{link}/images/train/0.jpg\n{link}/images/train/1.jpg\n{link}/images/val/0.jpg\n")
    write(real / "data.yaml", YAML.replace("images/train", "[images/train, train.txt]"))
    dataset = read_dataset(link / "data.yaml")
    assert len(dataset.train) == 4
    assert len({path.resolve() for path in dataset.train}) == 4
    assert "1 images of 'val' are in 'train' too" in dataset.problems[0]


def test_links_and_hidden_files(tmp_path):
    yaml = make(tmp_path)
    write(tmp_path / "images/train/._0.jpg", "resource fork")
    write(tmp_path / "images/train/.thumbnails/0.jpg", "preview")
    (tmp_path / "images/train/loop").symlink_to(tmp_path / "images/train")
    assert len(read_dataset(yaml).train) == 3


def test_nothing_is_written_beside_the_data(tmp_path):
    yaml = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    folders = [tmp_path, *(path for path in before if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        read_dataset(yaml)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert sorted(tmp_path.rglob("*")) == before


def dataset_of(train, classes) -> Dataset:
    yaml = Path("data.yaml")
    return Dataset(yaml, yaml.parent, tuple("abcd"), tuple(train), (), (), "", (), tuple(classes))


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=3, unique=True).map(sorted).map(tuple), min_size=2, max_size=200),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_split_covers_is_disjoint_and_repeats(classes, held_out, seed):
    paths = tuple(Path(f"{index}.jpg") for index in range(len(classes)))
    dataset = dataset_of(paths, classes)
    fit, held = dataset.split(held_out, seed)
    assert sorted(fit + held) == list(range(len(paths)))
    assert fit
    assert held
    assert abs(len(held) - held_out * len(paths)) <= 1
    assert dataset.split(held_out, seed) == (fit, held)
    images_with = {label: sum(label in labels for labels in classes) for label in range(4)}
    rarest = min((label for label in images_with if images_with[label]), key=images_with.__getitem__, default=None)
    if rarest is not None:  # its share is kept to within one image
        group = sum(rarest in classes[index] for index in held)
        assert abs(group - len(held) * images_with[rarest] / len(paths)) < 2


def test_split_keeps_the_copies_of_a_photo_together():
    # 20 photos of 3 copies each; the same name in another folder is another photo
    names = [f"{i % 2}/{i // 2}_jpg.rf.{copy:032x}.jpg" for i in range(20) for copy in range(3)]
    dataset = dataset_of(map(Path, sorted(names)), [(0,)] * 60)
    for seed in range(5):
        fit, held = dataset.split(0.25, seed)
        assert (len(fit), len(held)) == (45, 15)
        photos = [{dataset.train[i].as_posix().partition(".rf.")[0] for i in part} for part in (fit, held)]
        assert (len(photos[0]), len(photos[1])) == (15, 5)
        assert not photos[0] & photos[1]
    with pytest.raises(InputError, match="1 photo, too few"):
        dataset_of(map(Path, names[:3]), [(0,)] * 3).split(0.5, 0)


def test_split_depends_on_the_seed_and_refuses_nonsense(tmp_path):
    dataset = read_dataset(make(tmp_path, train=50))
    assert dataset.split(0.2, 0) != dataset.split(0.2, 1)
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(InputError, match="held-out share"):
            dataset.split(share, 0)
    with pytest.raises(InputError, match="too few"):
        read_dataset(make(tmp_path / "one", train=1)).split(0.5, 0)


def test_reading_descriptions_needs_no_heavy_import():
    code = "import sys, nas.dataset.description; print({'numpy', 'cv2', 'torch', 'ultralytics'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
