"""Every name of TensorRT, CUDA and NVML that the agent uses is one of the real packages, with the same arguments.

The packages come from an index, once, and are looked at in a process of their own: none of them needs a GPU for that, and
TensorRT's libraries, without which its Python module is not loaded, are stood in for by empty ones. What the backends use is
what the fakes have (another name fails there), so it is the fakes that are compared: their classes, methods, arguments,
results and numbers, version by version. So is what stands in the source.
"""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edge_agent
from support import fake_cuda, fake_tensorrt
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import VERSIONS, FakeTensorRt

SOURCES = sorted(Path(edge_agent.__file__).parent.rglob("*.py"))
BINDINGS = dict(
    zip(VERSIONS, ("tensorrt-cu12-bindings", "tensorrt-cu13-bindings", "tensorrt-cu13-bindings"), strict=True)
)
# cuda-python of JetPack 6, the last of CUDA 12, and a newer one: what is downloaded, and the module.
CUDA = {
    "12.3": (["cuda-python==12.3.0"], fake_cuda.OLD),
    "12.9": (["cuda-bindings==12.9.7", "cuda-pathfinder"], fake_cuda.NEW),
    "13": (["cuda-bindings==13.4.4", "cuda-pathfinder"], fake_cuda.NEW),
}
# What TensorRT's Python module wants of its libraries when it is loaded; none of it is called then but the first.
LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")
STAND_IN = "int getNvOnnxParserVersion(void) { return 0; }\n" + "".join(
    f"void *{name}(void) {{ return 0; }}\n"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
        "initLibNvInferPlugins",
    )
)
# The classes that the agent makes objects of, or subclasses.
MADE = {"Builder", "OnnxParser", "Runtime", "ILogger", "IProgressMonitor", "IInt8EntropyCalibrator2"}
# Prints of a module what it has: of each name its docstring, its number, whether it can be set, and what is in it.
TELL = """
import importlib, inspect, json, sys

def told(one, depth=0):
    said = {"doc": getattr(one, "__doc__", None) or ""}
    try:
        said["number"] = int(one)
    except Exception:
        pass
    if isinstance(one, property):
        said["set"] = one.fset is not None
    if inspect.isclass(one) and depth < 2:
        said["has"] = {name: told(inspect.getattr_static(one, name), depth + 1) if isinstance(
            inspect.getattr_static(one, name), property) else told(getattr(one, name), depth + 1)
            for name in dir(one) if name == "__init__" or not name.startswith("_")}
    return said

module = importlib.import_module(sys.argv[1])
has = {name: told(getattr(module, name)) for name in dir(module) if not name.startswith("_")}
print(json.dumps({"version": getattr(module, "__version__", ""), "has": has}))
"""

# Makes of the real classes what the agent makes of them; a builder and a runtime there are none without the libraries.
MAKE = """
import importlib, json, sys

sys.modules["tensorrt"] = importlib.import_module(sys.argv[1])
from edge_agent.backends import trt_build, trt_reports, trt_sdk
from edge_agent.errors import AcceleratorFailed

sdk, told, failed = trt_sdk.load(), [], []
log = trt_reports.Log(sdk.trt)
for one in (sdk.trt.Builder, sdk.trt.Runtime):
    try:
        trt_build.made(log, lambda: one(log.own))
    except AcceleratorFailed as error:
        failed.append(str(error))
log.own.log(sdk.trt.ILogger.Severity.VERBOSE, "nothing")
log.own.log(sdk.trt.ILogger.Severity.ERROR, "Error Code 10: no")
building = trt_reports.Building(sdk.trt, lambda one: told.append(one.text), "Building", every=0)
building.monitor.phase_start("a", None, 2)
going_on = building.monitor.step_complete("a", 0)
building.monitor.phase_finish("a")
read = None if sdk.typed_only else trt_sdk._calibrator(sdk.trt, b"kept").read_calibration_cache().decode()
print(json.dumps({
    "version": sdk.version,
    "failed": failed,
    "reason": str(log.failure("It fails")),
    "going_on": going_on,
    "told": told,
    "flags": [sdk.network_flags(one) for one in ("package", "fp16")],
    "read": read,
}))
"""

