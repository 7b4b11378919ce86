"""Run TorchScript in another interpreter's torch: this file is run by that interpreter, and needs torch alone.

    PYTHON engine_script.py versions
    PYTHON engine_script.py run WEIGHTS FOLDER
    PYTHON engine_script.py core RDF WEIGHTS_FORMAT...

``run`` reads ``FOLDER/input_N.bin`` (float32) with shapes in ``inputs.json``, and writes ``output_N.bin`` with
``outputs.json``. Each prints one line of JSON at the end. Written for Python 3.6 and torch 1.8 on.
"""

import array
import json
import os
import sys
from typing import Any


def versions() -> Any:
    """Tell which Python, torch and bioimageio.core this is."""
    found = {"python": sys.version.split()[0], "torch": None, "core": None}
    try:
        import torch

        found["torch"] = str(torch.__version__)
    except ImportError:
        pass
    try:
        import bioimageio.core

        found["core"] = str(getattr(bioimageio.core, "__version__", "of unknown version"))
    except Exception:  # older ones fail in many ways beside newer libraries
        found["core"] = None
    return found


def run(weights: str, folder: str) -> Any:
    """Run a TorchScript file on the inputs in a folder, and leave its outputs there."""
    import torch

    with open(os.path.join(folder, "inputs.json")) as file:
        shapes = json.load(file)
    inputs = []
    for number, shape in enumerate(shapes):
        values = array.array("f")
        with open(os.path.join(folder, f"input_{number}.bin"), "rb") as file:
            values.frombytes(file.read())
        inputs.append(torch.tensor(values, dtype=torch.float32).reshape(shape))
    # as a consumer's engine loads it: no eval()
    module = torch.jit.load(weights, map_location="cpu")  # type: ignore[no-untyped-call]
    with torch.no_grad():
        outputs = module(*inputs)
    if isinstance(outputs, torch.Tensor):
        outputs = [outputs]
    written = []
    for number, output in enumerate(outputs):
        output = output.detach().to(torch.float32).contiguous()
        with open(os.path.join(folder, f"output_{number}.bin"), "wb") as file:
            file.write(array.array("f", output.reshape(-1).tolist()).tobytes())
        written.append(list(output.shape))
    with open(os.path.join(folder, "outputs.json"), "w") as file:
        json.dump(written, file)
    return {"outputs": len(written)}


def core(rdf: str, *weights_formats: str) -> Any:
    """Run the test of bioimageio.core on some weights of a model."""
    from bioimageio.core import test_model

    errors = []
    for name in weights_formats:
        summary = test_model(rdf, weight_format=name)  # type: ignore[arg-type]
        if isinstance(summary, list):  # before 0.6
            found = [str(entry.get("error")) for entry in summary if entry.get("status") != "passed"]
        else:
            found = [str(entry.msg) for detail in summary.details for entry in detail.errors]
            if not found and str(summary.status) != "passed":
                found = ["its status is " + str(summary.status)]
        errors += [name + ": " + text for text in found]
    return {"errors": errors[:3]}


def main() -> None:
    """Do what the arguments say, and print the answer."""
    # whatever is printed meanwhile goes to standard error, so that the answer stands alone
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jobs: Any = {"versions": versions, "run": run, "core": core}
    try:
        result = jobs[sys.argv[1]](*sys.argv[2:])
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    answer.write(json.dumps(result) + "\n")
    answer.flush()


if __name__ == "__main__":
    main()
