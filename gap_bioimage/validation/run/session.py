"""The checks of one model, in the process that runs it: bioimageio.core's own test, then those that it lacks."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from gap_bioimage.validation import check as registry
from gap_bioimage.validation import rules
from gap_bioimage.validation.archive.description import Description
from gap_bioimage.validation.archive.package import Package
from gap_bioimage.validation.check import RUN_CODE, RUNS, Definition, NotApplicable, Outcome, one_sentence, raised
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.run import engines, reference
from gap_bioimage.validation.run.runner import ModelError, Runner

_LIBRARIES = {  # the library that runs each weights format
    "pytorch_state_dict": "torch", "torchscript": "torch", "onnx": "onnxruntime", "keras_hdf5": "tensorflow",
    "keras_v3": "keras", "tensorflow_saved_model_bundle": "tensorflow", "tensorflow_js": "",
}  # fmt: skip
_SAFE = {"torchscript", "onnx"}  # the others execute code from the package, or graphs that may read and write files
_WITHOUT_OUTPUT = {"run.reproduces", "run.output_kind"}  # also for models that do not run on their own test input
_OTHER_SIZES = {"run.tiled", "run.cost", "fiji.below_min"}  # these run images of other sizes than the test inputs

WEIGHTS = {
    name: registry.declare(
        f"run.{name}", "run", registry.Severity.DEGRADES, asks=f"Weights in the format {name} that can run here.",
        breaks="nothing is known about these weights",
        fix="Allow it with --run-code, or install what the message names.", order=-8,
    )
    for name in _LIBRARIES
}  # fmt: skip
LOADS = registry.declare(
    "run.loads", "run", registry.Severity.BLOCKS, asks="Weights that load.", breaks="the model cannot be run",
    fix="Make sure that the file is complete and in the declared format, that a state_dict fits its architecture and "
        "kwargs, and that processing and test tensors are as described.", order=-2,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One model to run: the opened package, its valid description, and options."""

    package: Package
    description: Description
    run_code: bool = False  # allow Python code of the package to run
    device: str = "cpu"
    engines: tuple[str, ...] = ()  # other interpreters to run the model in, from `engines.find_engines`
    keep: Path | None = None  # folder for arrays and pictures of failed checks
    pictures: Path | None = None  # folder for pictures of other checks; None draws none
    seconds: float = 600.0  # time limit of other interpreters
    done: tuple[str, ...] = ()  # ids of checks that are not repeated


