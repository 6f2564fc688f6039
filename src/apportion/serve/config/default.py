"""The configuration of ``apportion up`` when there is no file: one small real model, run by the proxy."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from apportion.serve.config.reader import loads
from apportion.serve.config.schema import Config, Key
from apportion.serve.config.secret import Secret

API_KEY = "APPORTION_API_KEY"

DEFAULT = """\
# SmolLM2-135M-Instruct on the processor of this machine. Its weights (92 MB) are fetched once.
endpoints:
  smollm2:
    kind: local
    weights: smollm2-135m-instruct
    slots: 4
    context_tokens: 4096

# What clients ask for. `default` is a second name of the same model.
models:
  smollm2-135m-instruct: smollm2
  default: smollm2
"""


def default_config(environ: Mapping[str, str] | None = None) -> Config:
    """The embedded default. ``APPORTION_API_KEY`` in ``environ``, if set, is the key that clients need."""
    environ = os.environ if environ is None else environ
    config = loads(DEFAULT, "the embedded default", environ=environ)
    secret = environ.get(API_KEY, "").strip()
    if not secret:
        return config
    return msgspec.structs.replace(config, keys=[Key(name="default", secret=Secret(secret), admin=True)])
