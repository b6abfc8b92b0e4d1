"""A language model as a service: loaded, tried once, and its measures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nearfar.errors import ModelFileError, NearfarError, RuntimeUnavailable
from nearfar.models.manifest import Task, parse_manifest
from nearfar.node.handover import Handover
from nearfar.node.meter import Meter
from nearfar.node.spec import ServiceSpec, TextSpec
from nearfar.node.talk import TextPool
from nearfar.node.talkmeter import TextMeter
from nearfar.node.talktest import TextQuestion, TextTester
from nearfar.node.worker import Description
from nearfar.runtimes.registry import runtime
from nearfar.runtimes.text import TextOptions, TextRuntime
from nearfar.types.units import Bytes
from nearfar.types.wire import Operation, TextContext

if TYPE_CHECKING:
    from nearfar.node.service import Reporter

_TRY = msgspec.json.encode({"prompt": "Hello", "input": "Hello", "max_tokens": 1, "temperature": 0})


class Talk:
    """As `service._Tensors`, for a model that takes text."""

    def __init__(self, spec: ServiceSpec) -> None:
        """Raises `ModelFileError`, also when it does not fit into memory, and `RuntimeUnavailable`."""
        engine = runtime(spec.runtime)
        if not isinstance(engine, TextRuntime):
            raise RuntimeUnavailable(f"{spec.runtime} is no engine of language.", "Use llamacpp.")
        text = spec.text or TextSpec(4096, 4)
        manifest = parse_manifest(spec.manifest, spec.model)
        embedding = manifest.task is Task.EMBEDDING
        options = TextOptions(
            name=spec.model,
            threads=spec.threads,
            unit=spec.unit,
            context=text.context,
            slots=text.slots,
            memory=Bytes(text.memory),
            embedding=embedding,
            settings=text.settings,
        )
        self._spec = spec
        self._loaded = engine.load_text(Path(spec.file), options)
        self.meter = Meter(spec, 0.0)
        self.meter.workers = self._loaded.slots
        self.meter.text = self._text = TextMeter(self._loaded.context)
        self._text.embedding = embedding
        self._question: TextQuestion | None = None
        if not self._loaded.free:  # not even tried once: somebody would pay for it
            self.meter.price = self._loaded.expected_cost
            self._text.prices = self._loaded.prices
            self.profile_ms = self._loaded.expected_ms()
            return
        if spec.self_test_every > 0:
            self._question = TextQuestion(self._loaded, embedding, spec.model, spec.self_tests_failed)
            self.meter.tested(self._question.result(""))
        self.profile_ms = self._try(Operation.EMBED if embedding else Operation.COMPLETE)
        states = self._loaded.states
        if states is not None and text.state_limit:
            states.learn(manifest.variant(spec.variant).sha256)
            self._text.build = states.build

    def _try(self, operation: Operation) -> float:
        """Milliseconds of a shortest call; also the proof that the model answers at all."""
        pieces: list[bytes] = []

        def take(piece: bytes) -> bool:
            if piece:
                pieces.append(piece)
            return False

        start = time.perf_counter()
        self._loaded.run(operation, _TRY, take, TextContext())
        if not pieces:
            raise ModelFileError(f"{self._spec.model} does not answer.", "Use another variant.")
        return (time.perf_counter() - start) * 1000

    def serve(self, reporter: Reporter) -> tuple[TextPool, TextTester | None]:
        spec = self._spec
        description = Description(spec.manifest, spec.variant, spec.runtime, (), ())
        handover = None
        if self._loaded.states is not None and self._loaded.states.build:
            most = spec.text.state_limit if spec.text is not None else 0
            handover = Handover(spec.service, self._loaded.states, reporter.mesh, most)
            handover.serve()
        pool = TextPool(self._loaded, self.meter, self._text, description, spec.queue_limit, reporter.changed, handover)
        if self._question is None:
            return pool, None

        def wrong(error: NearfarError) -> None:
            pool.broken = error
            reporter.now()

        return pool, TextTester(self._question, pool.probe, spec.self_test_every, self.meter, wrong)
