"""Attempts on a host that does not see the driver's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset
from nas.execution import mirror
from nas.execution.executor import Attempt
from nas.execution.mirror import Receiver, Sender, Tail


class Store(list[bytes]):
    def put(self, content: bytes) -> int:
        self.append(content)
        return len(self) - 1


@pytest.fixture
def store() -> Store:
    return Store()


def test_a_dataset_is_the_same_elsewhere_and_travels_once(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "CHUNK_BYTES", 2**18)
    own = read_dataset(builtin_dataset())
    attempt = Attempt("a", "k", {"train": {"data": str(own.yaml), "root": str(own.root), "cache": "/driver/cache", "batch": 8}})
    sender, beats = Sender(store.put), []
    parcel = sender.parcel(attempt, "there")
    assert len(store) > 1 and sender.parcel(attempt, "elsewhere").dataset is parcel.dataset
    there = Receiver(tmp_path / "there", store.__getitem__, lambda: beats.append(1))
    told = there.accept(parcel)["payload"]["train"]
    assert len(beats) == len(store) and told["batch"] == 8 and told["cache"] != "/driver/cache"
    found = read_dataset(Path(told["data"]), Path(told["root"]))
    prefix = told["root"]
    assert [f"{prefix}{image}" for image in own.train] == [str(image) for image in found.train]
    assert (found.names, found.train_classes, found.problems[1:]) == (own.names, own.train_classes, ())
    assert found.split(0.2, 7) == own.split(0.2, 7)
    assert [image.read_bytes() for image in own.train[:9]] == [image.read_bytes() for image in found.train[:9]]
    assert there.restored({"skipped": [str(found.train[0])]}) == {"skipped": [str(own.train[0])]}
    parts = sender.parcel(Attempt("b", "k", {**attempt.payload["train"], "part": "val"}), "there")
    val = there.accept(parts)["payload"]
    images = read_dataset(Path(val["data"]), Path(val["root"])).val
    assert [image.read_bytes() for image in images] == [image.read_bytes() for image in own.val] and val["root"] != prefix
    store.clear()  # nobody asks for a chunk again
    assert Receiver(tmp_path / "there", store.__getitem__).accept(parcel)["payload"]["train"]["data"] == told["data"]


def test_files_travel_when_they_have_changed_and_come_back_when_they_were_written(tmp_path: Path, store: Store) -> None:
    here = tmp_path / "here"
    files = {name: here / name for name in ("start.pt", "training.safetensors", "weights.pt", "block.py")}
    library = here / "library"
    library.mkdir(parents=True)
    (library / "old").write_bytes(b"old")
    for name in ("start.pt", "training.safetensors", "block.py"):
        files[name].write_bytes(name.encode())
    payload = {
        "assemble": {"library": str(library), "teacher": str(files["start.pt"])},
        "train": {
            "weights": str(files["start.pt"]),
            "state": str(files["training.safetensors"]),
            "keep": str(files["weights.pt"]),
            "blocks": [str(files["block.py"])],
            "names": ["/no path"],
        },
    }
    attempt, sender = Attempt("a", "k", payload, log=str(here / "worker.log")), Sender(store.put)
    parcel = sender.parcel(attempt, "there")
    assert set(parcel.files) == {str(files[n]) for n in ("start.pt", "training.safetensors", "block.py")} | {
        str(library / "old")
    }
    there = Receiver(tmp_path / "there", store.__getitem__)
    told = there.accept(parcel)
    train = told["payload"]["train"]
    assert train["names"] == ["/no path"] and Path(train["blocks"][0]).read_bytes() == b"block.py"
    assert all(str(tmp_path / "there") in path for path in (told["log"], train["keep"], train["state"]))

    Path(train["keep"]).write_bytes(b"trained")
    Path(train["state"]).unlink()
    Path(told["payload"]["assemble"]["library"], "new").write_bytes(b"new")
    Path(train["weights"]).write_bytes(b"not to come back")
    back = there.returned(payload)
    assert back == {
        str(files["weights.pt"]): b"trained",
        str(files["training.safetensors"]): None,
        str(library / "new"): b"new",
    }
    sender.deliver(attempt, "there", back | {str(tmp_path / "strange"): b"x", f"{library}/../out": b"x"})
    assert files["weights.pt"].read_bytes() == b"trained" and (library / "new").read_bytes() == b"new"
    assert not files["training.safetensors"].exists()
    assert not (tmp_path / "strange").exists() and not (here / "out").exists()

    assert not Path(train["keep"]).exists()
    assert sender.parcel(attempt, "there").files == {str(files["weights.pt"]): b"trained"}
    files["weights.pt"].unlink()
    files["block.py"].write_bytes(b"another block.py")
    assert set(sender.parcel(attempt, "there").files) == {str(files["block.py"])}
    assert len(sender.parcel(attempt, "elsewhere").files) == 4

    # what a lost attempt has left there does not count
    Path(train["state"]).write_bytes(b"of a lost one")
    there.accept(sender.parcel(attempt, "there"))
    assert not Path(train["state"]).exists()


def test_what_a_lost_attempt_has_finished_comes_back_with_the_next(tmp_path: Path, store: Store) -> None:
    library = tmp_path / "here" / "library"
    library.mkdir(parents=True)
    (library / "known").write_bytes(b"known")
    attempt, sender, there = Attempt("a", "k", {"library": str(library)}), Sender(store.put), tmp_path / "there"
    lost = Path(Receiver(there, store.__getitem__).accept(sender.parcel(attempt, "there"))["payload"]["library"])
    (lost / "learned").write_bytes(b"learned")  # and then its host was gone
    again = Receiver(there, store.__getitem__)
    again.accept(sender.parcel(attempt, "there"))
    assert again.returned(attempt.payload) == {str(library / "learned"): b"learned"}
    (library / "known").unlink()  # what the driver removes is not brought back to it
    third = Receiver(there, store.__getitem__)
    sender.deliver(attempt, "there", {str(library / "learned"): b"learned"})
    third.accept(sender.parcel(attempt, "there"))
    assert third.returned(attempt.payload) == {}


def test_a_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    tail = Tail(log)
    assert tail.more() == ""
    with log.open("a") as file:
        file.write("after\n")
    assert (tail.more(), tail.more()) == ("after\n", "")
    assert Tail(tmp_path / "none").more() == ""


def test_what_a_neighbour_is_writing_does_not_travel(tmp_path: Path, store: Store) -> None:
    """Two attempts of a host share a library: what one is about may be gone when the other looks at it."""
    library = tmp_path / "here" / "library"
    library.mkdir(parents=True)
    (library / "done").write_bytes(b"done")
    (library / ".done.7.tmp").write_bytes(b"half")
    (library / "gone").symlink_to(library / "nowhere")
    attempt = Attempt("a", "k", {"library": str(library)})
    there = Receiver(tmp_path / "there", store.__getitem__)
    parcel = Sender(store.put).parcel(attempt, "there")
    assert set(parcel.files) == {str(library / "done")}
    other = Path(there.accept(parcel)["payload"]["library"])
    (other / ".part.7.tmp").write_bytes(b"half")
    (other / "new").write_bytes(b"new")
    assert there.returned(attempt.payload) == {str(library / "new"): b"new"}
