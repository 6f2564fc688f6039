"""``python -m apportion.cli``, for where the program is not on the path."""

from apportion.cli import main

main()
