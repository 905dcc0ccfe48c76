"""The ``forze`` command."""


def main() -> None:
    """Run the command line."""
