"""Which backend runs what, and how that was seen: the README's table, each cell of which test_table.py holds to."""

RUN, FAKES, NO = "run here", "tested against fakes", "not supported"
COLUMNS = ("fp32 package", "fp16 package", "int8 package", "`precision: fp16`", "`precision: int8`")
PROCESSOR, GPU = "x86-64 processor", "NVIDIA GPU"
# (backend, device) -> a cell for each column.
CELLS: dict[tuple[str, str], tuple[str, ...]] = {
    ("ONNX Runtime, CPU", PROCESSOR): (RUN, RUN, RUN, NO, NO),
    ("ONNX Runtime, CUDA", GPU): (FAKES, FAKES, FAKES, NO, NO),
    ("ONNX Runtime, TensorRT", GPU): (FAKES, FAKES, FAKES, FAKES, FAKES),
    ("TensorRT 10", GPU): (FAKES, FAKES, FAKES, FAKES, FAKES),
    ("TensorRT 11", GPU): (FAKES, FAKES, FAKES, NO, NO),
}


def table() -> str:
    """Return the table as Markdown."""
    rows = [f"| backend | device | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    rows += [f"| {backend} | {device} | {' | '.join(cells)} |" for (backend, device), cells in CELLS.items()]
    return "\n".join(rows) + "\n"
