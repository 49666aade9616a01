from __future__ import annotations

import gc
import weakref

import pytest
from mitmproxy.test import tflow

from llmtap.core.attached import Attached


class Value:
    pass


def test_set_get_pop() -> None:
    attached: Attached[object, Value] = Attached("thing")
    other: Attached[object, Value] = Attached("other")
    flow, value = tflow.tflow(), Value()
    assert attached.get(flow) is None and flow not in attached
    with pytest.raises(KeyError):
        attached[flow]
    attached[flow] = value
    assert attached[flow] is value and attached.get(flow) is value and flow in attached and flow not in other
    attached.pop(flow)
    attached.pop(flow)
    assert flow not in attached


def test_it_lives_as_long_as_its_object() -> None:
    attached: Attached[object, Value] = Attached("thing")
    flow, value = tflow.tflow(), Value()
    attached[flow] = value
    alive = weakref.ref(value)
    del value
    assert alive() is not None
    del flow
    gc.collect()
    assert alive() is None


def test_neither_a_saved_nor_a_copied_flow_has_it() -> None:
    attached: Attached[object, Value] = Attached("thing")
    flow = tflow.tflow(resp=True)
    attached[flow] = Value()
    assert "llmtap" not in repr(flow.get_state())
    assert flow.copy() not in attached