# Takes a GPU that is not there.
NO_GPU = """
import json

from edge_agent.backends import cuda

assert cuda.installed()
try:
    cuda.Cuda(0)
except Exception as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""


@pytest.fixture(scope="module")
def wheels(request):
    """Returns the folder that packages are unpacked in, downloaded where they are not there yet."""
    cache = request.config.cache.mkdir("sdk-wheels")

    def unpacked(*wanted):
        folder = cache / "+".join([*wanted, f"cp{sys.version_info[0]}{sys.version_info[1]}"])
        if not folder.is_dir():
            files = folder.with_name(f"{folder.name}.downloaded")
            shutil.rmtree(files, ignore_errors=True)
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            done = subprocess.run(
                [*download, "--dest", str(files), *wanted], check=False, capture_output=True, text=True, timeout=300
            )
            if done.returncode:
                pytest.skip(f"pip finds no {', '.join(wanted)} for this Python: {done.stderr.strip()[-200:]}")
            content = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(content, ignore_errors=True)
            for file in files.glob("*.whl"):
                zipfile.ZipFile(file).extractall(content)
            content.rename(folder)
            shutil.rmtree(files)
        return folder

    return unpacked


def tell(folder, module, program=TELL, **environment):
    """What a module has, or what a program says of it, asked in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]), **environment}
    command = [sys.executable, "-W", "ignore", "-c", program, module]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tensorrt(wheels, tmp_path_factory):
    """Returns what TensorRT's module of a version has, or what a program says of it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("TensorRT's libraries are stood in for by compiled ones, and there is no C compiler (cc)")
    folder = tmp_path_factory.mktemp("libraries")
    for name in LIBRARIES:
        for major in {version.split(".")[0] for version in VERSIONS}:
            out = folder / f"{name}.so.{major}"
            command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(out)]
            subprocess.run(command, input=STAND_IN, text=True, check=True)
    known = {}

    def told(version, program=TELL):
        if (version, program) not in known:
            unpacked = wheels(f"{BINDINGS[version]}=={version}")
            known[version, program] = tell(unpacked, "tensorrt_bindings", program, LD_LIBRARY_PATH=str(folder))
        return known[version, program]

    return told


# Comparing


def arguments(function):
    """The names of a function's arguments, and whether each may be left out."""
    given = inspect.signature(function).parameters.values()
    return [(one.name, one.default is not one.empty) for one in given if one.name != "self"]


def overloads(name, doc):
    """The same of each signature that pybind11 wrote into a docstring."""
    found = []
    for signature in re.findall(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\)(?: ->|$)", doc, re.MULTILINE):
        if signature == "*args, **kwargs":
            continue
        named = re.findall(r"(?:^|, )(\w+): ([^,\[\]]*(?:\[[^\]]*\])?[^,\[\]]*)", signature)
        found.append([(one, "=" in kind) for one, kind in named if one != "self"])
    return found


def fits(ours, real):
    """Whether a call with our arguments is one of the real function's."""
    names = [name for name, _ in ours]
    return names == [name for name, _ in real[: len(names)]] and all(optional for _, optional in real[len(names) :])


def wrong(fake, real, path=""):
    """What a fake class or module has that the real one has not, or has otherwise."""
    found = []
    for name in dir(fake):
        ours, where = inspect.getattr_static(fake, name), f"{path}.{name}".lstrip(".")
        if name.startswith("_") and not (name == "__init__" and path in MADE):
            continue
        if name not in real["has"]:
            found.append(f"there is no {where}")
            continue
        theirs = real["has"][name]
        if inspect.isclass(ours):
            found += wrong(ours, theirs, where)
        elif inspect.isfunction(ours):
            if not any(fits(arguments(ours), one) for one in overloads(name, theirs["doc"])):
                found.append(f"{where} is called otherwise: {theirs['doc'][:300]!r}")
        elif isinstance(ours, fake_tensorrt.Member) and theirs.get("number") != ours.number:
            found.append(f"{where} is {theirs.get('number')}")
    for name in getattr(fake, "_properties", ()):
        if not real["has"].get(name, {}).get("set"):
            found.append(f"{path}.{name} cannot be set")
    return found


