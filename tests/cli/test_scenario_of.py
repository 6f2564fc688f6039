"""From a configuration to what is simulated."""

from __future__ import annotations

import pytest

from apportion.cli._scenario import scenario_of
from apportion.serve.config.reader import loads
from apportion.simulate.profile import Profile

CONFIG = """
keys: [{name: me, secret: sk-me}]
endpoints:
  box: {kind: local, weights: smollm2-135m-instruct, slots: SLOTS}
models: {m: {endpoints: [box]}}
"""
MEASURED = Profile(name="box", tokens=(1.0,), seconds=(0.01,), slots=4, kv_tokens=4096)


@pytest.mark.parametrize(("slots", "kv_tokens"), [(1, 1024), (4, 4096), (6, 6144)])
def test_the_slots_of_a_local_engine_are_the_configurations(slots: int, kv_tokens: int) -> None:
    """It would be started with so many, each with its own memory, however many it was measured with."""
    config = loads(CONFIG.replace("SLOTS", str(slots)), "apportion.yaml")
    profile = scenario_of(config, profiles_of={"box": MEASURED}).endpoints[0].profile
    assert profile is not None
    assert (profile.slots, profile.kv_tokens) == (slots, kv_tokens)
