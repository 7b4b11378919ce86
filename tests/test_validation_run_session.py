"""Which weights are run, which checks are made of them, and what an error means."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import zips
from running import ran

from gap_bioimage.validation.check import definitions
from gap_bioimage.validation.report import validate


def test_the_good_zip_passes_every_run(tmp_path: Path) -> None:
    checks = ran(zips.make_zip(tmp_path))
    wrong = {id_: check for id_, check in checks.items() if check.status != "passed"}
    assert wrong.keys() <= {"run.cuda", "run.conservation"}, wrong  # no such device, and no model of ours
    always = {"run.negative_control", "core.test", "run.loads", "run.formats_agree"}
    assert always | {made.id for made in definitions("run")} == checks.keys()
    assert "pytorch_state_dict, torchscript: " in checks["core.test"].message
    assert checks["run.tiled"].message.startswith("torchscript: ")  # one stands for both


def test_python_code_is_run_on_request_only(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = zips.make_zip(tmp_path, source=f"open({str(marker)!r}, 'w').close()\n" + zips.BLUR)
    marker.unlink()  # made when the zip was written
    checks = ran(path, run_code=False)
    assert not marker.exists()
    skipped = checks["run.pytorch_state_dict"]
    assert skipped.status == "skipped" and "--run-code" in skipped.fix
    assert checks["core.test"].status == "passed"  # by torchscript
    ran(path)
    assert marker.exists()


def test_custom_processing_and_torchscript_that_writes_files_are_code_too(tmp_path: Path) -> None:
    target = tmp_path / "written"
    script = zips.model_files(zips.tiny(f'torch.save(rate, "{target}")'))["torchscript.pt"]
    target.unlink()  # made when the zip was written
    code = {"source": "tiny.py", "sha256": zips.sha256(zips.model_files()["tiny.py"])}
    step = {"id": "custom", **code, "callable": "Tiny", "kwargs": {}}
    custom, writes = zips.put("outputs", 0, "postprocessing", value=[step]), {"torchscript.pt": script}
    for mutate, files, words in ((custom, {}, "custom"), (zips.torchscript_only, writes, "writes files")):
        checks = ran(zips.make_zip(tmp_path, mutate, files=files), run_code=False)
        assert checks["core.test"].status == "skipped"
        assert words in checks["run.torchscript"].message
    assert not target.exists()


def test_libraries_that_are_not_installed_here_leave_it_open_whether_a_model_runs(tmp_path: Path) -> None:
    stardist = {
        "id": "stardist_postprocessing",
        "kwargs": {"prob_threshold": 0.5, "nms_threshold": 0.4, "grid": [1, 1], "n_rays": 8, "b": 0},
    }
    imports = {"tiny.py": b"import no_such_library\n" + zips.BLUR.encode()}
    only, imported = zips.drop("weights", "torchscript"), {"import_from": "no_library.unet", "callable": "UNet"}
    for mutate, files, name in (
        (zips.both(zips.torchscript_only, zips.put("outputs", 0, "postprocessing", value=[stardist])), {}, "stardist"),
        (only, imports, "no_such_library"),
        (zips.both(only, zips.put("weights", "pytorch_state_dict", "architecture", value=imported)), {}, "no_library"),
    ):  # fmt: skip
        if importlib.util.find_spec(name) is None:
            checks = ran(zips.make_zip(tmp_path, mutate, files=files))
            found = next(check for id_, check in checks.items() if id_ in ("run.torchscript", "run.pytorch_state_dict"))
            assert (found.status, found.fix, checks["core.test"].status) == ("skipped", f"Install {name}.", "skipped")


@pytest.mark.parametrize(
    ("body", "status"), [("rate = rate / rate.sum()", "warning"), ("assert float(photons.sum()) > 0", "failed")]
)  # the second raises: it does not run
def test_only_what_does_not_run_fails(tmp_path: Path, body: str, status: str) -> None:
    check = ran(zips.make_zip(tmp_path, zips.torchscript_only, source=zips.tiny(body)))["run.zero"]
    assert check.status == status and check.fix


def test_samplers_run_sparingly_and_need_not_agree_over_tiles(tmp_path: Path) -> None:
    sampler = zips.put("config", value={"gap_bioimage": {"stochastic": True}})
    checks = ran(zips.make_zip(tmp_path, sampler, source=zips.tiny("rate = rate / rate.mean() * 20.0")))
    assert checks["run.tiled"].status == "skipped"
    assert checks["run.zero"].message.startswith("torchscript: ")  # one stands for both
    assert "2 sizes" in checks["run.sizes"].message


def test_volumes_run(tmp_path: Path) -> None:
    source = zips.BLUR.replace("Conv2d", "Conv3d").replace("size**2", "size**3")

    def volume(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
            tensor["axes"].insert(2, {**tensor["axes"][2], "id": "z"})
        rdf["outputs"][0]["axes"][2]["size"] = {"tensor_id": "photons", "axis_id": "z"}

    checks = ran(zips.make_zip(tmp_path, volume, source=source))
    assert {checks[id_].status for id_ in ("core.test", "run.sizes", "run.tiled", "run.batch")} == {"passed"}


def test_format_0_4_runs(tmp_path: Path) -> None:
    shape = {"min": [1, 1, 16, 16], "step": [0, 0, 4, 4]}
    flexible = {"name": "photons", "axes": "bcyx", "data_type": "float32", "data_range": [0, math.inf], "shape": shape}
    checks = ran(zips.make_zip(tmp_path, zips.to_format_0_4("0.4.10", inputs=[flexible])))
    ids = ("core.test", "run.reproduces", "run.sizes", "run.tiled", "run.batch")
    assert {checks[id_].status for id_ in ids} == {"passed"}


MODELS = {
    "spec_unet2d_fixed_shape": "passed",
    "spec_unet2d_multi_tensor": "passed",
    "spec_upsample_test_model": "passed",
    "broken/tiktorch_dummy": "failed",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), MODELS.items())
def test_models_of_others(shared_data: Path, name: str, status: str) -> None:
    assert validate(shared_data.parent / "models" / name, run_code=True).status == status
