"""`python -m ribonanzamamba` and the command `ribonanzamamba`."""

from ribonanzamamba.cli import app


def main() -> None:
    """Run the command line."""
    app(prog_name="ribonanzamamba")


if __name__ == "__main__":
    main()