def chains(tree, root):
    """The dotted names in a source that begin at a name, or at an attribute of that name."""
    found = set()
    for one in ast.walk(tree):
        node, parts = one, []
        while isinstance(node, ast.Attribute) and node.attr != root:
            parts.insert(0, node.attr)
            node = node.value
        if parts and root in {getattr(node, "id", None), getattr(node, "attr", None)}:
            found.add(".".join(parts))
    return found


def in_source(root):
    return {chain for path in SOURCES for chain in chains(ast.parse(path.read_text()), root)}


def has(real, chain):
    for part in chain.split("."):
        real = real.get("has", {}).get(part)
        if real is None:
            return False
    return True


def has_fake(module, chain):
    for part in chain.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


class TestTensorRt:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_the_fake_is_as_the_real_one(self, version, tensorrt):
        real = tensorrt(version)
        assert real["version"] == version
        assert wrong(FakeTensorRt(FakeCuda(), version).module, real) == []

    @pytest.mark.parametrize("version", VERSIONS)
    def test_what_is_in_the_source_is_in_both_or_in_none(self, version, tensorrt):
        used = in_source("trt") - {"__version__"}
        assert {"Builder", "BuilderFlag.FP16", "ILogger.Severity", "init_libnvinfer_plugins"} <= used
        real, fake = tensorrt(version), FakeTensorRt(FakeCuda(), version).module
        assert {one: has_fake(fake, one) for one in used} == {one: has(real, one) for one in used}

    def test_nothing_in_the_source_is_in_no_version(self):
        modules = [FakeTensorRt(FakeCuda(), version).module for version in VERSIONS]
        assert [one for one in in_source("trt") if not any(has_fake(module, one) for module in modules)] == []

    def test_11_is_without_the_precisions_of_10(self, tensorrt):
        gone = ["BuilderFlag.FP16", "BuilderFlag.INT8", "IInt8EntropyCalibrator2", "IBuilderConfig.int8_calibrator"]
        assert [[has(tensorrt(version), one) for one in gone] for version in VERSIONS] == [
            [True] * 4,
            [True] * 4,
            [False] * 4,
        ]

    @pytest.mark.parametrize("version", VERSIONS)
    def test_what_the_agent_makes_of_the_real_classes(self, version, tensorrt):
        old = not version.startswith("11.")
        assert tensorrt(version, MAKE) == {
            "version": ".".join(version.split(".")[:3]),
            "failed": ["TensorRT cannot be started on the GPU: it gives no reason."] * 2,
            "reason": "It fails: Error Code 10: no.",
            "going_on": True,
            "told": ["Building: a, step 0 of 2; 0 s so far.", "Building: a, step 1 of 2; 0 s so far."],
            "flags": [2 if old else 0, 0],
            "read": "kept" if old else None,
        }

    @pytest.mark.parametrize("version", VERSIONS)
    def test_what_is_made_up_is_found_out(self, version, tensorrt):
        """The control: each kind of mistake is one that is told."""
        fake = FakeTensorRt(FakeCuda(), version).module
        builder, config = fake.Builder, fake.IBuilderConfig
        builder.build_engine_now = lambda self: None
        builder.create_network = lambda self, options=0: None
        fake.OnnxParser.parse = lambda self, model, path, more: None
        config._properties = (*config._properties, "precision")
        fake.TensorIOMode.INPUT = fake_tensorrt.Member("TensorIOMode", "INPUT", 7)
        fake.make_faster = lambda: None
        told = [re.sub(" otherwise.*", "", one) for one in wrong(fake, tensorrt(version))]
        assert sorted(told) == [
            "Builder.create_network is called",
            "IBuilderConfig.precision cannot be set",
            "OnnxParser.parse is called",
            "TensorIOMode.INPUT is 1",
            "there is no Builder.build_engine_now",
            "there is no make_faster",
        ]


