"""What the README of a zip says about its camera."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gap_bioimage.export.readme_sampling import paragraph

if TYPE_CHECKING:
    from gap_bioimage.camera.camera import Detector
    from gap_bioimage.export.intake import Intake


def camera_text(intake: Intake) -> str:
    """Explain what the numbers of the preprocessing are and where they come from."""
    if intake.detector is None:
        return paragraph(
            f"""Images are sums of {intake.ceiling} one-bit frames: in each a pixel detects whether any photon
            came. The output is the expected number of photons per pixel in all of them, undetected ones too:
            -T log(1 - detections / T) with T = {intake.ceiling}."""
        )
    return "\n\n".join([_numbers(intake.detector), paragraph(_meaning(intake, intake.detector)), *_provenance(intake)])


def _numbers(detector: Detector) -> str:
    camera = detector.camera
    light = "effective photon" if camera.multiplying else "electron"
    rows = [("gain", f"{camera.gain:.5g} ADU per {light}"), ("offset", f"{camera.offset:.6g} ADU")]
    rows.append(("read noise", f"{camera.read_noise:.3g} electrons RMS, with digitisation"))
    if camera.saturation is not None:
        rows.append(("saturation", f"from {camera.saturation:g} ADU on"))
    return "\n".join(["| camera | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _meaning(intake: Intake, detector: Detector) -> str:
    kwargs = intake.preprocessing[0]["kwargs"]
    units = (
        "Photons are effective ones: the multiplication's own noise makes each detected photon count as less than one."
        if detector.camera.multiplying
        else "Photons are detected ones (electrons)."
    )
    return f"""The preprocessing turns raw values into electrons and adds the variance of the noise that is not of
    photons (`scale_linear`: gain {kwargs["gain"]:.6g}, offset {kwargs["offset"]:.6g}); the model rounds them to counts,
    and subtracts {detector.background():.4g} per pixel from its result, which may so be slightly negative in the
    dark. {units} Another camera needs another zip: `gap-bioimage calibrate` measures these numbers, and
    `gap-bioimage export --camera camera.yaml` writes them."""


def _provenance(intake: Intake) -> list[str]:
    assert intake.detector is not None  # noqa: S101
    measured = intake.detector.camera.measured
    if not measured:
        return ["The numbers were given by the author, not measured by gap-bioimage."]
    told = "; ".join(f"{_name(key)}: {_plain(value)}" for key, value in measured.items())
    return [paragraph(f"How they were measured: {told}.")]


def _name(key: str) -> str:
    if key.endswith("_95"):
        return f"{key.removesuffix('_95').replace('_', ' ')} with 95 % confidence"
    return {"gap_bioimage": "version of gap-bioimage"}.get(key, key.replace("_", " "))


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " to ".join(map(_plain, value)) if len(value) == 2 else ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
