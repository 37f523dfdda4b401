"""An object in other formats than GLB, made when a visitor asks for them."""

from collections.abc import Iterator

import gradio as gr

from redream.app.components import hint
from redream.app.wiring import EXPORTING, PRIVATE, RETRIGGER, UNQUEUED, reports_errors
from redream.runs.queue import find_run
from redream.scene.export import export

CHOICES = [("OBJ", "obj"), ("USDZ (AR)", "usdz"), ("STL (3D printing)", "stl")]


class Downloads:
    """What stands below a 3D model: a format, the height of an STL, a button that makes the file, and the file."""

    def __init__(self) -> None:
        with gr.Column(visible=False) as self.box:
            with gr.Row():
                self.format = gr.Radio(CHOICES, value="obj", label="Other formats", scale=3)
                self.height = gr.Number(100, label="Height in mm", min_width=110, visible=False)
            with gr.Row():
                self.make_button = gr.Button("Make the file", size="sm")
                self.file = gr.DownloadButton(visible=False, size="sm")
            self.note = gr.HTML()

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """Everything that `offered` updates."""
        return [self.box, self.note, self.file]

    @property
    def _nothing(self) -> dict:
        return {self.note: "", self.file: gr.update(visible=False)}

    def connect(self, current: gr.State, number: gr.Radio, error_box: gr.HTML) -> None:
        """Wire it; `current` is the run that is shown, `number` the object."""
        self.format.input(self._choose, self.format, [self.height, self.note, self.file], **RETRIGGER, **UNQUEUED)
        make = reports_errors(error_box, {self.note: ""})(self.make)
        inputs = [current, number, self.format, self.height]
        self.make_button.click(make, inputs, [error_box, self.note, self.file], **EXPORTING, **PRIVATE)

    def offered(self, mesh: str | None) -> dict:
        """Updates for an object that has a GLB or none; what was made of another one is removed."""
        return {self.box: gr.update(visible=mesh is not None)} | self._nothing

    def make(self, run: str | None, number: int, file_format: str, height_mm: float | None) -> Iterator[dict]:
        """Updates with the file and a sentence on it."""
        yield self._nothing | {self.note: hint("The file is being made …")}
        file, sentence = export(find_run(run or "").mesh(number), file_format, height_mm=float(height_mm or 0))
        made = gr.update(value=str(file), label=f"Download {file.name}", visible=True)
        yield {self.note: hint(sentence), self.file: made}

    def _choose(self, file_format: str) -> dict:
        return {self.height: gr.update(visible=file_format == "stl")} | self._nothing
