from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_images import one_sentence

from gap_bioimage.errors import AxesError
from gap_bioimage.photons.selection import channel_of, frames_of

PATH = Path("movie.tif")
BOUND = st.one_of(st.none(), st.integers(-12, 12))


@given(start=BOUND, stop=BOUND, step=st.one_of(st.none(), st.integers(1, 5)), count=st.integers(1, 10))
def test_ranges_are_those_of_python(start, stop, step, count):
    text = ":".join("" if part is None else str(part) for part in (start, stop, step))
    expected = list(range(count))[slice(start, stop, step)]
    if not expected:
        with pytest.raises(AxesError, match="holds no frame") as error:
            frames_of(PATH, text, count)
        one_sentence(error)
        return
    frames, single = frames_of(PATH, text, count)
    assert list(range(count))[frames] == expected
    assert not single
    assert frames.start >= 0


@given(number=st.integers(-12, 12), count=st.integers(1, 10))
def test_one_frame_by_number(number, count):
    if not -count <= number < count:
        with pytest.raises(AxesError, match=f"frame {number} was asked for, but movie.tif has {count} "):
            frames_of(PATH, number, count)
        return
    for given_as in (number, str(number)):
        frames, single = frames_of(PATH, given_as, count)
        assert range(count)[frames] == range(count)[number : number + 1 or None]
        assert single


@pytest.mark.parametrize("text", ["", "three", "1.5", "0-5", "1:2:3:4", "::0", "::-1", "0;5"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(AxesError, match="no range of frames, expected such as 3, 0:50") as error:
        frames_of(PATH, text, 10)
    one_sentence(error)


def test_channels_by_number_or_name():
    names = ["DNA", "dna", "Actin"]
    assert channel_of(PATH, 2, 3, names) == 2
    assert channel_of(PATH, "2", 3, ()) == 2
    assert channel_of(PATH, "dna", 3, names) == 1
    assert channel_of(PATH, "ACTIN", 3, names) == 2
    for wrong in ("Dna", "membrane", "", "-x"):
        with pytest.raises(AxesError, match="its channels are DNA, dna, Actin") as error:
            channel_of(PATH, wrong, 3, names)
        one_sentence(error)
    with pytest.raises(AxesError, match="its 3 have no names"):
        channel_of(PATH, "DNA", 3, ())
    for number in (3, "-1", "10"):
        with pytest.raises(AxesError, match=f"channel {number} was asked for, but movie.tif has 3"):
            channel_of(PATH, number, 3, names)
