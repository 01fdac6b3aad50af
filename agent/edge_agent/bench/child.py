"""A process that measures for another: orders come as lines of JSON, answers go the same way; it ends with its asker."""

import io
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Order = dict[str, Any]


class Refused(Exception):
    """An order that cannot be done; the text is for people."""


def serve(make: Callable[[Order], Callable[[Order], Order]]) -> None:
    """Answer the first order with what `make` makes ready, each later one with what that returns, until nobody asks.

    Refused becomes the answer `error`. The process ends at once when its input ends, in the middle of an order, too.
    """
    orders: SimpleQueue[Order] = SimpleQueue()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not be taken for an answer
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    work: Callable[[Order], Order] | None = None
    try:
        while True:
            order = orders.get()
            try:
                if work is None:
                    work = make(order)
                    answer: Order = {}
                else:
                    answer = work(order)
            except Refused as refusal:
                answer = {"error": str(refusal)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)  # the interpreter's own end would wait for the thread that reads


def _listen(orders: "SimpleQueue[Order]") -> None:
    for line in io.FileIO(sys.stdin.fileno(), closefd=False):
        orders.put(json.loads(line))
    os._exit(0)
