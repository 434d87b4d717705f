"""Where latency is measured, and when two machines count as one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nas.errors import InputError
from nas.latency.site import Site, as_sent, differences, site
from nas.latency.target import OWN, Target, own_version

HERE = {"target": "t", "machine": "a processor (model 7) (one)", "gpu": "a GPU", "onnxruntime": "1.2", OWN: "0.1"}


def test_a_site_of_this_machine() -> None:
    here = site("cpu:onnxruntime").at(160)
    full = Target.parse("cpu:onnxruntime").at(160)
    assert (here.target, here.stamp, here.host, str(here)) == (full, full.stamp(), None, str(full))
    assert "found" in str(site("auto")) or "default" in str(site("auto"))
    with pytest.raises(InputError, match="unknown target"):
        site("cpu:abacus")


def test_a_site_elsewhere_says_where() -> None:
    there = Site(Target("cpu:torch"), "", HERE, "10.0.0.7")
    assert str(there).endswith(", on 10.0.0.7 (a processor (model 7) (one) with a GPU), a host of the cluster")


def test_hosts_are_alike_whatever_their_name_and_nothing_else() -> None:
    other = {**HERE, "machine": "a processor (model 7) (two)"}
    assert differences(HERE, other) == ["a processor (model 7) (one), now a processor (model 7) (two)"]
    assert differences(HERE, other, but_for_host=True) == []
    for key, value in (("machine", "another (one)"), ("gpu", "another"), ("onnxruntime", "1.3"), ("target", "u")):
        assert len(differences(HERE, {**HERE, key: value}, but_for_host=True)) == 1


def test_our_own_code_is_the_driver_s() -> None:
    assert as_sent({**HERE, OWN: "missing"}) == {**HERE, OWN: own_version()}
    assert as_sent({"table": "digest"}) == {"table": "digest"}
    assert replace(Site(Target("cpu:torch"), "", HERE), host="h").machine == ["a processor (model 7) (one)", "a GPU"]
