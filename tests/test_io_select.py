from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_images import one_sentence

from gap_bioimage.errors import AxesError, GapWarning, NotPhotonCountsError
from gap_bioimage.io.image import Metadata, image_of
from gap_bioimage.io.select import choose_channel, choose_frames, frames_of, name_axes

FILE = "movie.tif"
BOUND = st.one_of(st.none(), st.integers(-12, 12))
LENGTHS = {"t": 6, "c": 2, "z": 5, "y": 17, "x": 12, "": 7, "s": 3}


def image(dims, shape=None, **meta):
    """Return an image as a reader opens it, with what the file calls its axes."""
    shape = shape or [LENGTHS.get(dim, 4) for dim in dims]
    return image_of(np.arange(np.prod(shape)).reshape(shape), dims, Metadata(**meta))


@given(start=BOUND, stop=BOUND, step=st.one_of(st.none(), st.integers(1, 5)), count=st.integers(1, 10))
def test_ranges_are_those_of_python(start, stop, step, count):
    text = ":".join("" if part is None else str(part) for part in (start, stop, step))
    expected = list(range(count))[slice(start, stop, step)]
    with nullcontext() if expected else pytest.raises(AxesError):
        frames = frames_of(text, count, FILE)
        assert list(range(count))[frames] == expected
        assert frames.start >= 0


@pytest.mark.parametrize("text", ["", "three", "1.5", "0-5", "1:2:3:4", "::0", "::-1", "0;5", "10", -11])
def test_what_is_no_frame_and_no_range_is_refused(text):
    with pytest.raises(AxesError):
        frames_of(text, 10, FILE)


def test_frames_keep_their_times():
    assert [frames_of(number, 4, FILE) for number in (-4, "-1", 0, "3")] == [0, 3, 0, 3]
    movie = image("tyx", steps={"t": 0.5})
    assert "t" not in choose_frames(movie, 2, FILE).coords
    every = choose_frames(movie, "1::2", FILE)
    np.testing.assert_array_equal(every.t, [0.5, 1.5, 2.5])
    assert every.t.attrs["step"] == 1.0
    assert movie.t.attrs["step"] == 0.5


def test_channels_by_number_or_name():
    names = ["DNA", "dna", "Actin"]
    several = image("cyx", (3, 4, 5), channels=names)
    for channel, place in ((2, 2), ("2", 2), ("dna", 1), ("ACTIN", 2)):
        chosen = choose_channel(several, channel, FILE)
        np.testing.assert_array_equal(chosen, several[place])
        assert str(chosen.c.values) == names[place]
    for wrong in ("Dna", "membrane", "", "-x", 3, "-1", "10"):
        with pytest.raises(AxesError, match="DNA, dna, Actin"):
            choose_channel(several, wrong, FILE)
    for dims, wrong in (("cyx", "DNA"), ("yx", 1)):
        with pytest.raises(AxesError, match=r"movie\.tif"):
            choose_channel(image(dims), wrong, FILE)


@pytest.mark.parametrize(
    ("dims", "named"),
    [
        ("TZCYX", "tzcyx"),
        (["time", "y", "x"], "tyx"),
        (["wavelength", "height", "width"], "cyx"),
        (["Frames", "depth", "Channel", "Y", "X"], "tzcyx"),
        (["plane", "row", "col"], "zyx"),
        (["Timepoints", "ch", "y", "x"], "tcyx"),
        (["z (um)", "y [um]", "X (um)"], "zyx"),
    ],
)
def test_names_that_files_use_are_known(dims, named):
    assert "".join(name_axes(image(dims, (2, 3, 4, 5, 6)[: len(dims)]), None, FILE).dims) == named


