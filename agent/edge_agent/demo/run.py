"""Render boards, fit a template to the good ones, serve it by a real agent, judge with the real client, tell the truth."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from PIL import Image

from edge_agent import overlay
from edge_agent.address import socket_path
from edge_agent.cli.boundary import undivided
from edge_agent.cli.tables import table
from edge_agent.client import AgentUnavailable, CallFailed, Detection, EdgeAgentClient
from edge_agent.demo.boards import DEFECTS, HEIGHT, WIDTH, Board, Line
from model_packager import template, writing

NAME = "demo-board"
TRAINING = 24
GOOD, EACH_DEFECT = 6, 2
PATIENCE = 30.0
# zlib's fastest level: a fifth of the default's time for files a sixth larger, noise being what photographs are full of.
QUICKLY = 1


class DemoFailed(Exception):
    """The demo could not be run; the text says why."""


@dataclass(frozen=True)
class Inspected:
    """A board and what the agent said of it; `seconds` is the time of the call as the client saw it."""

    name: str
    board: Board
    detection: Detection
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the verdict is the truth."""
        return self.detection.is_anomalous == (self.board.defect is not None)


def demo(seed: int, keep: Path | None) -> bool:
    """Run the demo and print what happens; return whether every verdict is right. Raises DemoFailed."""
    begin = time.monotonic()
    try:
        folder = Path(tempfile.mkdtemp(prefix="edge-agent-demo-"))
        results = keep or Path(tempfile.mkdtemp(prefix="edge-agent-demo-results-"))
    except OSError as error:
        raise DemoFailed(f"No temporary folder can be made: {error.strerror}; name another in TMPDIR.") from None
    try:
        socket = _socket(folder)
        line = Line(seed)
        click.echo(f"Rendering {TRAINING} good boards and fitting a template to them (seed {seed})...")
        normals = [line.good().pixels for _ in range(TRAINING)]
        fitted = template.fit(normals)
        package = folder / "models" / NAME
        manifest = writing.mochi_manifest((WIDTH, HEIGHT), 0.5, ("background", "defect"), normalize=False)
        # Green would not be seen on a circuit board.
        writing.write(package, manifest, template.to_onnx(fitted), NAME, colours={"defect": "#FF2EDC"})
        click.echo("Starting the agent and the model...")
        with _agent(folder, socket) as client:
            try:
                client.start_and_wait(NAME, timeout=PATIENCE)
                inspected = _inspect(client, line)
            except (CallFailed, TimeoutError) as error:
                raise DemoFailed(f"{error} The agent's log:\n{(folder / 'log').read_text()}") from None
        overlays = _write_overlays(inspected, results / "overlays")
        if keep:
            _keep(keep, normals, inspected, package)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise DemoFailed(f"The demo could not be run: {where}{error.strerror or error}.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(_table(inspected))
    wrong = sum(not one.right for one in inspected)
    click.echo(f"{len(inspected)} boards judged, {wrong} wrong; {time.monotonic() - begin:.1f} s in all.")
    click.echo(f"Overlays: {overlays}")
    return wrong == 0


def _socket(folder: Path) -> Path:
    try:
        return socket_path(str(folder / "agent.sock"))
    except ValueError as error:
        raise DemoFailed(f"No agent can be reached in {folder}: {error}. Name another folder in TMPDIR.") from None


@contextlib.contextmanager
def _agent(folder: Path, socket: Path) -> Iterator[EdgeAgentClient]:
    """Serve `folder`/models on a socket; yield a client once the agent answers."""
    command = [
        sys.executable,
        "-m",
        "edge_agent",
        "serve",
        "--socket",
        str(socket),
        "--socket-group",
        "",
        "--models",
        str(folder / "models"),
        "--state-dir",
        str(folder / "state"),
    ]
    if os.geteuid() == 0:
        click.echo(
            "note: run by root, so the agent is started with --allow-root; on a device give it a user of its own"
        )
        command.append("--allow-root")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_AGENT_")}
    process = None
    try:
        with (folder / "log").open("wb") as log, undivided():
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)  # noqa: S603
        with EdgeAgentClient(str(socket)) as client:
            _wait_for(client, process, folder / "log")
            yield client
    finally:
        if process:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(client: EdgeAgentClient, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            client.list_models()
        except AgentUnavailable:
            if process.poll() is not None or time.monotonic() > give_up:
                raise DemoFailed(f"The agent did not start:\n{log.read_text()}") from None
            time.sleep(0.05)
        else:
            return


def _inspect(client: EdgeAgentClient, line: Line) -> list[Inspected]:
    """Judge good and defective boards, in shared memory."""
    boards = [(f"good-{number + 1}", line.good()) for number in range(GOOD)]
    for defect in DEFECTS:
        boards += [
            (f"{defect.replace(' ', '-')}-{number + 1}", line.defective(defect)) for number in range(EACH_DEFECT)
        ]
    inspected = []
    client.detect(NAME, boards[0][1].pixels)  # makes the segments, which the line would have
    for name, board in boards:
        begin = time.monotonic()
        detection = client.detect(NAME, board.pixels)
        inspected.append(Inspected(name, board, detection, time.monotonic() - begin))
    return inspected


def _write_overlays(inspected: list[Inspected], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for one in inspected:
        overlay.draw(one.board.pixels, one.detection, one.name).save(folder / f"{one.name}.png", compress_level=QUICKLY)
    return folder


def _keep(folder: Path, normals: list[template.Pixels], inspected: list[Inspected], package: Path) -> None:
    """Leave everything as a user of `fit template` and `detect` would have it."""
    for kind, pictures in (
        ("normal", {f"normal-{number:02}": pixels for number, pixels in enumerate(normals)}),
        ("inspected", {one.name: one.board.pixels for one in inspected}),
    ):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, pixels in pictures.items():
            Image.fromarray(pixels).save(folder / kind / f"{name}.png", compress_level=QUICKLY)
    shutil.rmtree(folder / "models" / NAME, ignore_errors=True)
    shutil.copytree(package, folder / "models" / NAME)


def _table(inspected: list[Inspected]) -> str:
    rows = []
    for one in inspected:
        verdict = "ANOMALOUS" if one.detection.is_anomalous else "normal"
        area = next((kind.total_percentage_area for kind in one.detection.anomalies if kind.name == "defect"), 0.0)
        rows.append(
            (
                one.name,
                one.board.defect or "good",
                click.style(verdict, "green" if one.right else "red") + ("" if one.right else "  WRONG"),
                f"{one.detection.confidence:.3f}",
                f"{area:.2%}",
                f"{one.seconds * 1000:.1f} ms",
            )
        )
    return table(("BOARD", "TRUTH", "VERDICT", "CONFIDENCE", "DEFECT AREA", "LATENCY"), rows, right=(3, 4, 5))
