"""Zips that draw posterior samples, in the graph and by a hook that carries the network; own postprocessing."""

import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import one_sentence
from fixtures_model import Trained, export_unchecked, no_validation, random_model, rdf_of

from gap_bioimage import export, load_model, simulate, validate
from gap_bioimage.errors import ExportError
from gap_bioimage.exporting.documents import ONLY_CORE
from gap_bioimage.exporting.kinds import Operation, Sampling, product_of
from gap_bioimage.exporting.weights import TORCHSCRIPT, sampler_arguments, sampler_of
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.run.sandbox import Sandbox

pytestmark = pytest.mark.filterwarnings("ignore:of images like the example photons grow")
DRAWN: dict[str, Any] = {"n_samples": 2, "n_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def sampling(trained_2d: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A sampling zip that passed its checks, and their report."""
    path = tmp_path_factory.mktemp("sampling") / "model.zip"
    return path, export(trained_2d.run, path, trained_2d.card, "sample", **DRAWN)


@pytest.fixture(scope="module")
def hook(trained_2d: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a hook."""
    return export_unchecked(trained_2d, tmp_path_factory.mktemp("hook") / "model.zip", "sample-hook", **DRAWN)


def tensors_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        photons, posterior = (np.load(archive.open(f"test_{name}.npy")) for name in ("photons", "posterior"))
    return photons, posterior


def test_a_sampling_zip_passes_every_check_and_every_partners_rules(sampling: tuple[Path, Report]) -> None:
    path, report = sampling
    # the zoo gives ids itself
    assert {c.id for c in report.checks if c.status in ("failed", "warning")} <= {"zoo.id"}
    (agreement,) = [check for check in report.checks if check.id == "run.formats_agree"]
    assert "0.0e+00" in agreement.message
    rdf = rdf_of(path)
    assert {"posterior-sampling", "uncertainty", "denoising"} <= set(rdf["tags"])
    assert rdf["config"]["gap_bioimage"].items() >= {"conserves_photons": True, "stochastic": True, **DRAWN}.items()


def test_a_hook_passes_and_says_who_cannot_run_it(hook: Path, model_process: Sandbox) -> None:
    from bioimageio.core import test_model

    assert test_model(hook).status == "passed"
    rdf = rdf_of(hook)
    assert rdf["description"] == "Denoises simulated photon counts in tests. " + ONLY_CORE
    assert (rdf["format_version"], rdf["config"]["gap_bioimage"]["requires"]) == ("0.5.10", "bioimageio.core>=0.10.3")
    found = {check.id: check.status for check in validate(hook, process=model_process).checks}
    assert found["fiji.processing_ops"] == found["ilastik.custom_ops"] == "warning" and "failed" not in found.values()
    assert found["core.test"] == "skipped"  # its code was not allowed


def test_both_weights_are_the_sampler_and_survive_other_roundings(sampling: tuple[Path, Report]) -> None:
    photons, posterior = tensors_of(sampling[0])
    assert (posterior.shape, posterior.dtype) == ((1, 4, *photons.shape[2:]), np.float32)
    assert posterior.min() >= 0 and posterior[0, 1].mean() > 0.02 * posterior[0, 0].mean()
    kwargs = rdf_of(sampling[0])["weights"]["pytorch_state_dict"]["architecture"]["kwargs"]
    sampler = sampler_of(load_model(sampling[0]), kwargs)
    with zipfile.ZipFile(sampling[0]) as archive:
        script = torch.jit.load(archive.open(TORCHSCRIPT))
    with torch.inference_mode():
        for module in (sampler, script):
            np.testing.assert_array_equal(module(torch.from_numpy(photons)).numpy(), posterior)
    generator = torch.Generator().manual_seed(0)
    for parameter in sampler.parameters():
        parameter.mul_(1 + 1e-7 * torch.randn(parameter.shape, generator=generator))
    with torch.inference_mode():
        got = sampler(torch.from_numpy(photons)).numpy()
    assert not np.array_equal(got, posterior)
    np.testing.assert_allclose(got, posterior, rtol=1e-4, atol=1.5e-4)


def test_hook_and_graph_draw_the_same(sampling: tuple[Path, Report], hook: Path) -> None:
    from bioimageio.core import predict

    for first, second in zip(tensors_of(sampling[0]), tensors_of(hook), strict=True):
        np.testing.assert_array_equal(first, second)
    batch = np.stack([simulate(2, (130, 140), photons=0.5, seed=seed)[0].values for seed in (8, 9)])
    inputs = {"photons": batch[:, None].astype(np.float32)}
    drawn = [predict(model=path, inputs=inputs).members["posterior"].data.values for path in (sampling[0], hook)]
    assert drawn[0].shape == (2, 4, 130, 140)
    assert drawn[0][:, 1].mean() > 0
    np.testing.assert_array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("kind", ["sampling", "hook"])
def test_sampling_zips_load_as_their_network_and_the_readmes_snippet_draws_other_samples(
    kind: str, trained_2d: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(kind)
    path = made if kind == "hook" else made[0]
    model, zipped = load_model(trained_2d.run), load_model(path)
    assert (zipped.config, zipped.trained_range_db) == (model.config, model.trained_range_db)
    shutil.copy(path, tmp_path / "model.zip")
    with zipfile.ZipFile(path) as archive:
        text = archive.read("README.md").decode()
        if kind == "hook":
            archive.extract("sample_posterior.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = re.findall(r"^```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)[-1]
    counts = simulate(2, (40, 36), photons=0.5, seed=1)[0].values[None, None]
    variables: dict[str, Any] = {"counts": counts}
    exec(code, variables)
    with torch.inference_mode():
        photons = torch.from_numpy(counts.astype(np.float32))
        expected = sampler_of(zipped, sampler_arguments(model, 8, 2, 4)).sample(photons, 8, 2, 4).numpy()
    assert variables["samples"].shape == (8, 1, 1, 40, 36)
    np.testing.assert_array_equal(variables["samples"], expected)


def test_channels_come_in_the_order_of_their_names() -> None:
    model = random_model(channels=2)
    product = product_of("sample", model, Sampling(2, 2, 0))
    photons = np.random.default_rng(0).poisson(1.0, (1, 2, 24, 24)).astype(np.float32)
    named = dict(zip(product.channel_names, product.run(photons)[0], strict=True))
    with torch.inference_mode():
        samples = sampler_of(model, product.arguments).sample(torch.from_numpy(photons), 2, 2, 0)[:, 0].numpy()
    for channel in range(2):
        for number in range(2):
            np.testing.assert_array_equal(named[f"sample{number + 1}_{channel}"], samples[number, channel])
        np.testing.assert_allclose(named[f"mean_{channel}"], samples[:, channel].mean(0), rtol=1e-5)
        np.testing.assert_allclose(named[f"std_{channel}"], samples[:, channel].std(0, ddof=1), atol=1e-4)


@pytest.fixture(scope="module")
def operation() -> Any:
    return product_of("sample-hook", random_model(), Sampling(2, 2, 0)).hook


def test_the_file_of_the_hook_needs_torch_and_numpy_only(operation: Any, tmp_path: Path) -> None:
    (tmp_path / "op.py").write_bytes(operation.source)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import op, numpy; "
        "print(op.SamplePosterior(n_steps=2, seed=0)(numpy.ones((1, 4, 16, 16), 'float32')).shape); "
        "assert not [name for name in sys.modules if name.startswith('gap_bioimage')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120
    )
    assert done.stdout.strip() == "(1, 4, 16, 16)", done.stderr


def test_the_hook_obeys_its_kwargs(operation: Any) -> None:
    copies = np.random.default_rng(0).poisson(1.0, (1, 1, 24, 24)).astype(np.float32).repeat(5, axis=1)
    sampler = product_of("sample", random_model(), Sampling(3, 1, 7)).sampler
    assert sampler is not None
    other = replace(operation, kwargs={"n_steps": 1, "seed": 7}).load()
    with torch.inference_mode():
        expected = sampler(torch.from_numpy(copies[:, :1])).numpy()
    np.testing.assert_array_equal(other(copies), expected)  # five channels: three samples
    for kwargs in ({"n_steps": 0, "seed": 0}, {"n_steps": 1, "seed": -1}):
        with pytest.raises(ExportError, match="expected at least 1 and 0"):
            replace(operation, kwargs=kwargs).load()


# Own postprocessing

OPERATION = """
import numpy as np
from dataclasses import dataclass


@dataclass
class Op:
    above: float = 2.0

    def __call__(self, array):
        return (array > self.above).astype(np.uint8)
"""


def written(folder: Path, source: str = OPERATION) -> str:
    (folder / "mask.py").write_text(source)
    return str(folder / "mask.py")


def test_own_postprocessing_is_applied(trained_2d: Trained, unchecked_zip_2d: Path, tmp_path: Path) -> None:
    from bioimageio.core import predict

    own: dict[str, Any] = {"postprocessing": f"{written(tmp_path)}:Op", "postprocessing_kwargs": {"above": 2.0}}
    out = export_unchecked(trained_2d, tmp_path / "model.zip", **own)
    assert rdf_of(out)["outputs"][0]["data"]["type"] == "uint8"
    assert rdf_of(out)["config"]["gap_bioimage"]["conserves_photons"] is False
    inputs = {"photons": simulate(2, (130, 130), photons=2.0, seed=8)[0].values[None, None].astype(np.float32)}
    got, rate = (predict(model=path, inputs=inputs).members["rate"].data.values for path in (out, unchecked_zip_2d))
    np.testing.assert_array_equal(got, rate > 2.0)
    assert load_model(out).config == load_model(trained_2d.run).config


def test_own_postprocessing_comes_after_the_samples(
    trained_2d: Trained, tmp_path: Path, sampling: tuple[Path, Report]
) -> None:
    own: dict[str, Any] = {"postprocessing": f"{written(tmp_path)}:Op", "postprocessing_kwargs": {"above": 0.003}}
    path = export_unchecked(trained_2d, tmp_path / "model.zip", "sample-hook", **DRAWN, **own)
    assert 0.001 < tensors_of(path)[1].mean() < 0.999
    np.testing.assert_array_equal(tensors_of(path)[1], tensors_of(sampling[0])[1] > 0.003)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("postprocessing.py").decode() == OPERATION


def test_the_command_line_samples(trained_2d: Trained, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "model.zip"
    with no_validation():
        base = ["export", trained_2d.run, out, "--card", trained_2d.card, "--kind", "sample"]
        options = ["--samples", 2, "--steps", 2, "--seed", 3, "--postprocessing", f"{written(tmp_path)}:Op"]
        result = run(*base, *options, "--postprocessing-kwargs", "{above: 0.3}")
    assert result.code == 0, result
    rdf = rdf_of(out)
    assert rdf["config"]["gap_bioimage"].items() >= {"n_samples": 2, "n_steps": 2, "seed": 3}.items()
    assert rdf["outputs"][0]["postprocessing"][0]["kwargs"] == {"above": 0.3}
    for wrong in ("2.5", "[1]", "{", "text"):
        assert "plain values of yaml" in one_sentence(run(*base, *options, "--postprocessing-kwargs", wrong))


NOT_MADE = [
    ("class Op: ...", "Other", {}, "AttributeError"),
    ("import a_module_that_is_nowhere", "Op", {}, "ModuleNotFoundError"),
    ("def broken(:", "Op", {}, "SyntaxError"),
    (OPERATION, "Op", {"below": 1}, r"Op\(below=1\) cannot be created: TypeError.*postprocessing_kwargs"),
    (OPERATION, "Op", {"above": object()}, "plain values of yaml"),
    (OPERATION, "Op", {"above": (1, 2)}, "plain values of yaml"),
]


@pytest.mark.parametrize(("source", "name", "kwargs", "message"), NOT_MADE, ids=range(len(NOT_MADE)))
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, source: str, name: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        Operation.read(f"{written(tmp_path, source)}:{name}", kwargs)


UNFIT = [
    ("return array[..., 1:]", "expected an array of shape"),
    ("return array.tolist()", "a list"),
    ("return array > 1", "bool"),
    ("return np.log(array * 0)", "not finite"),
    ("raise OSError('no disk')", "raised OSError: no disk for an array of shape"),
    ("return array + np.random.random(array.shape)", "a different result when called again"),
    ("self.above += 1; return array + self.above", "a different result when called again"),
]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("body", "message"), UNFIT)
def test_what_consumers_could_not_use_is_refused(body: str, message: str) -> None:
    source = OPERATION.replace("return (array > self.above).astype(np.uint8)", body)
    array = np.random.default_rng(0).gamma(2.0, 1.5, (1, 3, 24, 20)).astype(np.float32)
    with pytest.raises(ExportError, match=message):
        Operation("postprocessing.py", source.encode(), "Op").apply(array)
