"""llama.cpp without nearfar, in a process of its own: the limit that `benchmarks/language.py` compares with.

Loads the model with the settings that a service of nearfar gives it, prints the port of the engine's own HTTP server,
then answers lines on standard input, `STREAMS TOKENS PROMPT_JSON`, by generating that many answers at the same time
through the engine's Python interface and printing a JSON object: seconds to the first piece (of the first stream),
seconds from there to the last piece of all, tokens, and what the process spent: seconds of processor time and voluntary
context switches.

With `shipped`, what a service of nearfar switches off only to be faster stays on, as llama.cpp ships it.

    python -m benchmarks.llama_direct MODEL SLOTS THREADS CONTEXT [shipped]
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any


def loaded(model: str, slots: int, threads: int, context: int, shipped: bool) -> Any:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when the library is imported
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_ctx, parameters.n_parallel, parameters.kv_unified = context * slots, slots, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.cache_ram_mib, parameters.verbosity = 64, -1
    if not shipped:
        parameters.cache_idle_slots = False
    return xllamacpp.Server(parameters)


def generate(server: Any, streams: int, body: bytes) -> dict[str, float]:
    moments: list[list[float]] = [[] for _ in range(streams)]

    def one(number: int) -> None:
        def take(_: bytes) -> bool:
            moments[number].append(time.perf_counter())
            return False

        server.handle_chat_completions(body, take)

    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    threads = [threading.Thread(target=one, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pieces = sum(len(each) for each in moments)
    first, last = moments[0][0], max(each[-1] for each in moments)
    after = resource.getrusage(resource.RUSAGE_SELF)  # also of threads that have ended
    return {
        "first_s": first - start,
        "rest_s": last - min(each[0] for each in moments),
        "pieces": pieces,
        "spent_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "sleeps": after.ru_nvcsw - before.ru_nvcsw,
    }


def main(model: str, slots: str, threads: str, context: str, shipped: str = "") -> None:
    server = loaded(model, int(slots), int(threads), int(context), bool(shipped))
    print(server.listening_address.rpartition(":")[2], flush=True)
    for line in sys.stdin:
        streams, _, body = line.partition(" ")
        print(json.dumps(generate(server, int(streams), body.encode())), flush=True)
    os._exit(0)  # the engine's threads do not all end


if __name__ == "__main__":
    main(*sys.argv[1:])
