"""What ONNX Runtime's messages mean: it raises many classes that share no base, and says the rest in words.

Sources: its core/providers/cuda/cuda_call.cc ("CUDA failure 700: ... ; GPU=0 ; hostname=..."; CUBLAS, CUDNN and others the
same), core/framework/bfc_arena.cc ("Failed to allocate memory for requested buffer of size", and above gpu_mem_limit
"Available memory of 0 is smaller than requested bytes of 256"), core/session/inference_session.cc ("cannot use the graph
capture feature"), python/onnxruntime_pybind_exceptions.cc (the classes), and the messages of the TensorRT provider, which
all begin with "TensorRT EP".
"""

import re

from edge_agent.errors import AcceleratorFailed, AcceleratorMissing, PackageRefused, printable

LONGEST = 300
# How the runtime, and the system through it, say that there is no memory left: on a GPU the first is the GPU's.
ARENA = re.compile(r"Failed to allocate memory|Available memory of \d+ is smaller than requested")
OUT_OF_MEMORY = re.compile("bad_alloc|Cannot allocate memory")
# A call to one of NVIDIA's libraries that failed, up to where the runtime tells of the machine and of its own source.
NVIDIA_FAILURE = re.compile(r"\b[A-Z_]+ failure -?\d+: [^;]*")
# Of the CUDA runtime's errors those that say that there is no such GPU for us, as cudaErrorInsufficientDriver (35),
# NoDevice (100), InvalidDevice (101), NoKernelImageForDevice (209), SystemNotReady (802), SystemDriverMismatch (803).
NO_GPU = re.compile(r"\bCUDA failure (35|100|101|209|802|803):")
# What the TensorRT provider raises where it cannot be loaded; why is in the log alone.
NO_LIBRARIES = re.compile("Please install TensorRT libraries")
NO_GRAPH = re.compile("cannot use the (graph capture|CUDA Graph) feature")
# What a model is to blame for, on whatever provider.
OF_THE_MODEL = {"InvalidProtobuf", "InvalidGraph", "NoModel", "NoSuchFile", "NotImplemented"}
# What a provider raises when it fails on its device.
OF_THE_PROVIDER = {"EPFail"}


def check_memory(error: Exception) -> None:
    """Raise MemoryError where the runtime says, in whatever class, that the machine has no memory left."""
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        raise MemoryError(sentence(error)) from None


def check_arena(error: Exception) -> None:
    """Raise MemoryError where the runtime has no memory left for tensors; of a session on the CPU."""
    if ARENA.search(str(error)):
        raise MemoryError(sentence(error)) from None


def check_gpu(error: Exception) -> None:
    """Raise AcceleratorFailed where the GPU failed, or has no memory left; of a session on a GPU."""
    text = str(error)
    if failure := NVIDIA_FAILURE.search(text):
        raise AcceleratorFailed(f"The GPU failed: {_line(failure[0])}.") from None
    if ARENA.search(text):
        raise AcceleratorFailed(f"The GPU has no memory left: {cause(error)}.") from None
    if type(error).__name__ in OF_THE_PROVIDER or "TensorRT EP" in text:
        raise AcceleratorFailed(f"The GPU failed: {cause(error)}.") from None


def not_loaded(error: Exception, provider: str) -> Exception:
    """Return what is to be raised of a model that does not load on a GPU's provider.

    PackageRefused where the model is to blame, MemoryError and AcceleratorFailed by their causes, else AcceleratorMissing.
    """
    try:
        check_memory(error)
        if not NO_GPU.search(str(error)) and "TensorRT EP" not in str(error):
            check_gpu(error)
    except (MemoryError, AcceleratorFailed) as known:
        return known
    if type(error).__name__ in OF_THE_MODEL:
        return PackageRefused(f"ONNX Runtime cannot load the model: {sentence(error)}")
    failure = NVIDIA_FAILURE.search(str(error))
    why = _line(failure[0]) if failure else cause(error)
    return AcceleratorMissing(f"ONNX Runtime cannot run the model on {provider}: {why}.")


def sentence(error: Exception) -> str:
    """Return the first line of the runtime's message, without its code and the names of files of its own build."""
    first = str(error).strip().partition("\n")[0]
    if "xternal data" in first or "model_path must not be empty" in first:
        return "it keeps its weights in a second file (external data); export it as one file."
    if unlisted := re.search("External file: (.*) not found from the table", first):
        return f"it keeps weights in {unlisted[1]!a:.120}, which package.files does not list beside the model."
    first = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |\S*onnxruntime_src/\S+ ?|\w+\.cc:\d+ \w+ ", "", first)
    if not first:  # it cannot tell of names that are no UTF-8
        return f"it gives no reason but {type(error).__name__}."
    return first if len(first) <= LONGEST else f"{first[:LONGEST]}..."


def cause(error: Exception) -> str:
    """Return a provider's message as the end of a sentence, without the places in its source, which it may nest."""
    first = str(error).strip().partition("\n")[0]
    first = re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first)
    # A place in the source, and the signature of the function there, which ends with its parameters.
    first = re.sub(r"\S*onnxruntime_src/\S+ .*?\((?:[^()]|\([^()]*\))*\)(?: const)? ", "", first)
    return _line(re.sub(r"\w+\.(?:cc|h):\d+ \w+(?:\(\))? ", "", first)) or type(error).__name__


def _line(text: str) -> str:
    return printable(text.strip().rstrip("."))[:LONGEST]
