"""Read and write images: one lazy image per file or part of a file, with named axes and pixel sizes in micrometres."""

from gap_bioimage.io.image import as_image, as_images, pixel_size_um, sum_frames
from gap_bioimage.io.read import read_images, read_photons
from gap_bioimage.io.write import check_output, write_image

__all__ = ["as_image", "as_images", "check_output", "pixel_size_um", "read_images", "read_photons", "sum_frames"]
__all__ += ["write_image"]
