"""GPTCache, the strongest cache of its kind that can be installed, judging the same candidates.

Run with an interpreter that has ``gptcache`` (named by ``$GPTCACHE_PYTHON``; never this project's own):

    python peer.py IN.npy OUT.npy

IN holds the cosine similarity of each candidate, OUT whether GPTCache as shipped would serve it: its
``SearchDistanceEvaluation`` on the squared Euclidean distance (what its default vector base gives), against its default
``similarity_threshold``, as in ``gptcache.adapter``. Its model-based evaluations fetch their weights from a network and
are not run. Since the evaluation is monotone in the cosine, GPTCache with a tuned threshold is the row "cosine".
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def served(cosines: Any) -> Any | None:
    """Which candidates GPTCache serves; None where it is not installed."""
    import numpy as np

    python = os.environ.get("GPTCACHE_PYTHON")
    if not python:
        return None
    with tempfile.TemporaryDirectory() as folder:
        asked, said = Path(folder, "in.npy"), Path(folder, "out.npy")
        np.save(asked, cosines)
        done = subprocess.run([python, __file__, str(asked), str(said)], check=False, capture_output=True)
        return np.load(said) if done.returncode == 0 else None


def _judge(asked: str, said: str) -> None:
    import numpy as np
    from gptcache.config import Config  # type: ignore[import-not-found]
    from gptcache.similarity_evaluation import SearchDistanceEvaluation  # type: ignore[import-not-found]

    evaluation, config = SearchDistanceEvaluation(), Config()
    least, most = evaluation.range()
    needed = (most - least) * config.similarity_threshold
    cosines = np.load(asked)
    flat = [
        evaluation.evaluation({}, {"search_result": (2.0 - 2.0 * cosine, 0)}) >= needed
        for cosine in cosines.ravel()
    ]
    np.save(said, np.array(flat).reshape(cosines.shape))


if __name__ == "__main__":
    _judge(sys.argv[1], sys.argv[2])
