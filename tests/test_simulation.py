import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gap_bioimage.errors import ConfigError
from gap_bioimage.simulation import simulate


@pytest.mark.parametrize(("dim", "shape"), [(2, (256, 256)), (3, (24, 128, 128))])
def test_defaults_have_named_calibrated_axes(dim, shape):
    counts, truth = simulate(dim)
    assert counts.dims == truth.dims == ("z", "y", "x")[-dim:]
    assert counts.shape == truth.shape == shape
    assert (counts.dtype, truth.dtype) == (np.uint16, np.float32)
    assert float(counts.x[1] - counts.x[0]) == pytest.approx(0.1)
    if dim == 3:
        assert float(counts.z[1] - counts.z[0]) == pytest.approx(0.3)


def test_same_seed_same_image_and_another_seed_another():
    first, again, other = ([*simulate(2, np.array([64, 64]), 3.0, seed=seed)] for seed in (4, 4, 5))
    for one, same, another in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, another)


@settings(max_examples=25)
@given(
    dim=st.sampled_from([2, 3]),
    side=st.integers(1, 40),
    photons=st.floats(0.01, 1e6),
    seed=st.integers(0, 2**32 - 1),
    scene=st.sampled_from(["cells", "filaments"]),
)
def test_truth_is_positive_with_the_mean_asked_for(dim, side, photons, seed, scene):
    shape = (max(1, side // 4), side, side + 3)[-dim:]
    counts, truth = simulate(dim, shape, photons, seed, scene)
    assert counts.shape == shape
    assert float(abs(counts - truth).max()) < 9 * float(truth.max()) ** 0.5 + 9  # which wrapped ones would not be
    assert float(truth.min()) > 0
    assert float(truth.mean(dtype=np.float64)) == pytest.approx(photons, rel=1e-4)


def test_counts_are_poisson_draws_of_the_truth():
    counts, truth = simulate(2, (256, 256), 5.0, seed=2)
    z = (counts.values - truth.values.astype(float)) / np.sqrt(truth.values)
    assert abs(z.mean()) < 5 / 256
    assert z.var() == pytest.approx(1, abs=0.03)


IMPOSSIBLE = [{"dim": 4}, {"shape": (3, 4, 5)}, {"shape": (0, 4)}, {"shape": (10**6, 10**6)}, {"scene": "dogs"}]
IMPOSSIBLE += [{"photons": photons} for photons in (0.0, np.nan, 1e12)]


@pytest.mark.parametrize("arguments", IMPOSSIBLE)
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ConfigError):
        simulate(**arguments)
