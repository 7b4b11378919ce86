"""Run a model in another interpreter: that interpreter runs this file, which needs torch only.

    PYTHON engine_script.py versions | run WEIGHTS FOLDER REPEATS | core RDF WEIGHTS_FORMAT...

The last line printed is the answer, as JSON. Written for Python 3.6, torch 1.8 and newer.
"""

import contextlib
import json
import os
import sys
import time
from typing import Any


def versions() -> Any:
    """Return the versions of torch and bioimageio.core."""
    found: Any = {"torch": None, "core": None}
    with contextlib.suppress(Exception):  # absent, or too old for newer libraries, with all kinds of errors
        import torch

        found["torch"] = str(torch.__version__)
        import bioimageio.core

        found["core"] = str(getattr(bioimageio.core, "__version__", "of unknown version"))
    return found


def run(weights: str, folder: str, repeats: str) -> Any:
    """Run a TorchScript file on ``inputs.pt`` in a folder, and save the last outputs there as ``outputs.pt``."""
    import torch

    inputs = torch.load(os.path.join(folder, "inputs.pt"))
    # as a consumer's engine loads it: no eval()
    module = torch.jit.load(weights, map_location="cpu")  # type: ignore[no-untyped-call]
    durations, outputs = [], []
    for _ in range(int(repeats)):
        start = time.time()
        with torch.no_grad():
            outputs = module(*inputs)
        durations.append(round(time.time() - start, 2))
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    torch.save([output.detach().float().contiguous() for output in outputs], os.path.join(folder, "outputs.pt"))
    return {"took": durations}


def core(rdf: str, *weights_formats: str) -> Any:
    """Run bioimageio.core's test on the given weights formats of a model."""
    from bioimageio.core import test_model

    errors = []
    for name in weights_formats:
        summary = test_model(rdf, weight_format=name)  # type: ignore[arg-type]
        messages = [str(entry.msg) for detail in summary.details for entry in detail.errors]
        if not messages and str(summary.status) != "passed":
            messages = ["its status is " + str(summary.status)]
        errors += [name + ": " + message for message in messages]
    return {"errors": errors[:3]}


if __name__ == "__main__":
    # libraries print to standard error from here on: standard output carries the answer alone
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jobs: Any = {"versions": versions, "run": run, "core": core}
    try:
        result = jobs[sys.argv[1]](*sys.argv[2:])
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    answer.write(json.dumps(result) + "\n")
    answer.flush()
