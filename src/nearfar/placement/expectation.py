"""When would the answer be there? The sum that the default policy minimises, part by part so that it can be explained.

    total = link + transfer + wait + service, in milliseconds

Every part is measured where a measurement exists, corrected by what this client observed, and a stated prior otherwise;
`basis` says which. Values from the wire are checked here: NaN, negative or absurd numbers count as not measured.

A call of a `NewType` costs more than the sums do, and these functions run for every candidate of every decision: where
a type is ignored below, the value is in the unit of its field.
"""

from __future__ import annotations

import msgspec

from nearfar.fleet.snapshot import LinkView, Observed, ServiceView, Snapshot
from nearfar.types.ids import NodeId
from nearfar.types.request import Request
from nearfar.types.units import BytesPerSecond, Milliseconds, Seconds

PRIOR_RTT = Milliseconds(5.0)
"""Assumed round trip where nobody measured: a wireless local network; a wire has less, a far end more."""
PRIOR_BANDWIDTH = BytesPerSecond(12.5e6)
"""Assumed where nobody measured: 100 Mbit/s."""
PRIOR_SERVICE = Milliseconds(50.0)
"""Assumed service time of a service that has neither a profile nor an answer yet."""
RTO_LEAST = Milliseconds(200.0)
"""Least retransmission time-out of Linux's TCP (`TCP_RTO_MIN`); RFC 6298 itself says one second."""
BELIEVED = Seconds(30.0)
"""A link measured, or an answer observed, longer ago than this counts for less than one that is newer."""
LATELY = Seconds(2.0)
"""Answers of a running stream are at most so old; older ones say no more of its link than pings do."""
DOUBT, LEAST_DOUBT = 0.2, Milliseconds(2.0)
"""Answers contradict pings when they differ by more than this share of the round trip and by at least so much."""
_MOST_LOSS = 0.9
_BULK = 16 * 1024
_LIMIT = 1e7  # ms, nearly three hours


class Link(msgspec.Struct, frozen=True, gc=False):
    """The way to a service: round trip and jitter in ms, milliseconds per byte moved, and why this is believed."""

    rtt: Milliseconds
    jitter: Milliseconds
    per_byte: float
    basis: str


class Expectation(msgspec.Struct, frozen=True, gc=False):
    """Parts of the expected completion, each in milliseconds; `margin` is what jitter may add, not part of `total`."""

    link: Milliseconds
    transfer: Milliseconds
    wait: Milliseconds
    service: Milliseconds
    margin: Milliseconds
    total: Milliseconds
    basis: str
    """Where `link` comes from."""

    def keeps(self, deadline: Milliseconds | None) -> bool:
        """Whether the answer is expected within the deadline, jitter included; always, without one."""
        return deadline is None or self.total + self.margin <= deadline

    def budget(self, left: Milliseconds) -> Milliseconds:
        """What the service may take of the `left` milliseconds, from when it has the request to when it answers.

        The way there and back is taken off, but never more than half: a wrong estimate of the way must not make a
        service refuse what it could have answered.
        """
        return Milliseconds(max(left - self.link - self.transfer, left / 2))

    def __str__(self) -> str:
        return (
            f"{self.total:.1f} ms (link {self.link:.1f}, {self.basis}; transfer {self.transfer:.1f}; "
            f"wait {self.wait:.1f}; service {self.service:.1f})"
        )


_SAME_NODE = Link(Milliseconds(0.0), Milliseconds(0.0), 0.0, "same node")
_SAME_HOST = Link(Milliseconds(0.0), Milliseconds(0.0), 0.0, "same machine")
_PRIOR_PER_BYTE = 1e3 / PRIOR_BANDWIDTH
_PRIOR = Link(PRIOR_RTT, Milliseconds(0.0), _PRIOR_PER_BYTE, f"not measured, {PRIOR_RTT:.0f} ms assumed")


