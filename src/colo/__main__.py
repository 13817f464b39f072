"""``python -m colo`` is ``colo``."""

from colo.cli import main

main()
