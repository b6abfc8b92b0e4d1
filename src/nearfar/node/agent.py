"""The agent: keeps the services of one node as wanted, and says how the node is. The only place with effects."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from nearfar import __version__
from nearfar.errors import DeadlineExceeded, DuplicateNode, MeshError, NearfarError, SelfTestFailed
from nearfar.mesh.base import Handle, Mesh
from nearfar.node import keys
from nearfar.node.child import Child
from nearfar.node.plan import FORGIVEN_AFTER, Forget, Kill, Phase, Start, Status, Stop, Wanted, back_off, plan
from nearfar.node.prober import Prober, answer_ping
from nearfar.node.spec import Milestone, ServiceSpec
from nearfar.types.ids import ModelName, NodeId, VariantId, service_id
from nearfar.types.telemetry import (
    NOT_TESTED,
    REVISION,
    DeviceInfo,
    NodeReport,
    Reading,
    SelfTest,
    ServiceReport,
    ServiceState,
)
from nearfar.types.units import Bytes, Celsius, Ratio, Seconds

log = logging.getLogger(__name__)

TICK = 0.1
REPORT_EVERY = 0.5
LONGEST_STEP = 0.5
"""Seconds that count at most between two looks: an agent that was stopped itself has not listened meanwhile."""
CLAIM = 0.3
"""Seconds in which another agent with our id would be seen."""
GHOST = 4.0
"""Seconds that the token of an agent with our id may outlive it: a machine that lost its power is back before the
others have noticed that it was gone. At least; twice the mesh's lease when that is longer."""

Prepare = Callable[[ModelName], ServiceSpec]
"""Chooses variant, runtime and unit for a model on this device. Raises `NearfarError` when none fits. May be slow."""


class Usage(msgspec.Struct, frozen=True):
    """How busy the machine is now."""

    cpu: Ratio
    memory_free: Bytes
    temperature: Celsius | None
    temperature_reason: str
    throttled: bool | None = None
    throttled_reason: str = "not looked at"


