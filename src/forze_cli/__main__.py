"""``python -m forze_cli`` is ``forze``."""

from forze_cli import main

if __name__ == "__main__":
    main()
