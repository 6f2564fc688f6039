"""apportion decides where the next unit of compute goes and keeps exact books.

Importing the package is light and touches no network; the parts are imported from
their rooms (``apportion.core``, ``apportion.serve``, ...).
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
