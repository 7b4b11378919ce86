"""Run an exported zip through bioimageio.core, without gap-bioimage.

    python examples/predict_with_bioimageio.py model.zip counts.tif denoised.tif

Movies are processed frame by frame, stacks with a 2D model plane by plane.
"""

import sys

import numpy as np
import tifffile
from bioimageio.core import Sample, Tensor, create_prediction_pipeline
from bioimageio.spec import load_model_description


def denoise(zip_path: str, counts: np.ndarray) -> np.ndarray:
    """Return the expected photons per pixel for counts ([t,] [z,] y, x), same shape."""
    model = load_model_description(zip_path)
    axes = [str(axis.id) for axis in model.inputs[0].axes]  # batch, channel, (z,) y, x
    if counts.ndim < len(axes) - 2:
        sys.exit(f"the model needs axes {' '.join(axes[2:])}, the counts have {counts.ndim} axes")
    pipeline = create_prediction_pipeline(model, weights_format="torchscript")
    rates = []
    for item in counts.reshape(-1, *counts.shape[-(len(axes) - 2) :]):
        tensor = Tensor.from_numpy(item[None, None].astype(np.float32), dims=axes)
        sample = Sample(members={model.inputs[0].id: tensor}, stat={}, id="counts")
        # the graph handles borders itself; the padding that is bioimageio.core's default changes them slightly
        result = pipeline.predict_sample_without_blocking(sample, skip_input_padding=True, skip_output_cropping=True)
        rates.append(result.members[model.outputs[0].id].to_numpy()[0, 0])
    return np.stack(rates).reshape(counts.shape)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    zip_file, counts_file, out_file = sys.argv[1:]
    rate = denoise(zip_file, tifffile.imread(counts_file))
    tifffile.imwrite(out_file, rate, imagej=True, metadata={"axes": "TZYX"[-rate.ndim :]})
