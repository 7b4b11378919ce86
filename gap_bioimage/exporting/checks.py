"""Checks for photon models only, declared in the registry of ``validation``, which does not depend on photons."""

import numpy as np

from gap_bioimage.validation.check import NotApplicable, Outcome, Severity, rule, run_check
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.rules import section
from gap_bioimage.validation.run.runner import Runner

CONSERVED = 0.05
_KINDS = ("denoise", "sample", "sample-hook")
_HERE = "gap-bioimage, exporting/documents.py (2026-11)"


@rule("format.gap_bioimage", Severity.DEGRADES, _HERE,
      breaks="gap-bioimage cannot load the network, to train it further or to sample",
      fix="Export the model again with gap-bioimage, or remove config.gap_bioimage.")  # fmt: skip
def gap_section(model: Model) -> str | None:
    """A config.gap_bioimage section, if present, that gap-bioimage can read."""
    config = section(model.rdf, "gap_bioimage")
    if not isinstance(config, dict):
        raise NotApplicable("there is no section config.gap_bioimage")
    low_high = config.get("trained_range_db")
    if config.get("kind") not in _KINDS:
        return f"config.gap_bioimage.kind is {config.get('kind')!r}, expected one of {', '.join(_KINDS)}"
    if not isinstance(low_high, list) or len(low_high) != 2 or not all(isinstance(x, int | float) for x in low_high):
        return f"config.gap_bioimage.trained_range_db is {low_high!r}, expected two numbers in dB"
    return None


@run_check("run.conservation", Severity.BLOCKS, _HERE, breaks="sums over regions are wrong",
           fix="Renormalise the rate by the local photon sum inside the model.", once=True, compares=True)  # fmt: skip
def conservation(runner: Runner) -> Outcome:
    """The output has as many photons as the input, if the model declares that they are conserved."""
    config = section(runner.rdf, "gap_bioimage")
    if not isinstance(config, dict) or config.get("conserves_photons") is not True:
        raise NotApplicable("the description does not state that photons are conserved")
    counts = next(iter(runner.preprocess(runner.test_inputs).values()))
    name, rate = next(iter(runner.produced.items()))
    # A sampler's channels are mean, std, samples: the first ones, as many as in the input, are rates.
    channel = runner.axes(name).index("channel")
    rate = np.take(rate, range(min(rate.shape[channel], counts.shape[channel])), axis=channel)
    photons = float(counts.sum(dtype=np.float64))
    ratio = float(rate.sum(dtype=np.float64)) / photons if photons > 0 else float("nan")
    text = f"{ratio:.3f} photons out per photon in (expected 1 within {CONSERVED:.0%})"
    return Outcome("passed" if abs(ratio - 1) <= CONSERVED else "failed", text)
