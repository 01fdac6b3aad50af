"""What a model is run on: chosen by what it was made for, what the device has, and the settings. Rules, without I/O.

| setting `accelerator` | package                | tried in this order                                             |
|-----------------------|------------------------|-----------------------------------------------------------------|
| auto                  | made for NVIDIA        | TensorRT and CUDA, those that are there                         |
| auto                  | made for a processor   | the CPU                                                         |
| auto                  | made for none (ONNX)   | CUDA where it is there, then the CPU; no engine is built for it |
| cpu                   | any                    | the CPU                                                         |
| cuda, tensorrt        | any                    | that one                                                        |

The CPU comes last, too, where the setting `fallback` allows it. Where nothing is left the package is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_agent.block import Target
from edge_agent.errors import PackageRefused, extra
from edge_agent.jobs import Accelerator

Wanted = Literal["auto", "cpu", "cuda", "tensorrt"]

NVIDIA = "NVIDIA"
WORDS: Mapping[Accelerator, str] = {"cpu": "the CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}
NO_DRIVER = "No NVIDIA driver is loaded; install it, if there is a GPU."
NO_CUDA = f"ONNX Runtime here has no CUDA; {extra('cuda')}."
NO_TENSORRT = f"TensorRT is not installed; {extra('tensorrt')}."
ON_CPU = "To run it on the CPU, set `accelerator: cpu` or `fallback: allowed`."


@dataclass(frozen=True)
class Gpu:
    """A GPU: its number as NVML counts, its name, and its code, as in sm_87; empty is what it does not tell."""

    index: int
    name: str = ""
    code: str = ""


@dataclass(frozen=True)
class Here:
    """What the device has besides its CPU.

    `driver` and `cuda_driver` are the versions of the GPUs' driver and of the newest CUDA that it serves, `tensorrt_version`
    that of what is installed. Why something cannot be used is a sentence: `no_gpu` where there are no GPUs, `no_cuda` and
    `no_tensorrt` where there are, empty for what can be used.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda_driver: str = ""
    tensorrt_version: str = ""
    no_gpu: str = NO_DRIVER
    no_cuda: str = ""
    no_tensorrt: str = ""

    def gpu(self, index: int) -> Gpu | None:
        """Return the GPU of that number, None where there is none."""
        return next((one for one in self.gpus if one.index == index), None)

    def lacks(self, accelerator: Accelerator, index: int) -> str:
        """Return why a GPU cannot be used by CUDA or TensorRT, as sentences; empty where it can."""
        if not self.gpus:
            return self.no_gpu
        if self.gpu(index) is None:
            numbers = ", ".join(str(one.index) for one in self.gpus)
            return f"There is no GPU {index}; the setting `gpu` is the number of one that there is: {numbers}."
        return {"cpu": "", "cuda": self.no_cuda, "tensorrt": self.no_tensorrt}[accelerator]


@dataclass(frozen=True)
class Wish:
    """What the settings say of a model: what it is to run on, whether the CPU may take over, and which GPU."""

    accelerator: Wanted = "auto"
    fallback: bool = False
    gpu: int = 0


@dataclass(frozen=True)
class Failed:
    """What a model does not run on, and why, in sentences."""

    what: str
    why: str


@dataclass(frozen=True)
class Choice:
    """What is tried, in order, and what operators should know; `failed` is what would have come first, and cannot."""

    ways: tuple[Accelerator, ...]
    notes: tuple[str, ...] = ()
    failed: tuple[Failed, ...] = ()

    @property
    def first(self) -> Accelerator:
        """What is tried first."""
        return self.ways[0]


def choose(target: Target | None, look: Callable[[], Here], wish: Wish) -> Choice:
    """Return what a model is run on.

    Args:
        target: what its package was made for, None where it does not say.
        look: returns what the device has; called only where that matters, since a driver may take its time.
        wish: what the settings say.

    Raises:
        PackageRefused: nothing is left that the settings allow; the text says why and what to do.

    """
    if wish.accelerator == "cpu":
        return Choice(("cpu",), _slower(target))
    if wish.accelerator == "auto" and target and not target.accelerator:
        return Choice(("cpu",))
    here = look()
    if wish.accelerator != "auto":
        lacks = here.lacks(wish.accelerator, wish.gpu)
        subject = f"The setting `accelerator` is {wish.accelerator}, which cannot be used"
        return _with_cpu(() if lacks else (wish.accelerator,), Failed(WORDS[wish.accelerator], lacks), subject, wish)
    if target is None:
        return Choice(("cpu",) if here.lacks("cuda", wish.gpu) else ("cuda", "cpu"))
    return _made_for_it(target, here, wish)


def _made_for_it(target: Target, here: Here, wish: Wish) -> Choice:
    """Choose for a package that was made for an accelerator."""
    subject = f"The package was compiled for {target.device or target.accelerator}, and there is no GPU for it"
    if target.accelerator != NVIDIA:
        return _with_cpu((), Failed("a GPU", f"This agent knows those of {NVIDIA} only."), subject, wish)
    order: tuple[Accelerator, ...] = ("tensorrt", "cuda")
    ways = tuple(one for one in order if not here.lacks(one, wish.gpu))
    return _with_cpu(ways, Failed("a GPU", here.lacks("cuda", wish.gpu)), subject, wish)


def _with_cpu(ways: tuple[Accelerator, ...], failed: Failed, subject: str, wish: Wish) -> Choice:
    """Add the CPU where it may take over; where there are no `ways`, that is for what has `failed`."""
    if not ways and not wish.fallback:
        raise PackageRefused(f"{subject}: {failed.why} {ON_CPU}")
    cpu: tuple[Accelerator, ...] = ("cpu",) if wish.fallback else ()
    return Choice(ways + cpu, failed=() if ways else (failed,))


def _slower(target: Target | None) -> tuple[str, ...]:
    if target is None or not target.accelerator:
        return ()
    named = target.device or target.accelerator
    return (f"The package was compiled for {named}, and the setting `accelerator` has it run on the CPU.",)


def instead(used: Accelerator, failed: Sequence[Failed]) -> str:
    """Return the sentences that say what a model runs on and why it is not what would have come first, or nothing."""
    return f"Runs on {WORDS[used]}, since it cannot run on {_reasons(failed)}" if failed else ""


def nothing_left(failed: Sequence[Failed]) -> str:
    """Return the sentences that say why a model runs on nothing that the settings allow."""
    return f"The model cannot run on {_reasons(failed)} {ON_CPU}"


def _reasons(failed: Sequence[Failed]) -> str:
    return " Nor on ".join(f"{one.what}: {one.why}" for one in failed)
