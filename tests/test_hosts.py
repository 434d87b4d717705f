"""Where a search trains, how many trials at once, and what no host can give; and where a resumed one does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from nas import hardware
from nas.config import RunConfig
from nas.errors import InputError, NasError, UnreachableError
from nas.hardware import default_workers
from nas.hosts import placed_again, trials_at_once

CONFIG = RunConfig("d", "s", "9trials", "cpu:onnxruntime", workers=7)


def test_a_search_of_this_host_stays_as_it_was() -> None:
    assert placed_again(CONFIG, {}) == (CONFIG, None)
    assert placed_again(replace(CONFIG, workers=3), {"workers": 3})[0].workers == 3


def test_a_search_of_a_cluster_goes_on_here() -> None:
    """As many at once as this host holds, not as the cluster held; and as many as are asked for, where they are."""
    away = replace(CONFIG, executor="local", address="10.0.0.1:6379", lane="10.0.0.2", elastic=True, workers=64)
    here, _ = placed_again(away, {"executor": "local"})
    assert (here.executor, here.address, here.lane, here.elastic) == ("local", None, None, False)
    assert here.workers == default_workers(0)
    asked = replace(away, workers=2)
    assert placed_again(asked, {"executor": "local", "workers": 2})[0].workers == 2


def cards(monkeypatch: pytest.MonkeyPatch, *models: str) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: {str(number): model for number, model in enumerate(models)})


@dataclass
class Cluster:
    """Hosts with so many GPUs, one trial on each."""

    hosts: tuple[int, ...]

    @property
    def most_gpus(self) -> int:
        return max(self.hosts, default=0)

    def workers(self, cores: float, gpus: float) -> int:
        assert cores == max(1, int(gpus)), "a core for each GPU"
        return sum(int(host / gpus) for host in self.hosts)


def test_gpus_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, "H100", "H100", "H100", "L4")
    assert [trials_at_once(share, None, None, cuda=True) for share in (1, 0.5, 0.3, 2, 3)] == [4, 8, 12, 1, 1]
    assert trials_at_once(0.25, None, 3, cuda=True) == 3
    assert trials_at_once(2, Cluster((8, 3, 0)), None, cuda=True) == 5
    assert trials_at_once(2, Cluster((8, 3, 0)), 99, cuda=True) == 99  # nodes may come


@pytest.mark.parametrize(
    ("models", "share", "cluster", "workers", "message", "hint"),
    [
        (
            "AA",
            1.5,
            None,
            None,
            "--gpus-per-trial 1.5: neither a share of one GPU nor 1 to 64 of them",
            "a whole number: 1 or 2",
        ),
        ("AA", 0, None, None, "--gpus-per-trial 0", "for example 0.25, or a whole number: 1"),
        ("AA", float("nan"), None, None, "--gpus-per-trial nan", "a whole number: 1"),
        ("AA", 1e9, None, None, "--gpus-per-trial 1e\\+09", "a whole number: 64"),
        ("AA", 4, None, None, "--gpus-per-trial 4: this host has 2 GPUs that can train one trial", "--gpus-per-trial 2"),
        ("ABA", 3, None, None, "this host has 2 GPUs that can", "--gpus-per-trial 2"),
        ("A", 2, None, None, "this host has 1 GPU that can", "--gpus-per-trial 1"),
        ("", 4, Cluster((2, 3)), None, "no host of the cluster has more than 3 GPUs", "--gpus-per-trial 3"),
        ("AA", 1, None, 5, "this host has GPUs for 2 at once", "--workers 2, or --gpus-per-trial 0.333"),
        ("AAAA", 2, None, 3, "this host has GPUs for 2 at once", "--workers 2, or --gpus-per-trial 1"),
    ],
)
def test_what_no_host_can_give(monkeypatch, models, share, cluster, workers, message, hint) -> None:
    cards(monkeypatch, *models)
    with pytest.raises(InputError, match=message) as raised:
        trials_at_once(share, cluster, workers, cuda=True)
    assert str(raised.value.hint).endswith(hint)


def test_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch)
    for where in (None, Cluster((0,))):
        with pytest.raises(UnreachableError, match="has none"):
            trials_at_once(1, where, None, cuda=True)
    for share in (0.5, 2):
        with pytest.raises(InputError, match="proxies do not train on a GPU"):
            trials_at_once(share, None, None, cuda=False)


def test_a_search_goes_on_with_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, *"AAAA")
    began = replace(CONFIG, device="cuda", workers=4)
    assert placed_again(began, {}) == (began, None)
    two, _ = placed_again(replace(began, gpus_per_trial=2), {"gpus_per_trial": 2})
    assert (two.workers, two.devices, two.held) == (2, 2, 2)
    cards(monkeypatch, *"AA")
    assert placed_again(began, {})[0].workers == 2  # as many as there are here
    with pytest.raises(NasError, match="GPUs for 2 at once"):
        placed_again(began, {"workers": 4})
    with pytest.raises(NasError, match="--gpus-per-trial 4: this host has 2 GPUs"):
        placed_again(replace(began, gpus_per_trial=4), {})


def test_a_batch_has_an_image_for_each_gpu() -> None:
    with pytest.raises(InputError, match="a batch has 3 images") as raised:
        replace(CONFIG, device="cuda", gpus_per_trial=4, batch=3)
    assert raised.value.hint == "--set batch=4, or --gpus-per-trial 3"
    assert replace(CONFIG, gpus_per_trial=4, batch=3).devices == 1, "no GPU: nothing is divided"
