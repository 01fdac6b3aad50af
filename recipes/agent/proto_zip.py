"""Make `lookoutvision_edge_agent.zip`, the artifact with the API's proto: python proto_zip.py FOLDER.

Greengrass unpacks it to `artifacts-unarchived/<component>/<version>/lookoutvision_edge_agent/edge-agent.proto`, where
developers of clients look for it; nothing needs it at run time. The same proto gives the same bytes.
"""

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

PROTO = Path(__file__).resolve().parents[2] / "proto" / "edge-agent.proto"
NAME = "lookoutvision_edge_agent.zip"
EPOCH = (1980, 1, 1, 0, 0, 0)
FOR_ALL_TO_READ = 0o100644


def main(arguments: Sequence[str]) -> int:
    """Write the zip into the folder that the arguments name; return the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python proto_zip.py FOLDER", file=sys.stderr)
        return 2
    try:
        print(make(Path(arguments[0])))
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def make(folder: Path) -> Path:
    """Write the zip into `folder`, in the place of an older one, and return its path."""
    path = folder / NAME
    entry = zipfile.ZipInfo(PROTO.name, EPOCH)
    # Written as by Unix wherever it is made; and not compressed, which another zlib may do to other bytes.
    entry.create_system = 3
    entry.external_attr = FOR_ALL_TO_READ << 16
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(entry, PROTO.read_bytes())
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
