"""The package block: what it must say, what it may not, and the manifest's digest of itself."""

import hashlib
import json

import pytest

from edge_agent import block, manifest
from edge_agent.block import Block, Digest, Target
from edge_agent.errors import PackageRefused
from edge_agent.keys import Keys
from model_packager import writing
from support import packages

SHA = "0123456789abcdef" * 4
WHOLE = {
    "format": 1,
    "component": {"name": "board", "version": "1.2.3"},
    "manifest_sha256": SHA,
    "model_arn": "arn:aws:lookoutvision:local:000000000000:model/P/7",
    "files": {"mochi/model.onnx": {"size": 5, "sha256": SHA}},
    "classes": [{"name": "background"}, {"name": "dent", "hex-color": "#0a0b0c"}],
    "any_image_size": True,
    "target": {
        "os": "LINUX",
        "arch": "X86_64",
        "accelerator": "NVIDIA",
        "device": "t4",
        "cpu_flags": ["avx2", "fma"],
        "compiler_options": {"gpu-code": "sm_75"},
    },
    "graph": dict(block.COMPILED),
    "precision": "fp32",
    "peak_memory_bytes": 94906266,
    "warm_up_seconds": 1,
    "parity": {"images": 8},
    "made_from": {"kind": "ONNX component board", "sha256": SHA},
}


def read(content: dict) -> Block:
    return block.read_block(Keys(content, "package"))


def changed(*path: object, value: object) -> dict:
    """Return the whole block with another value at a path; None takes the key away."""
    content = json.loads(json.dumps(WHOLE))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


def test_a_whole_block():
    assert read(WHOLE) == Block(
        name="board",
        version="1.2.3",
        arn="arn:aws:lookoutvision:local:000000000000:model/P/7",
        files={"mochi/model.onnx": Digest(5, SHA)},
        hex_colors={1: "#0A0B0C"},
        any_image_size=True,
        peak_memory=94906266,
        target=Target("X86_64", "NVIDIA", "t4", ("avx2", "fma"), {"gpu-code": "sm_75"}),
        compiled=True,
        class_names=("background", "dent"),
    )
    assert set(WHOLE) == block.KEYS, "a key that the agent knows is not in this test"


def test_the_least_that_a_block_says():
    least = {key: WHOLE[key] for key in ("format", "component", "files")}
    assert read(least) == Block(
        name="board",
        version="1.2.3",
        arn="arn:aws:lookoutvision:local:000000000000:model/board/1",
        files={"mochi/model.onnx": Digest(5, SHA)},
        hex_colors={},
        any_image_size=False,
        peak_memory=None,
        target=None,
        compiled=False,
    )
    assert read({**least, "target": {"arch": "ARM64"}}).target == Target("ARM64")