class Agent:
    """Runs on one event loop: `start`, then `run` until `close`."""

    def __init__(
        self,
        node: NodeId,
        mesh: Mesh,
        device: DeviceInfo,
        usage: Callable[[], Usage],
        prepare: Prepare,
        stored: Callable[[], Sequence[ModelName]],
        *,
        host: str = "",
        gateway: str | None = None,
        memory_limit: Bytes = Bytes(0),  # noqa: B008 - a number
        ghost: Seconds = Seconds(GHOST),  # noqa: B008 - a number
        silence_limit: Seconds = Seconds(0.0),  # noqa: B008 - a number
    ) -> None:
        self.node = node
        # Begins with the time of its start: of two agents with one id the older one stays.
        self.instance = f"{int(time.time()):08x}{uuid.uuid4().hex[:8]}"
        self._mesh = mesh
        self._device = device
        self._usage = usage
        self._prepare = prepare
        self._stored = stored
        self._host = host
        self.gateway = gateway
        """URL of this node's gateway, told in its reports."""
        self._memory_limit = memory_limit
        self._silence_limit = silence_limit
        self._looked = time.monotonic()
        self._wanted = Wanted()
        self.look_again: Callable[[], Wanted | None] | None = None
        """What is wanted now, or None when that is as before. Asked with every report, on another thread: it may read
        files. Whatever it raises leaves everything as it is."""
        self._asking: asyncio.Task[None] | None = None
        self._look_failed = False
        self._status: dict[ModelName, Status] = {}
        self._children: dict[ModelName, Child] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._ghost = ghost
        self._others: dict[NodeId, set[str]] = {}
        """Living instances of the other nodes."""
        self._rivals: dict[str, float] = {}
        """Instances of other agents with our id whose token is there, and since when."""
        self._announced = False
        self._closing = False
        self._changed = False
        """Whether a service has come into another phase since the last report."""
        self._known_models: tuple[ModelName, ...] = ()
        self._store_broken = False
        self._handles: list[Handle] = []
        self.prober = Prober(mesh)
        self._encoder = msgspec.msgpack.Encoder()

    # -- the node's place in the fleet ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Claim the node id and become visible. Raises `DuplicateNode` when another living agent has the id."""
        loop = asyncio.get_running_loop()

        def changed(key: str, alive: bool) -> None:
            loop.call_soon_threadsafe(self._on_node, key, alive)

        self._handles.append(self._mesh.watch(keys.NODES, changed))
        await asyncio.sleep(CLAIM)
        await self._outlive_ghosts()
        self._check_rivals()
        self._announced = True
        self._handles.append(self._mesh.announce(keys.node_key(self.node, self.instance)))
        self._handles.append(self._mesh.serve(keys.ping_key(self.node), answer_ping))

    def _on_node(self, key: str, alive: bool) -> None:
        _, node, instance = key.split("/")
        if node == self.node:
            if instance != self.instance:
                if alive:
                    self._rivals.setdefault(instance, time.monotonic())
                else:
                    self._rivals.pop(instance, None)
                self._wake.set()
            return
        living = self._others.setdefault(NodeId(node), set())
        (living.add if alive else living.discard)(instance)
        if not living:
            del self._others[NodeId(node)]
        self.prober.follow(self._others)

    async def _outlive_ghosts(self) -> None:
        """A token of our id whose agent does not answer is that of a dead one: wait until the mesh has noticed."""
        end = time.monotonic() + self._ghost
        while self._rivals and (left := end - time.monotonic()) > 0:
            try:
                await self._mesh.request(keys.ping_key(self.node), b"", (b"",), min(1.0, left))
                return  # it lives
            except (MeshError, DeadlineExceeded):
                await asyncio.sleep(0.05)

    def _check_rivals(self) -> None:
        """Two agents of one id that meet later (a healed partition): the younger one goes, once it is sure that the
        other is no ghost."""
        old = time.monotonic() - self._ghost
        older = any(rival < self.instance and since < old for rival, since in self._rivals.items())
        if older or (self._rivals and not self._announced):
            raise DuplicateNode(
                f"Another node named {self.node!r} is alive in this fleet.",
                "Give this one a name of its own: nearfar up --name NAME.",
            )

    # -- services ---------------------------------------------------------------------------------------------------

    def desire(self, wanted: Wanted | Sequence[ModelName]) -> None:
        """What this node shall serve from now on. What runs and is wanted unchanged is left alone."""
        before = self._wanted
        self._wanted = wanted if isinstance(wanted, Wanted) else Wanted(tuple(wanted))
        for model, reason in self._wanted.refused.items():
            if before.refused.get(model) != reason:
                log.warning("%s does not serve %s: %s", self.node, model, reason)
        self._changed = True
        self._wake.set()

    def _ask_again(self) -> None:
        """Ask whether something else is wanted now, beside the loop and once at a time."""
        if self.look_again is not None and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._follow(self.look_again), name="what is wanted")

    async def _follow(self, look: Callable[[], Wanted | None]) -> None:
        try:
            wanted = await asyncio.get_running_loop().run_in_executor(None, look)
        except Exception:  # a fault of ours, or of a disk: what runs goes on
            if not self._look_failed:
                log.exception("%s: what it shall serve could not be looked at", self.node)
            self._look_failed = True
            return
        self._look_failed = False
        if wanted is not None and not self._closing:
            self.desire(wanted)

    @property
    def status(self) -> Mapping[ModelName, Status]:
        return dict(self._status)

    async def run(self) -> None:
        """Supervise and report until cancelled. Raises `DuplicateNode` when a second agent of this id must win."""
        next_report = 0.0
        while True:
            self._check_rivals()
            self._look()
            now = Seconds(time.monotonic())
            limits = self._memory_limit, self._silence_limit
            for action in plan(self._wanted.models, self._status, now, *limits, self._wanted.revisions):
                match action:
                    case Start(model):
                        self._begin(model, now)
                    case Stop(model):
                        why = "it was changed" if model in self._wanted.models else "it is not wanted any more"
                        log.info("%s stops %s: %s", self.node, model, why)
                        self._set(model, Phase.STOPPING, now)
                        if child := self._children.get(model):
                            child.stop()
                    case Kill(model, reason):
                        if child := self._children.get(model):
                            child.kill(reason)
                    case Forget(model):
                        del self._status[model]
            if self._changed or time.monotonic() >= next_report:
                self._changed = False
                next_report = time.monotonic() + REPORT_EVERY
                self._ask_again()
                try:
                    self._report()
                except Exception:  # such as no file descriptor left: services must outlive their telemetry
                    log.exception("%s: telemetry could not be sent", self.node)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):  # `wait_for` of Python 3.11 may swallow a cancellation
                    await self._wake.wait()
            self._wake.clear()

    def _set(self, model: ModelName, phase: Phase, now: Seconds, **changes: Any) -> None:
        status = self._status.get(model) or Status(model, phase, now)
        self._status[model] = msgspec.structs.replace(status, phase=phase, since=now, **changes)
        self._changed = True

    def _look(self) -> None:
        """Bring the status up to date with what the processes are."""
        before, self._looked = self._looked, time.monotonic()
        step = min(self._looked - before, LONGEST_STEP)
        for model, child in self._children.items():
            status = self._status[model]
            if status.phase is Phase.STARTING and child.word is not None and child.word.milestone is Milestone.READY:
                self._set(model, Phase.READY, Seconds(time.monotonic()), reason=child.spec.reason)
                log.info("%s serves %s: %s", self.node, model, child.spec.reason)
            child.silent += step
            self._status[model] = msgspec.structs.replace(
                self._status[model], memory=child.memory(), silent=Seconds(child.silent)
            )

    def _begin(self, model: ModelName, now: Seconds) -> None:
        revision = self._wanted.revisions.get(model, "")
        before = self._status.get(model)
        if before is not None and before.revision != revision:  # what failed is not what is started now
            del self._status[model]
        self._set(model, Phase.STARTING, now, revision=revision)
        task = asyncio.create_task(self._keep(model), name=f"service {model}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, model: ModelName) -> None:
        """One life of a service, from the choice of its variant to the explanation of its end."""
        started = time.monotonic()
        code = ""
        try:
            spec = await asyncio.get_running_loop().run_in_executor(None, self._prepare, model)
            spec = msgspec.structs.replace(spec, self_tests_failed=self._status[model].self_tests_failed)
            child = await Child.start(spec)
            self._children[model] = child
            if self._closing or self._status[model].phase is Phase.STOPPING:  # it was told so before it was there
                child.stop()
            await child.listen()
            reason = child.ended or "ended"
            if child.word is not None:
                code = child.word.code
        except NearfarError as error:
            reason = str(error)
        except OSError as error:
            reason = f"the process could not be started: {error}"
        except Exception as error:  # ours to answer for: said and tried again, not a service that nobody looks after
            log.exception("%s: service %s", self.node, model)
            reason = f"{type(error).__name__}: {error}"
        finally:
            if model in self._children:
                self._children.pop(model).kill("nobody listens to it any more")  # no effect on one that has ended
        before = self._status[model]
        asked = before.phase is Phase.STOPPING
        forgiven = before.phase is Phase.READY and time.monotonic() - started > FORGIVEN_AFTER
        failures = 0 if asked else (1 if forgiven else before.failures + 1)
        if not asked:
            log.warning("%s: service %s is down: %s", self.node, model, reason)
        tests = before.self_tests_failed + (code == SelfTestFailed.code)
        told = {"reason": reason, "code": code, "self_tests_failed": tests}
        self._set(model, Phase.DOWN, Seconds(time.monotonic()), failures=failures, memory=Bytes(0), **told)
        self._wake.set()

    # -- telemetry --------------------------------------------------------------------------------------------------

    def _report(self, *, leaving: bool = False) -> None:
        usage = self._usage()
        report = NodeReport(
            node=self.node,
            instance=self.instance,
            version=__version__,
            device=self._device,
            models=self._models(),
            cpu=usage.cpu,
            memory_free=usage.memory_free,
            temperature=usage.temperature,
            temperature_reason=usage.temperature_reason,
            links=self.prober.links(),
            gateway=self.gateway,
            host=self._host,
            throttled=usage.throttled,
            throttled_reason=usage.throttled_reason,
            leaving=leaving,
        )
        # The services first: who has heard the node is to know what starts on it, not to say that it is not served.
        for model, status in self._status.items():
            if status.phase in (Phase.DOWN, Phase.STARTING):  # a service that runs speaks for itself
                service = self._service_report(model, status)
                self._mesh.publish(keys.service_report_key(service.service), self._encoder.encode(service))
        for model, reason in self._wanted.refused.items():
            if model not in self._status:
                service = self._down(model, reason)
                self._mesh.publish(keys.service_report_key(service.service), self._encoder.encode(service))
        self._mesh.publish(keys.node_report_key(self.node), self._encoder.encode(report))

    def _models(self) -> tuple[ModelName, ...]:
        """Those in the store; those of before when it cannot be read, as that must not end the services."""
        try:
            self._known_models = tuple(self._stored())
        except NearfarError as error:
            if not self._store_broken:
                log.warning("%s: %s", self.node, error)
            self._store_broken = True
        else:
            self._store_broken = False
        return self._known_models

    def _service_report(self, model: ModelName, status: Status) -> ServiceReport:
        child = self._children.get(model)
        down = status.phase is Phase.DOWN
        reason = status.reason if down else "loading and warming up"
        if status.failures:
            times = "once" if status.failures == 1 else f"{status.failures} times in a row"
            if down:
                left = max(0.0, status.since + back_off(status.failures) - time.monotonic())
                reason = f"{reason.rstrip('.')}. Failed {times}; starts again in {left:.1f} s."
            else:
                reason = f"{reason}; failed {times} before: {status.reason}"
        self_test = SelfTest(
            False if down and status.code == SelfTestFailed.code else None,
            "its service does not run",
            failed=status.self_tests_failed,
        )
        told = self._down(model, reason, self_test)
        if down:
            return told
        told = msgspec.structs.replace(told, state=ServiceState.STARTING)
        if child is None:
            return told
        spec = child.spec
        return msgspec.structs.replace(
            told, variant=spec.variant, runtime=spec.runtime, unit=spec.unit, revision=spec.revision
        )

    def _down(self, model: ModelName, reason: str, self_test: SelfTest = NOT_TESTED) -> ServiceReport:
        """The report of a service that does not run."""
        return ServiceReport(
            service=service_id(self.node, model),
            node=self.node,
            model=model,
            variant=VariantId(""),
            runtime="",
            unit="",
            state=ServiceState.FAILED,
            reason=reason,
            revision=self._wanted.revisions.get(model, "")[:REVISION],
            self_test=self_test,
        )

    def _say_goodbye(self) -> None:
        """While the token is still there: who hears it knows that what follows is no accident."""
        if self._announced and not self._rivals:  # another of our id stays: it is not leaving
            try:
                self._report(leaving=True)
            except Exception:  # going must not depend on saying so
                log.exception("%s: goodbye could not be said", self.node)

    async def close(self, patience: float = 8.0) -> None:
        """Stop the services, each with time to answer what waits; what does not stop in time is killed."""
        self._closing = True
        self._say_goodbye()
        for child in tuple(self._children.values()):
            child.stop()
        for model in tuple(self._status):
            self._set(model, Phase.STOPPING, Seconds(time.monotonic()))
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=patience)
            for child in tuple(self._children.values()):
                child.kill("it did not stop")
            if late:
                await asyncio.wait(late, timeout=2)
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self.prober.close()
        self._say_goodbye()  # once more: the first one may be older than what others believe fresh
        for handle in self._handles:
            handle.close()


def unknown_device() -> DeviceInfo:
    """A device nothing is known of: for an agent in a test that needs no detection."""
    return DeviceInfo({"cpu_model": Reading(None, "not detected")}, (), 1.0, Bytes(0))
