"""Which model for which request: quality predicted on real answers, and what routing by it saves."""

import os

# One thread for each process, set before numpy is imported: the repetitions run side by side.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