REFUSED = {
    "no format": (("format",), None, "has format None; this agent reads 1"),
    "newer format": (("format",), 2, "has format 2"),
    "format a text": (("format",), "1", "has format '1'"),
    "unknown key": (("licence",), "x", "keys that this agent does not know: 'licence'"),
    "no component": (("component",), None, "package lacks component"),
    "component a text": (("component",), "board", "package.component is 'board'"),
    "no name": (("component", "name"), None, "package.component lacks name"),
    "name with a slash": (("component", "name"), "../board", "'../board'"),
    "name of 129": (("component", "name"), "n" * 129, "it needs a name"),
    "version of two numbers": (
        ("component", "version"),
        "1.2",
        "'1.2'; it needs a name of [a-zA-Z0-9-_.] and a version",
    ),
    "ARN a number": (("model_arn",), 7, "package.model_arn is 7"),
    "ARN with a line end": (("model_arn",), "arn:aws\n", "printable characters without spaces"),
    "ARN of 2049": (("model_arn",), "a" * 2049, "1 to 2048 printable characters"),
    "no files": (("files",), None, "package lacks files"),
    "files a list": (("files",), ["mochi/model.onnx"], "package.files is"),
    "file a digest": (("files", "mochi/model.onnx"), SHA, "package.files['mochi/model.onnx'] is not an object"),
    "no size": (("files", "mochi/model.onnx", "size"), None, "lacks size"),
    "size a text": (("files", "mochi/model.onnx", "size"), "5", "size is '5'"),
    "no sha256": (("files", "mochi/model.onnx", "sha256"), None, "lacks sha256"),
    "sha256 in capitals": (("files", "mochi/model.onnx", "sha256"), SHA.upper(), "not a SHA-256 in lower-case"),
    "sha256 too short": (("files", "mochi/model.onnx", "sha256"), SHA[:-1], "not a SHA-256"),
    "classes an object": (("classes",), {}, "package.classes is {}"),
    "class a text": (("classes", 1), "dent", "package.classes[1] is not an object"),
    "class without a name": (("classes", 1, "name"), None, "package.classes[1] lacks name"),
    "class of another name": (("classes", 0, "name"), 7, "package.classes[0].name is 7"),
    "colour by name": (
        ("classes", 1, "hex-color"),
        "red",
        "package.classes[1].hex-color is 'red'; write it as #RRGGBB",
    ),
    "colour with more behind it": (("classes", 1, "hex-color"), "#0a0b0c0d", "write it as #RRGGBB"),
    "any size a text": (("any_image_size",), "yes", "package.any_image_size is 'yes'"),
    "memory a text": (("peak_memory_bytes",), "1 GB", "package.peak_memory_bytes is '1 GB'"),
    "memory not finite": (("peak_memory_bytes",), float("inf"), "it must be a finite number"),
    "memory negative": (("peak_memory_bytes",), -1e15, "package.peak_memory_bytes is -1e+15; it must not be negative"),
    "long option": (("target", "compiler_options", "gpu-code"), "x" * 201, "a text of more than 200 characters"),
    "long device": (("target", "device"), "x" * 201, "a text of more than 200 characters"),
    "target a text": (("target",), "t4", "package.target is 't4'"),
    "another system": (("target", "os"), "WINDOWS", "for 'WINDOWS'; this device runs LINUX"),
    "no architecture": (("target", "arch"), None, "package.target lacks arch"),
    "flags a text": (("target", "cpu_flags"), "avx2", "package.target.cpu_flags is 'avx2'"),
    "a flag a number": (("target", "cpu_flags"), ["avx2", 2], "it must be a list of texts"),
    "options a list": (("target", "compiler_options"), [], "package.target.compiler_options is []"),
    "graph with less inside": (("graph", "argmax"), False, "this agent knows graphs with all of it inside"),
    "graph with more inside": (("graph", "resize"), True, "this agent knows graphs with all of it inside"),
    "graph a text": (("graph",), "compiled", "package.graph is 'compiled'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what):
    path, value, words = REFUSED[what]
    with pytest.raises(PackageRefused) as caught:
        read(changed(*path, value=value))
    assert words in str(caught.value)


def test_what_is_shown_of_a_value_is_short():
    for content in (changed("format", value="x" * 10_000), changed("graph", value={"x" * 10_000: 1})):
        with pytest.raises(PackageRefused) as caught:
            read(content)
        assert len(str(caught.value)) < 400


def signed(content: dict | None = None) -> bytes:
    return block.sign(json.dumps({"package": content or {**WHOLE, "manifest_sha256": "0" * 64}}, indent=1).encode())


class TestDigestOfItself:
    def test_it_is_that_of_the_file_with_zeros_in_its_place(self):
        data = signed()
        own = json.loads(data)["package"]["manifest_sha256"]
        assert own == hashlib.sha256(data.replace(own.encode(), b"0" * 64)).hexdigest()
        block.check_signed(data)

    def test_signing_again_changes_nothing_and_signing_a_change_makes_it_valid(self):
        data = signed()
        assert block.sign(data) == data
        edited = data.replace(b'"1.2.3"', b'"1.2.4"')
        with pytest.raises(PackageRefused, match="its SHA-256 is not the one in its package block"):
            block.check_signed(edited)
        block.check_signed(block.sign(edited))

    def test_every_byte_counts(self):
        """Also those that JSON does not care for, and those of the digest."""
        data = signed()
        refused = 0
        for at in range(len(data)):
            other = bytearray(data)
            other[at] ^= 1
            with pytest.raises(PackageRefused, match=r"^manifest\.json was changed"):
                block.check_signed(bytes(other))
            refused += 1
        assert refused == len(data)
        with pytest.raises(PackageRefused):
            block.check_signed(data + b"\n")

    @pytest.mark.parametrize(
        "data",
        [
            b"{}",
            b'{"manifest_sha256": ""}',
            f'{{"manifest_sha256": "{SHA.upper()}"}}'.encode(),
            f'{{"a": {{"manifest_sha256": "{SHA}"}}, "b": {{"manifest_sha256": "{SHA}"}}}}'.encode(),
        ],
        ids=["none", "empty", "capitals", "two"],
    )
    def test_there_must_be_one(self, data):
        for function in (block.sign, block.check_signed):
            with pytest.raises(PackageRefused, match="no manifest_sha256 of itself"):
                function(data)

    def test_what_can_be_told_of_a_manifest_that_is_no_json_any_more(self):
        data = signed()
        assert block.claimed(data) == ("board", "1.2.3")
        assert block.claimed(data[:-20]) == ("board", "1.2.3")
        assert block.is_signed(data.replace(b'"package"', b'"qackage"'))
        assert block.claimed(data.replace(b"board", b"bo rd")) is None
        field = packages.manifest_bytes(packages.manifest())
        assert (block.claimed(field), block.is_signed(field)) == (None, False)


def test_what_the_packager_writes_is_what_the_agent_reads(tmp_path):
    content = writing.mochi_manifest((64, 64), 0.5, ("background", "dent"), normalize=False)
    more = {key: WHOLE[key] for key in set(WHOLE) - {"format", "component", "manifest_sha256", "files", "classes"}}
    writing.write(tmp_path / "board", content, b"model", "board", "1.2.3", colours={"dent": "#0a0b0c"}, more=more)
    data = (tmp_path / "board" / "manifest.json").read_bytes()
    block.check_signed(data)
    parsed = manifest.parse(manifest.parse_json(data))
    files = {"mochi/model.onnx": Digest(5, hashlib.sha256(b"model").hexdigest())}
    assert parsed.block == Block(**{**vars(read(WHOLE)), "files": files})
