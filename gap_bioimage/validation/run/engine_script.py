"""Run a model in another interpreter: this file is run by that interpreter, and needs torch alone.

    PYTHON engine_script.py versions
    PYTHON engine_script.py run WEIGHTS FOLDER REPEATS
    PYTHON engine_script.py core RDF WEIGHTS_FORMAT...

``run`` reads ``FOLDER/input_N.bin`` (float32) with shapes in ``inputs.json``, runs them ``REPEATS`` times (engines
compile a graph while it runs for the second time), and leaves ``output_N.bin`` of the last run with ``outputs.json``.
Each answer is a line of JSON; the last one counts, ``run`` tells the seconds of each run before it. Written for
Python 3.6 and torch 1.8 on.
"""

import array
import json
import os
import sys
import time
from typing import Any


def versions(tell: Any) -> Any:
    """Tell which Python, torch and bioimageio.core this is."""
    found = {"python": sys.version.split()[0], "torch": None, "core": None}
    try:
        import torch

        found["torch"] = str(torch.__version__)
    except ImportError:
        return found
    try:
        import bioimageio.core

        found["core"] = str(getattr(bioimageio.core, "__version__", "of unknown version"))
    except Exception:  # older ones fail in many ways beside newer libraries
        return found
    return found


def run(tell: Any, weights: str, folder: str, repeats: str) -> Any:
    """Run a TorchScript file on the inputs in a folder, and leave its outputs there."""
    import torch

    with open(os.path.join(folder, "inputs.json")) as file:
        shapes = json.load(file)
    inputs = []
    for number, shape in enumerate(shapes):
        values = array.array("f")
        with open(os.path.join(folder, "input_%d.bin" % number), "rb") as binary:  # noqa: UP031
            values.frombytes(binary.read())
        inputs.append(torch.tensor(values, dtype=torch.float32).reshape(shape))
    # as a consumer's engine loads it: no eval()
    module = torch.jit.load(weights, map_location="cpu")  # type: ignore[no-untyped-call]
    outputs = []
    for _ in range(int(repeats)):
        start = time.time()
        with torch.no_grad():
            outputs = module(*inputs)
        tell({"ran": round(time.time() - start, 2)})
    if isinstance(outputs, torch.Tensor):
        outputs = [outputs]
    written = []
    for number, output in enumerate(outputs):
        output = output.detach().to(torch.float32).contiguous()
        with open(os.path.join(folder, "output_%d.bin" % number), "wb") as binary:  # noqa: UP031
            binary.write(array.array("f", output.reshape(-1).tolist()).tobytes())
        written.append(list(output.shape))
    with open(os.path.join(folder, "outputs.json"), "w") as file:
        json.dump(written, file)
    return {"outputs": len(written)}


def core(tell: Any, rdf: str, *weights_formats: str) -> Any:
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
    """Do what the arguments say, and print the answers."""
    # whatever is printed meanwhile goes to standard error, so that the answers stand alone
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(message: Any) -> None:
        answer.write(json.dumps(message) + "\n")
        answer.flush()

    jobs: Any = {"versions": versions, "run": run, "core": core}
    try:
        result = jobs[sys.argv[1]](tell, *sys.argv[2:])
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    tell(result)


if __name__ == "__main__":
    main()
