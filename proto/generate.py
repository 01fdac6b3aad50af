"""Regenerate agent/edge_agent/_proto from edge-agent.proto: `python proto/generate.py` (or `make proto`).

The generated module builds its classes from the serialised descriptor through protobuf's public calls, in a descriptor
pool of its own. Code written by protoc would register in the default pool, where a second `edge_agent_pb2` (a
customer's own) is a "duplicate symbol", and would refuse every protobuf runtime older than the protoc that wrote it.
"""

import argparse
import sys
import tempfile
import textwrap
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTO = "edge-agent.proto"
TARGET = HERE.parent / "agent" / "edge_agent" / "_proto"

HEADER = '''"""Generated from {proto} by proto/generate.py; do not edit."""
'''

MODULE = (
    HEADER
    + """
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.internal import enum_type_wrapper

_POOL = descriptor_pool.DescriptorPool()
DESCRIPTOR = _POOL.AddSerializedFile(
{descriptor}
)

{classes}
{enums}
"""
)

STUB = (
    HEADER
    + """
from typing import Any

from edge_agent._proto import edge_agent_pb2

SERVICE = "{service}"
# RPC name -> (request class, response class); all unary.
METHODS = {{
{methods}
}}


class {name}Stub:
    \"\"\"The client's side: one callable per RPC.\"\"\"

    def __init__(self, channel: Any) -> None:
        for rpc, (_, response) in METHODS.items():
            call = channel.unary_unary(
                f"/{{SERVICE}}/{{rpc}}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=response.FromString,
            )
            setattr(self, rpc, call)
"""
)


def compile_proto(folder: Path) -> tuple[FileDescriptorProto, str]:
    """Run protoc on the .proto; return its descriptor and the type stubs."""
    well_known = str(files("grpc_tools") / "_proto")
    out = folder / "descriptor.bin"
    arguments = ["protoc", f"-I{HERE}", f"-I{well_known}", f"--descriptor_set_out={out}", f"--pyi_out={folder}", PROTO]
    if protoc.main(arguments) != 0:
        sys.exit("protoc refused the .proto; its reason stands above.")
    descriptors = FileDescriptorSet.FromString(out.read_bytes())
    return descriptors.file[0], (folder / "edge_agent_pb2.pyi").read_text()


def render(proto: FileDescriptorProto, stubs: str) -> dict[str, str]:
    """Return file name -> text of the generated package."""
    service = proto.service[0]
    descriptor = "\n".join(f"    {chunk!r}" for chunk in _chunks(proto.SerializeToString(deterministic=True), 60))
    classes = "\n".join(
        f'{message.name} = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["{message.name}"])'
        for message in proto.message_type
    )
    enums = "\n".join(f"{value.name} = {value.number}" for enum in proto.enum_type for value in enum.value)
    wrappers = "\n".join(
        f'{enum.name} = enum_type_wrapper.EnumTypeWrapper(DESCRIPTOR.enum_types_by_name["{enum.name}"])'
        for enum in proto.enum_type
    )
    module = MODULE.format(proto=PROTO, descriptor=descriptor, classes=classes, enums=f"{wrappers}\n{enums}")
    methods = "\n".join(
        f'    "{method.name}": (edge_agent_pb2.{_short(method.input_type)}, '
        f"edge_agent_pb2.{_short(method.output_type)}),"
        for method in service.method
    )
    return {
        "__init__.py": HEADER.format(proto=PROTO),
        "edge_agent_pb2.py": module,
        "edge_agent_pb2.pyi": stubs,
        "edge_agent_pb2_grpc.py": STUB.format(
            proto=PROTO, service=f"{proto.package}.{service.name}", methods=methods, name=service.name
        ),
    }


def _chunks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _short(full_name: str) -> str:
    return full_name.rpartition(".")[2]


def main() -> int:
    """Write the generated files, or with --check only compare them; return the exit code."""
    parser = argparse.ArgumentParser(description=textwrap.dedent(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a file is not current")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        rendered = render(*compile_proto(Path(folder)))
    stale = [name for name, text in rendered.items() if _read(TARGET / name) != text]
    if check:
        print(f"not current: {', '.join(stale)}" if stale else "current")
        return 1 if stale else 0
    for name in stale:
        (TARGET / name).write_text(rendered[name])
    return 0


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
