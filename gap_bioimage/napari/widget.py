"""The window: layer and model on top, a tab for each task, one job at a time."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr
from magicgui.widgets import ComboBox, Container, FileEdit, LineEdit, ProgressBar, PushButton, SpinBox, Table, TextEdit
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from napari.layers import Image, Labels
from napari.qt.threading import thread_worker
from napari.viewer import Viewer
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QTabWidget, QVBoxLayout, QWidget

import gap_bioimage as gap
from gap_bioimage.napari import work
from gap_bioimage.napari.layers import axes_of, image_of, layer_beside, middle_of
from gap_bioimage.pictures import new_figure

_REFRESH_MS = 200  # between two updates of the progress
_CARD = {"name": "", "description": "", "author": "", "license": "CC-BY-4.0", "training_data": ""}
_MODEL = "nuclei (comes with gap-bioimage), a run folder, a zip or a checkpoint"
_LARGE = "folder for results that do not fit into memory; leave empty for the folder of the image"
_ALL = "all purposes"


class Window(QWidget):  # type: ignore[misc]
    """The dock widget."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.job: work.Job | None = None
        self.tabs, self.bar, self.message = QTabWidget(), ProgressBar(), TextEdit()
        self.stop = _button("Stop", lambda: self.worker.quit())
        self.stop.enabled, self.message.read_only = False, True
        self.message.native.setFixedHeight(110)
        layout = QVBoxLayout(self)
        for part in (self._top(), self.tabs, self.bar.native, self.stop.native, self.message.native):
            layout.addWidget(part)
        self._tab("Inspect", _button("Are these photon counts?", self.inspect))
        self._train_tab()
        self.folder = FileEdit(label="Large results in", mode="d", nullable=True, tooltip=_LARGE)
        self._tab("Denoise", self.folder, _button("Denoise", self.denoise))
        self._how_sure_tab()
        self.card = {name: LineEdit(label=name.replace("_", " "), value=value) for name, value in _CARD.items()}
        self.zip = FileEdit(label="zip", mode="w", value=Path.home() / "my-denoiser.zip")
        self.report, write = TextEdit(), _button("Check and write the zip", self.export)
        self.report.read_only = True
        self._tab("Export", *self.card.values(), self.zip, write, below=self.report.native)
        self.timer = QTimer(self)
        self.timer.timeout.connect(self._show_progress)
        events = self.viewer.layers.events
        for event in (events.inserted, events.removed, self.viewer.layers.selection.events.active):
            event.connect(self._update_layers)
        self._update_layers()

    def _top(self) -> QWidget:
        self.layer = ComboBox(label="Layer", choices=lambda _: self._layers(Image))
        self.axes = LineEdit(label="Axes", tooltip="axes of the layer, out of t c z y x")
        self.layer.changed.connect(lambda layer: setattr(self.axes, "value", "" if layer is None else axes_of(layer)))
        self.model = LineEdit(value="nuclei", tooltip=_MODEL)
        folder = _button("Run ...", lambda: self._set_model(QFileDialog.getExistingDirectory(self, "A training run")))
        file = _button("Zip ...", lambda: self._set_model(QFileDialog.getOpenFileName(self, "A model")[0]))
        model = Container(widgets=[self.model, folder, file], layout="horizontal", labels=False, label="Model")
        return Container(widgets=[self.layer, self.axes, model]).native

    def _train_tab(self) -> None:
        self.run = FileEdit(label="Run folder", mode="d", value=Path.home() / "gap-run")
        self.purpose = ComboBox(label="For", choices=[_ALL, "denoise", "sample", "generate"])
        self.steps = SpinBox(label="Steps", max=10**6, tooltip="0: chosen for the images and this machine")
        self.camera = LineEdit(label="Camera", tooltip="the yaml of gap-bioimage calibrate; leave empty for counts")
        self.init = LineEdit(label="Start from", tooltip=f"leave empty for a new network, or give {_MODEL}")
        self.canvas: Any = FigureCanvasQTAgg(new_figure(4, 4))  # type: ignore[no-untyped-call]
        fields = (self.run, self.purpose, self.steps, self.camera, self.init)
        self._tab("Train", *fields, _button("Train, or continue the run in the folder", self.train), below=self.canvas)
        self.canvas.setMinimumHeight(290)
        self.canvas.hide()

    def _how_sure_tab(self) -> None:
        self.n_samples, self.seed = SpinBox(label="Samples", min=2, value=8), SpinBox(label="Seed", max=2**31 - 1)
        self.labels = ComboBox(label="Regions", choices=lambda _: self._layers(Labels), nullable=True)
        self.table = Table()
        self.table.native.horizontalHeader().setDefaultSectionSize(66)
        draw, measure = _button("Draw samples", self.sample), _button("Measure the regions", self.measure)
        self._tab("How sure", self.n_samples, self.seed, draw, self.labels, measure, below=self.table.native)

    def _tab(self, title: str, *fields: Any, below: QWidget | None = None) -> None:
        """Add a tab with fields, and a large widget below them."""
        tab = QWidget()
        layout = QVBoxLayout(tab)
        layout.addWidget(Container(widgets=list(fields)).native)
        if below is not None:
            layout.addWidget(below, 1)
        layout.addStretch()
        self.tabs.addTab(tab, title)

    def _set_model(self, path: str) -> None:
        self.model.value = path or self.model.value

    def _layers(self, kind: type) -> list[Any]:
        return [layer for layer in self.viewer.layers if isinstance(layer, kind)]

    def _update_layers(self, event: Any = None) -> None:
        self.layer.reset_choices()
        self.labels.reset_choices()
        if (active := self.viewer.layers.selection.active) in self._layers(Image):
            self.layer.value = active

    def inspect(self) -> None:
        """Show what kind of image the layer is."""
        self._start(work.inspect, self.say)

    def train(self) -> None:
        """Train on the layer, or continue a run."""
        options: dict[str, Any] = {"run": self.run.value, "steps": self.steps.value or None}
        options |= {"camera": self.camera.value or None, "init": self.init.value or None}
        options["purpose"] = None if self.purpose.value == _ALL else self.purpose.value
        self._start(partial(work.train, **options), self._trained)

    def denoise(self) -> None:
        """Add the denoised layer."""
        task = partial(work.denoise, model=self.model.value, folder=self.folder.value)
        self._start(task, partial(self._add, "denoised"))

    def sample(self) -> None:
        """Add samples and their standard deviation."""
        task = partial(work.sample, model=self.model.value, n_samples=self.n_samples.value, seed=self.seed.value)
        self._start(task, self._sampled)

    def measure(self) -> None:
        """Fill the table of regions."""
        if (labels := self.labels.value) is None:
            return self.say("There is no labels layer; open a label image, or paint one (New labels layer).")
        self._start(partial(work.regions, model=self.model.value, labels=labels.data), self._measured)

    def export(self) -> None:
        """Write the zip and show its report."""
        card = {name: field.value for name, field in self.card.items() if field.value}
        card["authors"] = [{"name": card.pop("author", "")}]
        task = partial(work.export, model=self.model.value, out=self.zip.value, card=card)
        self._start(task, partial(setattr, self.report, "value"), needs_layer=False)

    def say(self, text: str) -> None:
        """Show a message."""
        self.message.value = text

    def _trained(self, run: Path) -> None:
        self.model.value = str(run)
        self.say(f"The model is in {run}. Denoise with it, or draw samples in How sure.")

    def _add(self, name: str, image: xr.DataArray, **display: Any) -> None:
        data, settings, _ = layer_beside(self.source, image, name)
        self.viewer.add_image(data, **settings, **display)
        self.viewer.layers.selection.active = self.source  # for further tasks
        location = f", in {file}" if (file := image.attrs.get("file")) else ""
        self.say(f"{settings['name']}: {float(middle_of(image).mean()):.3g} photons per pixel{location}")

    def _sampled(self, result: tuple[xr.DataArray, xr.DataArray]) -> None:
        samples, std = result
        self._add("std", std, colormap="viridis")
        self._add("samples", samples)

    def _measured(self, regions: list[gap.Region]) -> None:
        rows = [region.to_dict().items() for region in regions]
        self.table.value = [{k: "not known" if v is None else f"{v:.4g}" for k, v in row} for row in rows]
        self.say("\n".join(map(str, regions)))

    def _start(self, task: Callable[..., Any], then: Callable[[Any], None], *, needs_layer: bool = True) -> None:
        """Run a task in a thread, with the image of the chosen layer; then show the result."""
        if self.job is not None:
            return self.say("Only one task runs at a time; wait for the current one, or stop it.")
        self.source, self.then, axes = self.layer.value, then, self.axes.value
        self.job = work.Job(lambda job: task(job, image_of(self.source, axes)) if needs_layer else task(job))
        self.stop.enabled = True
        self.worker = worker = thread_worker(self.job.run)()
        self.job.stop_requested = lambda: worker.abort_requested  # by Stop, or when napari closes
        worker.finished.connect(self._finish)
        worker.start()
        self.timer.start(_REFRESH_MS)

    def _show_progress(self) -> None:
        if (job := self.job) is None:
            return
        self.bar.max, self.bar.value = job.total, job.done  # a maximum of 0 shows a busy bar
        self.say(str(job))
        if job.news is not None:
            self._draw(*job.news)
            job.news = None

    def _finish(self) -> None:
        self._show_progress()
        job, self.job, self.stop.enabled = self.job, None, False
        self.timer.stop()
        self.bar.max, self.bar.value = 1, 0
        if job is not None:
            self.say(job.failure)
            if job.succeeded:
                self.then(job.result)

    def _draw(self, losses: list[dict[str, float]], images: dict[str, Any]) -> None:
        self.canvas.show()
        figure = self.canvas.figure
        figure.clear()
        first, *others = figure.subplots(3)
        first.plot([row["step"] for row in losses], [row["validation_loss"] for row in losses], marker=".")
        first.set(title="loss on held-out photons", xlabel="step")
        for axes, (name, image) in zip(others, images.items(), strict=True):
            axes.imshow(image, cmap="magma", interpolation="nearest")
            axes.set(title=name, xticks=[], yticks=[])
        self.canvas.draw_idle()


def _button(text: str, press: Callable[[], None]) -> PushButton:
    button = PushButton(text=text)
    button.changed.connect(press)
    return button
