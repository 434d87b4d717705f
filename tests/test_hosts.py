"""Where a resumed search trains, and how many at once."""

from __future__ import annotations

from dataclasses import replace

from nas.config import RunConfig
from nas.hardware import default_workers
from nas.hosts import placed_again

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
