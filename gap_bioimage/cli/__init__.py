"""The command line: verbs that parse, call and print, and the reports of errors."""

import os
import sys
import warnings
from typing import Annotated

import typer

from gap_bioimage.cli import denoising, images, models, zips
from gap_bioimage.cli.console import complain, report_error, show_log, show_warning
from gap_bioimage.cli.options import Verb, grouped

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Photon counts in, a shareable denoiser out: train, denoise, export to bioimage.io, validate.

Most users need three commands:
\b
  gap-bioimage inspect IMAGE                check for photon counts, and see what to do next
  gap-bioimage train IMAGES --out RUN       train on these images alone
  gap-bioimage denoise RUN IMAGE OUT.tif    denoise an image with the result
""",
    epilog="--debug, anywhere in a command, shows tracebacks.",
)

_GROUPS = {
    "Images": (images.inspect, images.calibrate, images.simulate),
    "Models": (models.train, denoising.denoise, denoising.sample, denoising.generate, models.info, models.demo),
    "Model zips": (models.export, zips.validate, zips.repair, zips.submit_check),
}
_RESUMING = {
    "train": "; the same command with --resume continues",
    "denoise": "; the same command continues a .zarr, and begins any other file again",
    "sample": "; the same command continues",
}
for _group, _verbs in _GROUPS.items():
    for _verb in _verbs:
        app.command(_verb.__name__.replace("_", "-"), cls=Verb, rich_help_panel=_group)(grouped(_verb))


def _version(wanted: bool) -> None:
    if wanted:
        import gap_bioimage

        print(gap_bioimage.__version__)
        raise typer.Exit


_Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]


@app.callback()
def _options(context: typer.Context, version: _Version = False) -> None:
    if context.invoked_subcommand == "validate":
        context.default_map = {"validate": zips.configured()}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error prints one sentence and exits with code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    # before torch is imported: threads that spin while waiting slow down a run beside other jobs up to 30 times
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warnings.showwarning = show_warning
    show_log("--quiet" in arguments)
    try:
        code = app([a for a in arguments if a != "--debug"], standalone_mode=False, prog_name="gap-bioimage")
    except Exception as error:
        if debug:
            raise
        code = report_error(error)
    except KeyboardInterrupt:
        code = 130
    if code == 130:  # newer versions of typer return it after Ctrl-C, without a message
        verb = next((a for a in arguments if not a.startswith("-")), "")
        complain(f"stopped{_RESUMING.get(verb, '')}")
    sys.exit(code if isinstance(code, int) else 0)
