"""``python -m pomlflow``."""

from __future__ import annotations

from pomlflow.cli import main

if __name__ == "__main__":
    main()
