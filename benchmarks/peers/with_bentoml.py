"""BentoML: a class decorated as a service, served by `bentoml serve`.

By its documentation: what is no image is a file, a `Path`, which the server writes for each call. `http.client` with its
connection kept is the fastest client of those tried; BentoML's own, measured beside it, takes files only by their path.
Two ways that it offers are slower and not used: arrays, which travel as JSON, and a file as the whole body, which it
decodes as text to see whether it is the address of a file.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import turns
from bentoml.validators import ContentType
from work import Task, Work

File = Annotated[Path, ContentType("application/octet-stream")]


@bentoml.service(workers=1)
class Judge:
    """The service."""

    def __init__(self) -> None:
        """Load the model in the worker process."""
        self._work = Work(Task.given())

    @bentoml.api
    def upload(self, frame: File) -> float:
        """Return the score of an uploaded file."""
        return self._work.score(frame.read_bytes())


def serve(task: Task) -> None:
    """Become `bentoml serve`."""
    command = ["bentoml", "serve", "with_bentoml:Judge", "--working-dir", str(Path(__file__).parent)]
    # BentoML reports its use over the network unless told not to.
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    os.execv(Path(sys.executable).with_name("bentoml"), [*command, "--host", "127.0.0.1", "--port", str(task.ports[0])])


def call(task: Task) -> None:
    """Call as told."""
    frame = task.frame()
    on_disk = Path(task.folder) / "frame"
    on_disk.write_bytes(frame)
    poster = turns.Poster(task.ports[0])
    client = bentoml.SyncHTTPClient(f"http://127.0.0.1:{task.ports[0]}")
    turns.take(
        {
            "HTTP, uploaded file": lambda: float(poster.post("/upload", *turns.upload("frame", frame))),
            "HTTP, own client, file on disk": lambda: float(client.upload(frame=on_disk)),
        }
    )


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](Task.given())
