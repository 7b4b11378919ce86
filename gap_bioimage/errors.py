"""Named errors, each derived from the builtin that a caller would expect to catch.

Every message states what was given, what was expected and what to do.
"""


class GapError(Exception):
    """Base of all errors that a user can fix; the command line prints them as one sentence."""


class NotPhotonCountsError(GapError, ValueError):
    """The pixel values cannot be photon counts."""


class AxesError(GapError, ValueError):
    """The axes of an image are unknown, or do not fit the request."""


class UnreadableImageError(GapError, OSError):
    """A file is not an image that can be read."""


class ConfigError(GapError, ValueError):
    """A configuration has unknown keys or impossible values."""


class CheckpointError(GapError, ValueError):
    """A file is not a model that can be loaded."""


class CardError(GapError, ValueError):
    """A model card has missing or wrong fields; the message lists all of them."""


class ExportError(GapError, RuntimeError):
    """A model zip did not pass its checks and was not written."""


class UnreadableModelError(GapError, OSError):
    """A zip, folder or yaml is not a bioimage.io model that can be read."""


class TrainedRangeError(GapError, ValueError):
    """An input is brighter than the images that the network was trained on."""


class BrokenNetworkError(GapError, ArithmeticError):
    """A network returned values that are not finite."""


class OutputError(GapError, OSError):
    """An output cannot be written."""


class GapWarning(UserWarning):
    """Base of all warnings about images, models and results."""


class CountsWarning(GapWarning):
    """Values may not be photon counts."""


class HotPixelWarning(CountsWarning):
    """Pixels hold more counts than light can explain, and are excluded."""


class EmptyImageWarning(GapWarning):
    """Images, frames, planes or channels hold no photons."""


class TrainedRangeWarning(GapWarning):
    """An image is brighter or darker than the training images."""


class NetworkWarning(GapWarning):
    """A network contradicts the photons or itself: it was trained too briefly, or on different images."""
