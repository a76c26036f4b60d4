"""``python -m edgeid`` is the command ``edgeid``."""

from edgeid.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
