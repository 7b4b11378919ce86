"""The pages of the documentation: their commands run, their links lead somewhere, and they name what there is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
import zips

import gap_bioimage as gap

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


def test_the_reference_lists_every_public_name():
    listed = re.findall(r"^::: gap_bioimage\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(set(gap.__all__) - {"__version__"})


def test_messages_of_the_troubleshooting_are_those_of_the_code():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "gap_bioimage").rglob("*.py"))
    messages = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert messages and not [message for message in messages if message not in code]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["start.md", "counts.md", "use.md", "publish.md"])
def test_commands_of_a_page_run_as_written(page, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks(page, "bash"):
        command = ["bash", "-euo", "pipefail", "-c", block]
        subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    for block in blocks(page, "python"):
        subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    assert 'id="fiji.id"' in (tmp_path / "checks" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["counts_to_zip", "zip_without_gap_bioimage"], ["stack"], ["camera_movie"]], ids="-".join
)
def test_notebooks_run(names, tmp_path):
    for name in names:
        notebook = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text(encoding="utf-8"))
        code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        script = tmp_path / f"{name}.py"
        script.write_text("\n".join(code), encoding="utf-8")
        subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=os.environ | {"MPLBACKEND": "agg"}, check=True)
        assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.slow
def test_the_action_annotates_what_it_finds(tmp_path):
    (tmp_path / "models").mkdir()
    rdf = zips.description(zips.model_files())
    for name, changed in (("good", {}), ("warned", {"tags": []}), ("failed", {"weights": {}})):
        (tmp_path / "models" / f"{name}.yaml").write_text(yaml.safe_dump(rdf | changed))
    step = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"][-1]
    assert set(step["env"]) == {"MODELS", "ARGUMENTS"}
    given = {"MODELS": "models/*.yaml", "ARGUMENTS": "--description-only --select format,zoo.tags"}
    given["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # as GitHub does
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ | given, capture_output=True, text=True)
    assert ran.returncode == 1 and (tmp_path / "gap-bioimage.xml").is_file()
    assert re.search("^::error file=models/failed.yaml,title=format.valid::", ran.stdout, re.M)
    assert re.search("^::notice file=models/warned.yaml,title=zoo.tags::", ran.stdout, re.M)
    assert "models/good.yaml,title=zoo" not in ran.stdout
