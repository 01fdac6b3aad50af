"""What the runtime really runs on, and the processes in which what may hang or crash is asked."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from onnx import TensorProto, helper

from edge_agent import backends
from edge_agent.backends import onnxruntime as ours
from edge_agent.probe import child, gpu, runtime
from edge_agent.probe.child import Child
from edge_agent.probe.runtime import CPU, CUDA, TENSORRT, TINY, Runtime

PATIENT = 60.0


class Ort:
    """ONNX Runtime's own surface, with providers that are listed, and a session that runs on some."""

    __version__ = "9.9"

    def __init__(self, listed, running, *, output=1.5, says=""):
        self.listed, self.running, self.output, self.says = listed, running, output, says
        ort = self

        class InferenceSession:
            def __init__(self, model, options, providers, enable_fallback):
                assert (model, enable_fallback, providers[-1]) == (TINY, 0, CPU)
                os.write(2, ort.says.encode())
                if isinstance(ort.running, Exception):
                    raise ort.running
                self.providers = [one for one in providers if one in ort.running]

            def get_providers(self):
                return self.providers

            def run(self, names, feed):
                return [feed["x"] * 0 + ort.output]

        self.InferenceSession = InferenceSession
        self.SessionOptions = SimpleNamespace

    def get_available_providers(self):
        return self.listed


class TestRuntime:
    def ask(self, monkeypatch, ort) -> Runtime:
        monkeypatch.setitem(sys.modules, "onnxruntime", ort)
        return runtime.told(json.loads(json.dumps(list(runtime.answers()))), "")

    def test_the_tiny_model_is_what_onnx_makes(self):
        def number(name):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])

        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "tiny", [number("x")], [number("y")])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        assert made.SerializeToString() == TINY

    def test_the_runtime_that_is_here(self):
        found = runtime.told(*Child("runtime").answers(time.monotonic() + PATIENT))
        assert found.serves
        assert found.tried[CPU] == ""
        assert CPU in found.listed
        assert found.distributions[0].endswith(found.version)

    def test_listed_is_not_used(self, monkeypatch):
        ort = Ort([TENSORRT, CUDA, CPU], [CPU], says="")
        found = self.ask(monkeypatch, ort)
        other = f"a session that was opened for it runs on {CPU}"
        assert found.tried == {CPU: "", CUDA: other, TENSORRT: other}
        assert found.serves

    def test_the_runtimes_own_cause_is_told(self, monkeypatch):
        says = (
            "\x1b[1;31m2026-01-01 00:00:00.0 [E:onnxruntime:Default, provider.cc:9 Get] "
            "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open\x1b[m\n"
        )
        found = self.ask(monkeypatch, Ort([CUDA, CPU], [CPU], says=says))
        assert found.tried == {CPU: "", CUDA: "libcublasLt.so.13: cannot open"}

    def test_a_gpu_that_is_used(self, monkeypatch):
        assert self.ask(monkeypatch, Ort([CUDA, CPU], [CUDA, CPU])).tried == {CPU: "", CUDA: ""}

    @pytest.mark.parametrize(
        ("ort", "why"),
        [
            (Ort([CPU], RuntimeError("no kernel\nmore")), "RuntimeError: no kernel"),
            (Ort([CPU], [CPU], output=7.0), "a model that returns its input returned something else"),
        ],
    )
    def test_a_processor_on_which_it_does_not_run(self, monkeypatch, ort, why):
        found = self.ask(monkeypatch, ort)
        assert not found.serves
        assert found.tried == {CPU: why}

    def test_is_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        # What is imported here, without a runtime, is gone again afterwards.
        monkeypatch.setattr(backends, "onnxruntime", ours)
        monkeypatch.delitem(sys.modules, "edge_agent.backends.onnxruntime")
        found = self.told_without(monkeypatch)
        assert found.absent.startswith("ONNX Runtime is not installed; install the extra `cpu`")
        assert not found.serves

    def told_without(self, monkeypatch) -> Runtime:
        return runtime.told(json.loads(json.dumps(list(runtime.answers()))), "")

    def test_cannot_be_imported(self, monkeypatch):
        def fail(_):
            raise ImportError("libodd.so: cannot open")

        monkeypatch.setattr(runtime, "import_module", fail)
        found = self.told_without(monkeypatch)
        assert found.absent == "ONNX Runtime cannot be imported: ImportError: libodd.so: cannot open."

    @pytest.mark.parametrize("failed", ["it died of SIGILL", "it did not answer in time"])
    def test_dies_or_hangs(self, failed):
        assert runtime.told([], failed).absent == f"ONNX Runtime was loaded to try it, and {failed}."
        listed = {"version": "9.9", "listed": [CUDA, CPU]}
        found = runtime.told([listed, {"provider": CPU, "reason": ""}], failed)
        assert found.tried == {CPU: "", CUDA: f"a session was opened, and {failed}"}
        assert not runtime.told([listed], failed).serves


class TestChild:
    def ask(self, monkeypatch, tmp_path, program: str, patience: float = PATIENT):
        """Ask a program of the test's, in place of the module."""
        (tmp_path / "asked.py").write_text(f"import json, os, sys, time\n{program}\n")
        monkeypatch.setattr(child, "__name__", "asked")
        monkeypatch.syspath_prepend(tmp_path)
        return Child("anything").answers(time.monotonic() + patience)

    def test_answers(self, monkeypatch, tmp_path):
        program = "print(json.dumps({'asked': sys.argv[1], 'cwd': os.getcwd()}))"
        assert self.ask(monkeypatch, tmp_path, program) == ([{"asked": "anything", "cwd": "/"}], "")

    def test_what_is_no_answer_is_left_out(self, monkeypatch, tmp_path):
        program = "print('{}\\nnoise\\n[1]\\n{\"a\": 1}\\n{\"cut', end='')"
        assert self.ask(monkeypatch, tmp_path, program) == ([{}, {"a": 1}], "")

    def test_one_that_hangs_is_ended_and_what_it_said_counts(self, monkeypatch, tmp_path):
        program = f"print('{{\"pid\": %d}}' % os.getpid(), flush=True)\ntime.sleep({PATIENT})"
        begun = time.monotonic()
        (answer,), failed = self.ask(monkeypatch, tmp_path, program, patience=1.0)
        assert failed == "it did not answer in time"
        assert time.monotonic() - begun < 10
        assert not Path(f"/proc/{answer['pid']}").exists()

    @pytest.mark.parametrize(
        ("program", "words"),
        [
            ("os.kill(os.getpid(), 4)", "it died of SIGILL"),
            ("sys.exit(3)", "it ended with exit code 3"),
            ("raise RuntimeError", "it ended with exit code 1"),
        ],
    )
    def test_one_that_dies(self, monkeypatch, tmp_path, program, words):
        assert self.ask(monkeypatch, tmp_path, program) == ([], words)

    def test_no_process(self, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        assert Child("gpu").answers(time.monotonic()) == ([], "no process can be started (No such file or directory)")

    def test_prints_nothing_but_answers(self):
        code = (
            "import os; from edge_agent.probe import child\n"
            "def noisy():\n"
            "    print('noise', flush=True); os.write(1, b'more noise')\n"
            "    yield {'a': 1}\n"
            "child._questions = lambda: {'q': noisy}\n"
            "child.main('q')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert done.stdout == b'{"a": 1}\n'

    def test_the_one_of_the_gpu(self):
        """Truthful on every machine: GPUs, or a sentence why there are none."""
        found = gpu.told(*Child("gpu").answers(time.monotonic() + PATIENT), Path("/proc"))
        assert found.found or found.absent
