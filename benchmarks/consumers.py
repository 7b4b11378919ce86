"""Compatibility: every kind of zip that this project exports, and third-party models, with every consumer.

    python benchmarks/consumers.py ../shared/models WORK [PYTHON ...]

WORK is the folder of ``hazelnut.py``; its trained networks are exported in every kind. Further PYTHONs are
interpreters with other versions of torch or bioimageio.core, which also run the models.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from results import write_section

HERE = Path(__file__).parent
KINDS = {
    "2D denoiser": ("run_2d", "--onnx"),
    "3D denoiser": ("run_3d",),
    "2D sampler": ("run_2d", "--kind", "sample", "--samples", "2", "--steps", "4"),
    "2D sampler as hook": ("run_2d", "--kind", "sample-hook", "--samples", "2", "--steps", "4"),
}
CONSUMERS = ("core", "zoo", "fiji", "ilastik", "biapy", "qupath", "bioengine")


def cli(*words: object) -> int:
    """Run the command line on one thread, and return its exit code."""
    command = [sys.executable, "-m", "gap_bioimage", *map(str, words)]
    return subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def export_all(work: Path) -> dict[str, Path]:
    """Export every kind that does not exist yet."""
    zips = {}
    for name, (run, *options) in KINDS.items():
        zips[name] = work / f"{name.replace(' ', '_')}.zip"
        if not zips[name].exists():
            code = cli("export", work / run, zips[name], "--card", HERE / "hazelnut_card.yaml", "--quiet", *options)
            if code:
                raise SystemExit(f"{name}: the export failed")
    return zips


def third_party(models: Path) -> dict[str, Path]:
    """Find third-party models: folders that hold a description."""
    names = ("rdf", "model", "bioimageio")
    folders = sorted({path.parent for path in models.rglob("*.yaml") if any(name in path.name for name in names)})
    return {str(folder.relative_to(models)): folder for folder in folders}


def core_verdict(path: Path, work: Path) -> str:
    """Return the verdict of ``python -m bioimageio.core test``, from its exit code."""
    target = next(iter(path.glob("*.yaml"))) if path.is_dir() else path
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BIOIMAGEIO_CACHE_PATH": str(work / "cache")}
    command = [sys.executable, "-m", "bioimageio.core", "test", str(target), "--devices", "cpu"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=work)
    return "passed" if finished.returncode == 0 else "failed"


def short(text: str, limit: int = 140) -> str:
    """Shorten a reason to fit a table cell."""
    flat = re.sub(r"\s+", " ", text).replace("|", "/")
    return flat if len(flat) <= limit else flat[: limit - 4] + " ..."


def table(rows: dict[str, dict[str, Any]], core: dict[str, str], seconds: dict[str, float]) -> str:
    """Return the verdicts as a table, and the reasons as a list."""
    head = ["model", "validate", "`bioimageio.core test`", *CONSUMERS, "zoo score", "s"]
    lines = [head, ["---"] * len(head)]
    reasons = []
    for name, report in rows.items():
        verdicts = {entry["consumer"]: entry for entry in report["consumers"]}
        lines.append([
            name, report["status"], core[name], *(verdicts[c]["verdict"] for c in CONSUMERS),
            f"{report['score']['total']:.2f}", f"{seconds[name]:.0f}",
        ])  # fmt: skip
        grouped: dict[str, list[str]] = {}
        for consumer in CONSUMERS:
            if verdicts[consumer]["verdict"] != "works":
                grouped.setdefault(short(verdicts[consumer]["reason"]), []).append(consumer)
        reasons += [f"- {name}, {', '.join(consumers)}: {reason}" for reason, consumers in grouped.items()]
        warned = [c["id"] for c in report["checks"] if c["status"] == "warning"]
        reasons.append(f"- {name}, warnings: {', '.join(warned) or 'none'}")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n\n" + "\n".join(reasons)


def engine_findings(rows: dict[str, dict[str, Any]]) -> str:
    """Return the findings of the other interpreters, one line per model and check."""
    lines = []
    for name, report in rows.items():
        checks = [c for c in report["checks"] if c["id"] in ("fiji.older_engine", "core.other_versions")]
        lines += [f"- {name}, {check['id']}: {check['status']}: {short(check['message'], 400)}" for check in checks]
    return "\n".join(lines) or "- none"


def main() -> None:
    """Export, validate, compare, write the section."""
    models, work, engines = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3:]
    zips = {**export_all(work), **third_party(models)}
    rows, core, seconds = {}, {}, {}
    options = [word for python in engines for word in ("--engine", python)]
    for name, path in zips.items():
        stem = name.replace(" ", "_").replace("/", "_")
        report, start = work / f"{stem}.json", time.monotonic()
        cli(
            "validate", path, "--run-code", "--json", report, "--html", report.with_suffix(".html"), *options, "--quiet"
        )
        seconds[name] = time.monotonic() - start
        rows[name] = json.loads(report.read_text())
        core[name] = core_verdict(path, work)
        print(name, rows[name]["status"], core[name], flush=True)
    write_section(
        "Who runs which model",
        __doc__,
        "Verdicts of `gap-bioimage validate --run-code` on zips of every kind, exported from the networks of the "
        "hazelnut section, and on third-party models (U-Nets from bioimageio.spec's examples, an outdated model of "
        "tiktorch), with the result of `python -m bioimageio.core test` by its exit code. Seconds include all other "
        f"interpreters.\n\n{table(rows, core, seconds)}\n\nIn other interpreters:\n\n{engine_findings(rows)}",
    )


if __name__ == "__main__":
    main()