@dataclass
class Session:
    """A job, and a callback for the start of each check (``begin``) and its result (``check``, pictures ``drawn``)."""

    job: Job
    send: Callable[..., None]

    def run(self) -> None:
        """Run every check that needs a running model; it may never return, so call it in a subprocess."""
        job, descr = self.job, self.job.description.as_written
        model = Model(job.package, job.description)
        self._check(reference.CONTROL, lambda _: reference.negative_control(model))
        blocked = {name: outcome for name in job.description.weights if (outcome := _obstacle(job, model, name))}
        for name, outcome in blocked.items():
            self._report(WEIGHTS[name], outcome)
        runnable = [name for name in job.description.weights if name not in blocked]
        files = {name: model.file_of(model.weights.get(name)) for name in runnable}
        if not files:
            reason = "".join(f": {outcome.message}" for outcome in blocked.values() if len(blocked) == 1)
            fix = RUN_CODE if RUN_CODE in {outcome.fix for outcome in blocked.values()} else ""
            text = f"none of the weights ({', '.join(blocked) or 'none given'}) was run{reason}"
            self._report(reference.CORE_TEST, Outcome("skipped", text, fix))
            return
        runners: dict[str, Runner] = {}
        with ExitStack() as stack:

            def load(name: str) -> Outcome:
                if name not in runners:
                    runner = Runner(job.description.upgraded or descr, name, job.device, files[name], job.package.rdf)
                    runners[name] = stack.enter_context(runner)
                return Outcome("passed", "loads")

            def core_test(name: str) -> Outcome:
                outcome = reference.core_test(descr, name, job.device)
                if outcome.status == "failed" and not outcome.fix:  # loading gives a clearer reason
                    try:
                        load(name)
                    except ModelError as error:
                        return Outcome("failed", str(error), LOADS.fix)
                return outcome

            self._check(reference.CORE_TEST, core_test, list(files))
            self._check(LOADS, load, list(files))
            self._run_all(runners)
        if job.engines:
            path, seconds = job.package.root / job.package.rdf_name, 0.9 * job.seconds
            self._check(engines.OTHER_VERSIONS, lambda _: engines.other_cores(path, list(files), job.engines, seconds))

    def _run_all(self, runners: Mapping[str, Runner]) -> None:
        """Run every check on all weights; on one of them only, if the weights agree and the check takes long."""
        agreement, job = None, self.job
        if len(runners) > 1:
            agreement = self._check(reference.AGREEMENT, lambda _: reference.formats_agree(list(runners.values())))
        for definition in registry.definitions("run"):
            names = [name for name in runners if not definition.weights or name in definition.weights]
            # samplers run their network many times for each output
            is_slow = definition.once or any(runners[name].is_stochastic for name in names)
            if is_slow and agreement is not None and agreement.status == "passed":
                names = names[-1:]
            if names:
                self._check(definition, partial(_judge, definition, runners), names)
        if job.engines and (script := runners.get("torchscript")) is not None:
            self._check(engines.OLDER_ENGINE, lambda _: engines.other_engines(script, job.engines, 0.9 * job.seconds))

    def _check(
        self, definition: Definition, judge: Callable[[str], Outcome], names: Sequence[str] = ()
    ) -> Outcome | None:
        """Run a check, unless it is done; exceptions of the model fail it, its own exceptions leave the result open."""
        if definition.id in self.job.done and definition is not LOADS:  # loaded models are lost with their process
            return None
        self.send(begin=definition.id)
        outcomes, model_raised = dict[str, Outcome](), False
        for name in names or [""]:
            try:
                outcomes[name] = judge(name)
            except NotApplicable as reason:
                outcomes[name] = Outcome("skipped", one_sentence(reason))
            except ModelError as error:
                outcomes[name], model_raised = Outcome("failed", str(error), "" if definition is LOADS else RUNS), True
            except Exception as error:
                outcomes[name] = raised(error)
        outcome = registry.merge_outcomes(outcomes.items()) if names else outcomes[""]
        # a model that raises does not run, whatever the severity of the check
        self._report(replace(definition, severity=registry.BLOCKS) if model_raised else definition, outcome)
        return outcome

    def _report(self, definition: Definition, outcome: Outcome) -> None:
        if definition.id in self.job.done:
            return
        check = definition.check(outcome)
        pictures = reference.keep_evidence(definition.id, outcome, keep=self.job.keep, pictures=self.job.pictures)
        self.send(check=asdict(check), drawn=[(title, str(path)) for title, path in pictures])


def _judge(definition: Definition, runners: Mapping[str, Runner], name: str) -> Outcome:
    runner = runners[name]
    if definition.id in _WITHOUT_OUTPUT:
        return definition.outcome_of(runner)
    broken = reference.non_finite_outputs(runner)
    if definition.id in _OTHER_SIZES and not runner.takes_declared_sizes:
        raise NotApplicable("the smallest declared size does not run, see run.sizes")
    if definition.compares and broken:
        raise NotApplicable(f"nothing can be compared: for the test input, {broken}")
    return definition.outcome_of(runner)


def _obstacle(job: Job, model: Model, weights_format: str) -> Outcome | None:
    library, text = _LIBRARIES.get(weights_format, ""), ""
    if not library:
        return Outcome("skipped", f"{weights_format} cannot be run from Python")
    if weights_format not in _SAFE:
        text = f"{weights_format} runs code from the package"
    elif any(step.get("id") == "custom" for step in model.steps):
        text = "a processing step with id 'custom' runs code from the package"
    elif weights_format == "torchscript":
        with suppress(NotApplicable):  # not TorchScript: loading will report it
            text = "the TorchScript code reads or writes files" if rules.torchscript_code(model).touches_files else ""
    if text and not job.run_code:
        return Outcome("skipped", f"{text}, which was not allowed", RUN_CODE)
    if any(tensor.written.get("output_of") for tensor in model.inputs):
        return Outcome("skipped", "an input is the output of another model, which is not in the package")
    libraries = {library, *(rules.PYTHON_STEPS.get(str(step.get("id"))) or library for step in model.steps)}
    if weights_format == "pytorch_state_dict":
        with suppress(NotApplicable):  # not Python: loading will report it
            libraries |= rules.imported(model) or set()
    packaged = {PurePosixPath(name).parts[0].removesuffix(".py") for name in job.package.names}
    for name in sorted(name for name in libraries - packaged if name.isidentifier()):  # loading reports packaged ones
        if importlib.util.find_spec(name) is None:
            return Outcome("skipped", f"{weights_format} needs {name}, which is not installed", f"Install {name}.")
    return None
