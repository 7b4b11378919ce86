"""Run as ``python -m gap_bioimage``."""

from gap_bioimage.cli import main

main()