def c_arguments(doc):
    """The names of the arguments in the first line of a docstring of cuda-python's, as "f(size_t size, kind: K, ptr)"."""
    listed = re.match(r"\w+\((.*)\)", doc.strip().splitlines()[0])[1]
    return [re.split(r"[\s*]+", one.partition(":")[0].strip())[-1] for one in listed.split(",") if one.strip()]


def returned(doc):
    """How much a function of cuda-python's returns besides its error, by its docstring."""
    section = re.search(r"^( *)Returns\n *-+\n(.*?)\n *\n", f"{doc}\n\n", re.MULTILINE | re.DOTALL)
    return len(re.findall(rf"^{section[1]}\w+ : ", section[2], re.MULTILINE))


def wrong_cuda(fake, real):
    found = []
    for name in dir(fake):
        if not name.startswith("cuda"):
            continue
        ours, theirs = getattr(fake, name), real["has"].get(name)
        if theirs is None:
            found.append(f"there is no {name}")
        elif not callable(ours):
            if theirs.get("number") != ours:
                found.append(f"{name} is {theirs.get('number')}")
        elif [one for one, _ in arguments(ours)] != c_arguments(theirs["doc"]):
            found.append(f"{name} takes {c_arguments(theirs['doc'])}")
        elif not name.startswith("cudaGetError") and returned(theirs["doc"]) != fake_cuda.RETURNING.get(name, 0):
            found.append(f"{name} returns {returned(theirs['doc'])}")
    for kind in (fake_cuda.cudaError_t, fake_cuda.cudaMemcpyKind, fake_cuda.cudaStreamCaptureMode):
        members = real["has"].get(kind.__name__, {}).get("has", {})
        found += [f"there is no {one!r}" for one in kind if members.get(one.name, {}).get("number") != one]
    return found


@pytest.mark.parametrize("version", CUDA)
class TestCuda:
    @pytest.fixture
    def real(self, version, wheels):
        packages, module = CUDA[version]
        return tell(wheels(*packages), module)

    def test_the_fake_is_as_the_real_one(self, version, real):
        assert wrong_cuda(FakeCuda(), real) == []

    def test_what_is_in_the_source_is_in_both(self, version, real):
        used = {one for one in in_source("runtime") | in_source("_runtime") if one.startswith("cuda")}
        assert {"cudaMalloc", "cudaMemcpyKind.cudaMemcpyHostToDevice", "cudaError_t.cudaSuccess"} <= used
        module = FakeCuda().module()
        assert [one for one in used if not (has(real, one) and has_fake(module, one))] == []

    @pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="this machine may have a GPU")
    def test_what_the_agent_says_where_there_is_no_gpu(self, version, wheels):
        packages, module = CUDA[version]
        said = tell(wheels(*packages), module, NO_GPU)
        assert said.startswith("AcceleratorMissing: GPU 0 cannot be used: cudaSetDevice failed")
        assert (": Failed to dlopen" if version == "12.3" else "CUDA error 35, cudaErrorInsufficientDriver: ") in said

    def test_what_is_made_up_is_found_out(self, version, real):
        class Wrong(FakeCuda):
            cudaStreamNonBlocking = 3  # noqa: N815

            def cudaMallocNow(self, size):
                pass

            def cudaFree(self, pointer):
                pass

        assert wrong_cuda(Wrong(), real) == [
            "cudaFree takes ['devPtr']",
            "there is no cudaMallocNow",
            "cudaStreamNonBlocking is 1",
        ]
        assert wrong_cuda(FakeCuda(), {"has": {}}), "nothing at all is like it"


def test_nvml():
    """Of the package that the environment has, in a process of its own."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    real = tell("", "pynvml")
    used = in_source("pynvml")
    assert {"nvmlInit", "nvmlDeviceGetName"} <= used
    assert [one for one in used if not has(real, one)] == []
    assert not has(real, "nvmlDeviceGetMadeUp")