def link_to(snapshot: Snapshot, origin: NodeId, view: ServiceView, now: Seconds) -> Link:
    """The way from where the data is to a service.

    In this order: same node or same machine (0); the link matrix, either direction, from `origin` or else from this
    client, when at most `BELIEVED` old; what this client's own answers showed; an older entry of the matrix; the prior.
    The round trip of a matrix entry gives way to what answers at most `LATELY` old showed when these contradict it:
    pings are averaged over ten seconds, the answers of a running stream over one.
    """
    report = view.report
    node = report.node
    if node == origin:
        return _SAME_NODE
    nodes = snapshot.nodes
    here, there = nodes.get(origin), nodes.get(node)
    if here is not None and there is not None and here.report is not None and there.report is not None:
        host = here.report.host
        if host and host == there.report.host:
            return _SAME_HOST
    measured = _matrix(snapshot, origin, node)
    observed = snapshot.observed.get(report.service)
    if observed is not None and (observed.link is None or now - observed.answered_at > BELIEVED):
        observed = None
    if measured is not None and now - measured.heard <= BELIEVED:
        matrix = _from_matrix(measured, observed, "measured link")
        if observed is None or now - observed.answered_at > LATELY:
            return matrix
        # What of an answer's time on the way was not the moving of its bytes was the round trip, losses included.
        rtt = max((observed.link or 0.0) - observed.moved * matrix.per_byte, 0.0)
        if abs(rtt - matrix.rtt) <= max(DOUBT * matrix.rtt, LEAST_DOUBT):
            return matrix  # they agree: an answer's few wake-ups must not make who is asked look farther than the rest
        return Link(rtt, observed.jitter, matrix.per_byte, "link of recent answers")  # type: ignore[arg-type]
    if observed is not None:
        return _from_answers(observed)
    if measured is not None:
        return _from_matrix(measured, None, "measured link, old")
    return _PRIOR


def _matrix(snapshot: Snapshot, origin: NodeId, node: NodeId) -> LinkView | None:
    links = snapshot.links
    found = links.get((origin, node)) or links.get((node, origin))
    if found is None and snapshot.me != origin:
        me = NodeId(snapshot.me)  # the data passes through whoever decides
        found = links.get((me, node)) or links.get((node, me))
    return found if found is not None and 0 <= found.rtt < _LIMIT else None


def _from_matrix(measured: LinkView, observed: Observed | None, basis: str) -> Link:
    rtt: float = measured.rtt
    jitter: float = measured.jitter
    if not 0 < jitter < _LIMIT:
        jitter = 0.0
    loss: float = measured.loss
    if loss > 0:
        # A lost packet is sent again after a time-out; loss/(1-loss) is the expected number of losses before success.
        loss = min(loss, _MOST_LOSS)
        rtt += loss / (1 - loss) * max(RTO_LEAST, rtt + 4 * jitter)
    per_byte = _PRIOR_PER_BYTE
    bandwidth = measured.bandwidth
    if bandwidth is not None and bandwidth > 0:
        per_byte = 1e3 / bandwidth
    elif observed is not None and observed.link is not None and observed.moved >= _BULK:
        # No bulk transfer was timed, but answers were: what they took beyond the round trip moved their bytes.
        per_byte = max(observed.link - measured.rtt, 0.0) / observed.moved
    return Link(rtt, jitter, per_byte, basis)  # type: ignore[arg-type]


def _from_answers(observed: Observed) -> Link:
    """Split the observed link time into round trip and bytes, so that it holds for a request of another size."""
    link = observed.link or Milliseconds(0.0)
    by_bytes = observed.moved * _PRIOR_PER_BYTE
    if by_bytes > link:  # faster than the prior
        return Link(Milliseconds(0.0), observed.jitter, link / observed.moved, "observed link")
    return Link(Milliseconds(link - by_bytes), observed.jitter, _PRIOR_PER_BYTE, "observed link")


def service_time(view: ServiceView, observed: Observed | None, now: Seconds) -> Milliseconds:
    """Milliseconds one request needs there: reported mean, else profile, else prior; times the observed ratio.

    The ratio fades to 1 within `BELIEVED`: a service that once was slow is not avoided for ever on old evidence.
    """
    report = view.report
    time: float = report.service_ms
    if not 0 < time < _LIMIT:
        time = report.profile_ms if 0 < report.profile_ms < _LIMIT else PRIOR_SERVICE
    if observed is not None and observed.ratio != 1.0 and report.text is None:  # an answer takes as long as it is
        belief = 1.0 - (now - observed.answered_at) / BELIEVED
        if belief > 0:
            time *= 1.0 + (observed.ratio - 1.0) * min(belief, 1.0)
    return time  # type: ignore[return-value]


