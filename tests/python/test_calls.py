"""The effects of calls on the interpreter: interruption, memory, threads."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import reticle

INTERRUPTED = """
import os, signal, threading, time
import numpy as np
import reticle

q = np.zeros((1, 8, 16384, 64), np.float32)
{prepare}
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
began = time.process_time()
try:
    while True:
        {call}
except KeyboardInterrupt:
    print("interrupted", (time.process_time() - began) / len(os.sched_getaffinity(0)))
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
reticle.attention(q[:, :, :8], q[:, :, :8], q[:, :, :8])  # and what comes after runs
print("done")
"""


@pytest.mark.parametrize(
    ("prepare", "call"),
    [
        ("", "reticle.attention(q, q, q)"),
        (
            "sparse = reticle.SparseAttention.from_json("
            '\'{"maskers": [{"type": "oracle_top_k", "heavy_size": 0.1}]}\')',
            "sparse.mask(q, q, q, reticle.SequenceState())",
        ),
        (
            "mask = reticle.Mask.full((1, 8, 16384, 16384)); o, lse = q, np.zeros((1, 8, 16384), np.float32)",
            "reticle.attention_backward(q, q, q, mask, o, lse, q)",
        ),
    ],
    ids=["attention", "mask", "backward"],
)
def test_an_interrupt_stops_a_long_call_and_leaves_python_its_handler(prepare, call):
    code = INTERRUPTED.format(prepare=prepare, call=call)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert printed.returncode == 0, printed.stderr
    word, seconds, done = printed.stdout.split()
    assert (word, done) == ("interrupted", "done")
    # CPU time per core, which the load of other programs does not affect; the interrupt comes after 0.5 s of a long
    # call.
    assert float(seconds) < 2


def test_no_copies_are_made_of_strided_inputs():
    code = """
import resource
import numpy as np
import reticle

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

both = np.ones((1, 262144, 2, 2, 64), np.float32)  # keys and values beside each other, token by token: 256 MB
keys, values = both[:, :, 0].transpose(0, 2, 1, 3), both[:, :, 1].transpose(0, 2, 1, 3)
queries = np.ones((1, 8, 1, 64), np.float32)
window = reticle.Mask.runs((1, 8, 1, 262144), np.arange(9), [[250000, 262144]] * 8)
reticle.attention(queries, keys[:, :, :64], values[:, :, :64])  # threads and their stacks
before = peak()
output, _ = reticle.attention(queries, keys, values, window)
dense, _ = reticle.attention(queries, keys, values)
assert (output == 1).all() and np.allclose(dense, 1)
print(peak() - before)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(printed.stdout) < 24  # MB


def test_other_threads_run_while_a_call_works():
    random = np.random.default_rng(0)
    q = random.standard_normal((1, 4, 4096, 64), dtype=np.float32)
    counted, stop = 0, threading.Event()

    def count():
        nonlocal counted
        while not stop.is_set():
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted
    reticle.attention(q, q, q)
    during = counted - before
    stop.set()
    thread.join()
    assert during > 1000
