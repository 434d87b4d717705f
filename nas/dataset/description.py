"""Reading a detection or segmentation dataset described by an Ultralytics dataset YAML, with its labels checked.

What Ultralytics accepts is accepted: `path` beside the YAML, absolute, or in Ultralytics' datasets folder; `train`,
`val`, `test` as folders, `.txt` lists or lists of these; `names` as a list or a mapping, or `nc` alone. Nothing is
written next to the data and nothing is downloaded. Needs neither numpy nor OpenCV.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.dataset.labels import IMAGE_SUFFIXES, NoPolygonError, label_path, parse_labels
from nas.errors import InputError, did_you_mean
from nas.space.source import Document, read_yaml

TOLERATED_FAULTS = 0.01
"""Up to this share of a dataset's images may be unusable; they are left out and reported."""

_YAML_SUFFIXES = {".yaml", ".yml"}
_EXAMPLE = "a dataset YAML has 'train: images/train', 'val: images/val' and 'names: [cat, dog]'"


@dataclass(frozen=True)
class Dataset:
    """A dataset whose labels were found good.

    Attributes:
        yaml: the dataset YAML.
        root: the folder that its `path` means here: `read_dataset(yaml, root)` finds the same images in a process with
            another working folder or other Ultralytics settings.
        names: the classes' names, by class number.
        train: images to learn from, sorted.
        val: images to validate on, sorted.
        test: images for the last word, sorted; empty where the dataset has none.
        digest: hex digest of the names, the labels, and every image's split, place and size; copies share it.
        problems: what was found but tolerated, one line each.
        train_classes: for each image of `train` the classes in it, ascending.
        files: what `digest` is made of beside the names: of every image its split, place, size and the digest of its labels.
    """

    yaml: Path
    root: Path
    names: tuple[str, ...]
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    digest: str
    problems: tuple[str, ...]
    train_classes: tuple[tuple[int, ...], ...] = field(repr=False)
    files: tuple[str, ...] = field(default=(), repr=False)

    @property
    def nc(self) -> int:
        """The number of classes."""
        return len(self.names)

    def split(self, held_out: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Divides `train` into a part to fit and a part held out to rank on.

        Photos are sorted by their rarest class and every so-manieth is held out, so that rare classes are in both
        parts. The augmented copies of one photo in a Roboflow export (`x_jpg.rf.<hash>.jpg`) stay together. Nothing
        tells which images are frames of one video: keep such frames out of `train`, or thin them out. The same
        arguments always give the same parts.

        Args:
            held_out: share of the photos to hold out, between 0 and 1; at least one stays on each side.
            seed: which of the possible divisions.

        Returns:
            Indices into `train`, ascending: (fit, held out).

        Raises:
            InputError: a share outside (0, 1), or fewer than two photos.
        """
        photos: dict[Path, list[int]] = {}
        for index, image in enumerate(self.train):
            photos.setdefault(_photo(image), []).append(index)
        groups = list(photos.values())
        count = len(groups)
        if not 0 < held_out < 1:
            raise InputError(f"held-out share {held_out:g} is not between 0 and 1", "give a share such as 0.2")
        if count < 2:
            raise InputError(f"{self.yaml}: 'train' has {count} photo, too few to hold some out", "add images")
        wanted = min(max(round(count * held_out), 1), count - 1)
        classes = [{label for index in group for label in self.train_classes[index]} for group in groups]
        photos_with = Counter(label for labels in classes for label in labels)
        rarest = [min(labels, key=lambda label: (photos_with[label], label), default=-1) for labels in classes]
        rng = random.Random(seed)
        order = rng.sample(range(count), count)
        order.sort(key=rarest.__getitem__)  # stable: shuffled within a class
        start = rng.randrange(count)
        held = {index for position in range(wanted) for index in groups[order[(position * count + start) // wanted]]}
        return tuple(sorted(set(range(len(self.train))) - held)), tuple(sorted(held))


def _photo(image: Path) -> Path:
    """What the copies of one photo share."""
    stem, copied, _ = image.name.partition(".rf.")
    return image.with_name(stem) if copied and stem else image


def read_dataset(path: Path, root: Path | None = None, *, polygons: bool = False) -> Dataset:
    """Reads a dataset YAML, finds its images and checks every label.

    A bare name such as `coco8.yaml` that does not exist here means the file of that name that comes with Ultralytics.

    Args:
        path: the dataset YAML.
        root: what its `path` means, where that is known: `Dataset.root` of an earlier reading.
        polygons: whether labels must be polygons, as segmentation needs them.

    Raises:
        InputError: the YAML, a folder or too many labels are unusable; says where and what to do.
    """
    path = _locate(Path(path))
    document = read_yaml(path)
    data = document.data
    names = _names(document)
    _refuse_other_tasks(document)
    tried = [root] if root else _roots(document)
    root = next((folder for folder in tried if folder.is_dir()), tried[0])
    entries = {"train": data.get("train"), "val": data.get("val", data.get("validation")), "test": data.get("test")}
    found: dict[str, list[Path]] = {}
    problems: list[str] = []
    for split, entry in entries.items():
        try:
            found[split] = _images(document, split, entry, root, tried)
        except InputError as error:
            if split != "test":
                raise
            found[split] = []
            if entry is not None:
                problems.append(f"{error.message}; 'test' is not used")
    checked = {split: _check_all(images, len(names), split, polygons) for split, images in found.items()}
    problems += _faults(path, checked)
    good = {split: [image for image in images if not image.fault] for split, images in checked.items()}
    for split in ("train", "val"):
        _refuse_unlabelled(document, split, good[split])
    if good["test"] and not any(image.classes for image in good["test"]):
        problems.append(f"{path}: 'test' has no labelled object; it is not used")
        good["test"] = []
    if shared := len({*map(os.path.realpath, found["train"])} & {*map(os.path.realpath, found["val"])}):
        problems.append(f"{path}: {shared} images of 'val' are in 'train' too; accuracy on 'val' will flatter")
    if absent := _absent(names, good["train"]):
        problems.append(f"{path}: {absent}; no architecture can learn that")
    lines = sorted(image.digest_line for images in checked.values() for image in images)
    return Dataset(
        yaml=path,
        root=root.absolute(),
        names=names,
        train=tuple(image.path for image in good["train"]),
        val=tuple(image.path for image in good["val"]),
        test=tuple(image.path for image in good["test"]),
        digest=hashlib.sha256(json.dumps([names, lines]).encode()).hexdigest(),
        problems=tuple(problems),
        train_classes=tuple(image.classes for image in good["train"]),
        files=tuple(lines),
    )


# --- the YAML ---


def _locate(path: Path) -> Path:
    """The YAML that is meant, absolute."""
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in _YAML_SUFFIXES)
        hint = did_you_mean("data.yaml", inside) if len(inside) != 1 else f"did you mean '{path / inside[0]}'?"
        raise InputError(f"{path}: a folder, not a dataset YAML", hint or _EXAMPLE)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"{path}: an image, not a dataset YAML", _EXAMPLE)
    if not path.exists() and path.name == str(path) and (package := importlib.util.find_spec("ultralytics")):
        for folder in package.submodule_search_locations or ():
            if (stock := Path(folder, "cfg", "datasets", path.name)).is_file():
                return stock
    return path.absolute()


def _at(document: Document, key: str) -> str:
    return f"{document.path}:{document.line(key)}"


def _names(document: Document) -> tuple[str, ...]:
    """The class names by number, from `names`, or from `nc` where there are none."""
    data, where = document.data, _at(document, "names")
    names, nc = data.get("names"), data.get("nc")
    if nc is not None:
        try:
            count = int(nc)
            if count != float(nc) or count < 1:
                raise ValueError
        except (TypeError, ValueError):
            raise InputError(f"{_at(document, 'nc')}: 'nc' is {nc!r}", "give the number of classes, 1 or more") from None
        if names is None:
            return tuple(f"class_{index}" for index in range(count))
    if names is None:
        raise InputError(f"{document.path}: no key 'names'", _EXAMPLE)
    if not isinstance(names, list | dict) or not names:
        raise InputError(f"{where}: 'names' must list the classes", "write 'names: [cat, dog]' or '0: cat' lines")
    if isinstance(names, dict):
        try:
            by_number = {int(number): name for number, name in names.items()}
        except (TypeError, ValueError):
            raise InputError(f"{where}: a key of 'names' is not a number", "write '0: cat' lines") from None
        if sorted(by_number) != list(range(len(names))):
            raise InputError(f"{where}: 'names' must be numbered 0 to {len(names) - 1}", "number the classes from 0")
        names = [by_number[number] for number in range(len(names))]
    if nc is not None and count != len(names):
        raise InputError(f"{_at(document, 'nc')}: 'nc' is {nc}, but 'names' has {len(names)}", "remove 'nc'")
    return tuple(str(name) for name in names)


def _refuse_other_tasks(document: Document) -> None:
    data = document.data
    if data.get("kpt_shape") is not None:
        raise InputError(f"{_at(document, 'kpt_shape')}: a dataset of keypoints", "give a dataset of boxes or polygons")
    if data.get("channels", 3) != 3:
        raise InputError(
            f"{_at(document, 'channels')}: images of {data['channels']} channels", "give a dataset of colour images"
        )


def _roots(document: Document) -> list[Path]:
    """Where `path` may point to, likeliest first: beside the YAML, the working folder, Ultralytics' datasets folder."""
    named = document.data.get("path")
    if named is None or named == "":
        return [document.path.parent]
    if not isinstance(named, str):
        raise InputError(f"{_at(document, 'path')}: 'path' must be a folder's path", "write it in quotation marks")
    bases = [document.path.parent, Path.cwd(), *_ultralytics_datasets()]
    return list(dict.fromkeys(base / named for base in bases))


def _ultralytics_datasets() -> Iterable[Path]:
    """The datasets folder in Ultralytics' settings, where there are any (importing Ultralytics would take seconds)."""
    from platformdirs import user_config_path  # noqa: PLC0415  only for YAMLs with a relative path

    named = os.environ.get("YOLO_CONFIG_DIR")
    config = Path(named).expanduser() if named else user_config_path(roaming=True)
    try:
        settings = json.loads((config / "Ultralytics" / "settings.json").read_text(encoding="utf-8"))
        return [Path(settings["datasets_dir"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []


# --- images ---


def _images(document: Document, split: str, entry: Any, root: Path, tried: list[Path]) -> list[Path]:
    """The images of a split, sorted, each once, whatever paths lead to it; those of lists may be missing."""
    if not entry:
        raise InputError(f"{document.path}: no key '{split}'", _EXAMPLE)
    parts = entry if isinstance(entry, list) else [entry]
    if not all(isinstance(part, str) for part in parts):
        raise InputError(f"{_at(document, split)}: '{split}' must be a folder, a .txt list, or a list of these", _EXAMPLE)
    images: set[Path] = set()
    for part in parts:
        place = (root / part).resolve()
        if not place.exists() and part.startswith("../"):
            place = (root / part[3:]).resolve()  # as Ultralytics does, for the YAMLs that Roboflow writes
        if place.is_dir():
            images.update(_in_folder(place))
        elif place.is_file():
            images.update(_in_list(place, root))
        else:
            missing = place if root.is_dir() else " or ".join(str(folder / part) for folder in tried)
            hint = "correct 'path' or the folder in the YAML"
            if document.data.get("download"):
                hint = "nas downloads nothing: fetch the dataset first, then let 'path' name its folder"
            raise InputError(f"{_at(document, split)}: images of '{split}' not found: {missing}", hint)
    if not images:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"{_at(document, split)}: no images of '{split}' in {', '.join(parts)}", f"known are {known}")
    # Not the real path itself: labels lie beside the link.
    return sorted({os.path.realpath(image): image for image in sorted(images, reverse=True)}.values())


def _in_folder(folder: Path) -> Iterable[Path]:
    """Images at any depth, hidden files and folders left out, links to folders followed (once each)."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (Path(place, file) for file in files if _is_image(file))
        seen.add(real)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  fast


def _in_list(file: Path, root: Path) -> Iterable[Path]:
    """Images of a `.txt` list; their paths are absolute or relative to the list, the dataset or the working folder."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a readable list of images", "give a folder, or a text file of paths") from error
    for line in lines:
        if (name := line.strip()) and _is_image(Path(name).name):
            places = [file.parent / name, root / name, Path.cwd() / name]
            yield next((place for place in places if place.is_file()), places[0])


# --- labels ---


@dataclass(frozen=True)
class _Checked:
    path: Path
    digest_line: str
    labelled: bool = False
    classes: tuple[int, ...] = ()
    fault: InputError | None = None


def _check_all(images: list[Path], nc: int, split: str, polygons: bool) -> list[_Checked]:
    with ThreadPoolExecutor(8) as pool:  # on network disks, waiting is what takes the time
        return list(pool.map(lambda image: _check_one(image, nc, split, polygons), images))


def _check_one(image: Path, nc: int, split: str, polygons: bool) -> _Checked:
    """Whether an image is there and its labels are good; whether it can be decoded shows when it is."""
    path = label_path(image)
    place = image.as_posix().rpartition("/images/")[2] if "/images/" in image.as_posix() else image.name
    try:
        size = image.stat().st_size
        content = path.read_bytes() if path.is_file() else None
    except FileNotFoundError:
        return _Checked(image, f"{split} {place} missing", fault=InputError(f"{image}: no such image"))
    except OSError as error:
        return _Checked(image, f"{split} {place} unreadable", fault=InputError(f"{error.filename}: {error.strerror}"))
    line = f"{split} {place} {size} {'' if content is None else hashlib.sha256(content).hexdigest()}"
    if content is None:
        return _Checked(image, line)
    try:
        rows = parse_labels(content, nc, path, polygons=polygons)
    except InputError as error:
        return _Checked(image, line, labelled=True, fault=error)
    return _Checked(image, line, labelled=True, classes=tuple(sorted({int(row[0]) for row in rows})))


def _faults(path: Path, checked: dict[str, list[_Checked]]) -> list[str]:
    """What is wrong with images that can be left out.

    Raises:
        InputError: these are too many.
    """
    faults = [image.fault for images in checked.values() for image in images if image.fault]
    total = sum(map(len, checked.values()))
    if len(faults) > TOLERATED_FAULTS * total:
        if all(isinstance(fault, NoPolygonError) for fault in faults):
            others = f" (and so in {len(faults) - 1} other files)" * (len(faults) > 1)
            raise InputError(f"{faults[0].message}{others}", faults[0].hint)
        first = "".join(f"\n  {fault.message}" for fault in faults[:3])
        raise InputError(
            f"{path}: {len(faults)} of {total} images cannot be used, the first:{first}",
            f"correct these; up to {TOLERATED_FAULTS:.0%} would be left out",
        )
    return [f"{fault.message}; the image is left out" for fault in faults]


def _absent(names: tuple[str, ...], images: list[_Checked]) -> str:
    """The classes that no image of `train` shows, in words; none gives nothing."""
    seen = {label for image in images for label in image.classes}
    absent = [name for label, name in enumerate(names) if label not in seen]
    if not absent:
        return ""
    listed = ", ".join(f"'{name}'" for name in absent[:5]) + (", …" if len(absent) > 5 else "")
    return f"{len(absent)} of {len(names)} classes never occur in 'train': {listed}"


def _refuse_unlabelled(document: Document, split: str, images: list[_Checked]) -> None:
    where = _at(document, split if split in document.data else "validation")
    if not images:
        raise InputError(f"{where}: no usable images in '{split}'", "correct the labels of this split")
    if not any(image.labelled for image in images):
        raise InputError(
            f"{where}: none of the {len(images)} images of '{split}' has a label file, as {label_path(images[0].path)}",
            "images lie in a folder 'images', their labels at the same place in a folder 'labels' beside it",
        )
    if not any(image.classes for image in images):
        raise InputError(f"{where}: the label files of '{split}' are all empty", "label some objects in this split")
