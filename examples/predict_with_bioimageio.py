"""Run an exported zip through bioimageio.core, without gap-bioimage.

    python examples/predict_with_bioimageio.py model.zip counts.tif denoised.tif

A stack runs through a 2D model plane by plane.
"""

from __future__ import annotations

import sys

import numpy as np
import tifffile
from bioimageio.core import Tensor, create_prediction_pipeline, predict
from bioimageio.spec import load_model_description


def denoise(zip_path: str, counts: np.ndarray) -> np.ndarray:
    """Return the expected photons per pixel of counts (y, x) or (z, y, x), same shape."""
    model = load_model_description(zip_path)
    axes = [str(axis.id) for axis in model.inputs[0].axes]  # batch, channel, (z,) y, x
    pipeline = create_prediction_pipeline(model, weights_format="torchscript")
    rates = []
    for item in counts.reshape(-1, *counts.shape[-(len(axes) - 2) :]):
        tensor = Tensor.from_numpy(item[None, None].astype(np.float32), dims=axes)
        rates.append(predict(model=pipeline, inputs={"photons": tensor}).members["rate"].to_numpy()[0, 0])
    return np.stack(rates).reshape(counts.shape)


if __name__ == "__main__":
    zip_file, counts_file, out_file = sys.argv[1:]
    rate = denoise(zip_file, tifffile.imread(counts_file))
    tifffile.imwrite(out_file, rate, imagej=True, metadata={"axes": "ZYX"[-rate.ndim :]})
