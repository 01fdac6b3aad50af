"""LitServe: a `LitAPI` with one worker process, which LitServe puts behind FastAPI and uvicorn.

By its documentation: images come as uploaded files. There is no client library; `http.client` with its connection kept
is the fastest of those tried (requests, httpx). Two things that it offers made one client's calls slower and are not
used: `fast_queue`, for more than 100 requests a second, and the body's bytes by a type hint, since it writes them out
for a line of its debug log, whether or not that is kept.
"""

import sys

import litserve
import turns
from work import Task, Work


class Judge(litserve.LitAPI):
    """Judges an uploaded file."""

    def setup(self, device: str) -> None:  # noqa: ARG002  (LitServe's signature)
        """Load the model in the worker process."""
        self._work = Work(Task.given())

    # A type hint would tell LitServe of another kind of request than a form.
    def decode_request(self, request):
        """Return the frame: the content of the form's file."""
        return request["frame"].file.read()

    def predict(self, frame: bytes) -> float:
        """Return the frame's score."""
        return self._work.score(frame)

    def encode_response(self, score: float) -> dict[str, float]:
        """Return what is sent as JSON."""
        return {"score": score}


def serve(task: Task) -> None:
    """Serve until ended."""
    server = litserve.LitServer(Judge(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=task.ports[0], num_api_servers=1, log_level="warning", generate_client_file=False)


def call(task: Task) -> None:
    """Call as told."""
    frame, poster = task.frame(), turns.Poster(task.ports[0])
    turns.take({"HTTP, uploaded file": lambda: float(poster.post("/predict", *turns.upload("frame", frame))["score"])})


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](Task.given())