BYTES_PER_TOKEN = 4.0
"""Of English text in the vocabularies of today's models, roughly; the frame of a request counts too."""


def first_token(view: ServiceView, request: Request) -> Milliseconds:
    """Milliseconds from the start of the work on a call to its first token.

    The service's recent mean, for a prompt as long as its recent ones; what is longer takes as long as reading it. The
    incumbent of a conversation knows all of it but the last message. Before the first answer: the service time.
    """
    report, text = view.report, view.report.text
    assert text is not None
    time: float = text.first_token_ms
    if not 0 < time < _LIMIT:
        return service_time(view, None, Seconds(0.0))
    if 0 < text.prefill_per_s < _LIMIT and report.answered > 0 and request.incumbent != report.service:
        usual = max(text.tokens_in - text.tokens_reused, 0) / report.answered
        longer = request.size / BYTES_PER_TOKEN - usual
        time = max(time + longer / text.prefill_per_s * 1000, 1000 / text.prefill_per_s)
    return time  # type: ignore[return-value]


def _mine(dues: tuple[Seconds, ...], now: Seconds, way: float, time: float, workers: int) -> float:
    """Milliseconds until a worker has done what this client has under way there, seen from a request sent now.

    A request that is due at d leaves the service half a way earlier, and this one arrives half a way later. What is
    overdue still waits there, as far as we know. Never more than all of it twice over: each is due after the one
    before, so that a service that is faster than it reports would else drift away from us while it is kept busy.
    """
    if workers > 1:
        if len(dues) < workers:
            return 0.0
        dues = tuple(sorted(dues)[: len(dues) - workers + 1])
    wait = (max(dues) - now) * 1000 - way
    late = 0
    for due in dues:
        if due <= now:
            late += 1
    if late:
        wait = max(wait, (late - 0.5) * time)
    return min(wait, 2 * len(dues) * time) if wait > 0 else 0.0


def expect(
    snapshot: Snapshot, request: Request, view: ServiceView, now: Seconds, link: Link | None = None
) -> Expectation:
    """The expected completion of a request on a service. `link` spares a second look-up when the caller has it.

    Wait: telemetry lags by up to half a second and already holds some of this client's own requests, so the backlog is
    the larger of the reported one (or the one the last answer carried, when newer) and what this client has under way
    there; their sum would count these twice. With w workers, w - 1 of the backlog do not delay this request.
    The workers of a language service are its slots; of a streamed answer what is expected is its first token.
    """
    report = view.report
    service = report.service
    observed = snapshot.observed.get(service)
    if link is None:
        link = link_to(snapshot, NodeId(request.origin), view, now)
    time = service_time(view, observed, now)
    workers = report.workers if report.workers > 1 else 1
    transfer = (request.size + request.answer_size) * link.per_byte
    rtt = link.rtt
    # What was seen there, less what has been worked off since; then what is ours, and others' mean number on top.
    if observed is not None and observed.queued_at > view.heard:
        backlog = float(observed.queued + workers - 1) if observed.queued else 0.0
        backlog -= (now - observed.queued_at) * 1000 * workers / time
    else:
        backlog = float(report.queued + report.in_flight)
        if observed is not None:  # else it is all that is known of others, who go on sending
            backlog -= (now - view.heard) * 1000 * workers / time
    dues = snapshot.owed.get(service)
    mine = 0.0
    if dues is not None:
        mine = _mine(dues, now, rtt + transfer, time, workers)
        if observed is not None:
            mine += observed.others * time / workers
    else:
        if observed is not None:
            mine = observed.others * time / workers
        pending = snapshot.pending.get(service, 0)
        if pending > backlog:
            backlog = pending
    wait = (backlog - workers + 1) * time / workers if backlog >= workers else 0.0
    if mine > wait:
        wait = mine
    if request.first_token and report.text is not None:  # what waits before it takes whole answers; it itself begins
        time = first_token(view, request)
    return Expectation(
        rtt,
        transfer,  # type: ignore[arg-type]
        wait,  # type: ignore[arg-type]
        time,
        2 * link.jitter,  # type: ignore[arg-type]
        rtt + transfer + wait + time,  # type: ignore[arg-type]
        link.basis,
    )