@pytest.mark.parametrize(
    ("dims", "shape", "guess"),
    [
        ("QYX", (7, 17, 12), "zyx"),
        ("IYX", (3, 17, 12), "cyx"),
        (["", "", "", ""], (7, 3, 17, 12), "zcyx"),
        ("ZQYX", (2, 7, 17, 12), "ztyx"),
        ("TQYX", (2, 3, 17, 12), "tcyx"),
        (["dim_0", "phony_dim_1", "axis_2"], (7, 17, 12), "zyx"),
        (["t", "t", "y", "x"], (6, 5, 17, 12), "tzyx"),
        (["", "", ""], (17, 12, 3), "yxc"),
        (["", "", ""], (96, 120, 12), "yxz"),
        (["", "", "", ""], (6, 17, 12, 2), "zyxc"),
        (["", "", "", "", ""], (2, 3, 4, 17, 12), "tczyx"),
    ],
)
def test_unknown_axes_are_guessed_around_known_ones(dims, shape, guess):
    with pytest.raises(AxesError, match=f'axes="{guess}"') as error:
        name_axes(image(dims, shape), None, FILE)
    assert ('axes="tyx"' in one_sentence(error)) == (guess == "zyx")  # a movie is as likely as a stack
    assert "".join(name_axes(image(dims, shape), guess, FILE).dims) == guess


def test_planes_that_are_stored_last_are_warned_of():
    with pytest.warns(GapWarning, match='give axes="yxz"'):
        assert name_axes(image(["", "", ""], (96, 120, 12)), "zyx", FILE).dims == ("z", "y", "x")


@pytest.mark.parametrize("letter", ["R", "H", "M", "E", "A", "P", "L", "V", "lifetime", "angle", "foo"])
def test_axes_that_are_none_of_ours_are_never_guessed(letter):
    strange = image([letter, "t", "y", "x"], (2, 6, 17, 12))
    with pytest.raises(AxesError, match=r"2, t 6, y 17, x 12") as error:
        name_axes(strange, None, FILE)
    assert "if they are" not in one_sentence(error)
    assert name_axes(strange, "ctyx", FILE).sizes == {"c": 2, "t": 6, "y": 17, "x": 12}
    assert name_axes(image([letter, "y", "x"], (1, 17, 12)), None, FILE).dims == ("y", "x")


@pytest.mark.parametrize(
    ("dims", "advice"), [("YXS", "yxc"), ("SYX", "cyx"), ("ZYXS", "zyxc"), ("QSYX", "zcyx"), ("TSYX", "tcyx")]
)
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_samples_become_channels_where_they_are_stored(dims, advice, samples):
    colours = image(dims, [samples if dim == "S" else {"Y": 17, "X": 12}.get(dim, 6) for dim in dims])
    with pytest.raises(NotPhotonCountsError, match=f'axes="{advice}"') as error:
        name_axes(colours, None, FILE)
    assert ("RGB" in one_sentence(error)) == (samples == 3)
    assert name_axes(colours, advice, FILE).sizes["c"] == samples


@pytest.mark.parametrize("shape", [(1, 96), (64, 1), (1, 1)])
def test_a_line_is_asked_about(shape):
    with pytest.raises(AxesError, match="is a line") as error:
        name_axes(image("yx", shape), None, FILE)
    assert "axes=" not in one_sentence(error)  # training refuses what is named so
    assert name_axes(image("yx", shape), "yx", FILE).shape == shape
    said = "Acq.linesPerFrame = 12;\nAcq.pixelsPerLine = 8;\r\nversion = 5;"
    with pytest.raises(AxesError, match=r"expected rows and columns; .*linesPerFrame = 12, Acq\.pixelsPerLine = 8;"):
        name_axes(image("tyx", (6, 1, 96), description=said), None, FILE)


def test_renamed_axes_have_the_steps_of_their_new_names():
    stack = name_axes(image("TYX", steps={"t": 2.0, "z": 0.3, "y": 0.1}), "zyx", FILE)
    assert {axis: float(stack[axis][1]) for axis in stack.coords} == {"z": 0.3, "y": 0.1}


@pytest.mark.parametrize("axes", ["zy", "zzyx", "qyx", "tzyx", "", "yx"])
def test_axes_that_do_not_fit_are_refused(axes):
    with pytest.raises(AxesError):
        name_axes(image(["", "", ""]), axes, FILE)
