"""The command line: verbs that parse, call and print."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; see `app.main`."""
    from gap_bioimage.cli.app import main as run

    run(arguments)
