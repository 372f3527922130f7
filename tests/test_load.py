"""`kdzoo bench --url`: latency and throughput as they really are, refusals and failures counted apart, times that hide nothing."""

from __future__ import annotations

import json
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdzoo.cli.bench import describe_load
from kdzoo.errors import HubError, UnknownName, UsageError
from kdzoo.serve.client.requests import Input, Wish
from kdzoo.serve.client.transport import Way
from kdzoo.serve.load.load import Traffic, bench_url, goal_of, in_bytes, is_local, play
from kdzoo.serve.load.loops import Closed, Load, Open, arrivals
from kdzoo.serve.load.tally import Tally, percentiles
from kdzoo.tests.serving import ENTRY, MODEL, serve, small_models
from kdzoo.tests.small_server import Asked, Script, Scripted, in_order, reply, scripted

Call = Callable[..., tuple[str, str]]
GOOD, BUSY = reply(document={}), reply(503, {"error": "full"}, Retry_After="1")


@pytest.fixture(scope="module")
def url(once: Callable[[str, Callable[[Path], object]], Path]) -> Iterator[str]:
    with serve(small_models(once)) as served:
        yield f"http://{served.http}"


def figures(server: Scripted, load: type[Load], seconds: float = 0.4, **settings: Any) -> dict[str, Any]:
    """Of a load on a scripted server."""
    goal_settings = {key: settings.pop(key) for key in ("honour_retry_after", "timeout") if key in settings}
    traffic = Traffic(seconds=seconds, warm_up=0.1, **goal_settings)
    way = Way(server.url)
    goal = goal_of(way, traffic)
    request = in_bytes(way, Wish("m").infer(Input("image", "UINT8", (2, 2, 3), "logits", 3, 1), np.zeros((1, 2, 2, 3), np.uint8)))
    make = partial(load, type(goal)(**{**vars(goal), "requests": [request]}), **settings)
    return play(make, traffic, by_intention=load is Open).figures(1)


def slow(seconds: float, answer: bytes = GOOD) -> Script:
    """Every answer takes so long."""

    def script(asked: Asked) -> bytes:
        time.sleep(seconds)
        return answer

    return script


def test_a_closed_loop_keeps_every_client_busy_and_measures_the_server() -> None:
    with scripted(slow(0.03)) as server:
        found = figures(server, Closed, num_clients=4, seconds=0.6)
    assert server.most == 4
    assert 30 <= found["p50_ms"] <= 60 and found["mean_ms"] >= 30
    assert found["requests_per_s"] == pytest.approx(4 / (found["mean_ms"] / 1000), rel=0.25)
    assert found["by_status"] == {"200": found["requests"]} and found["refused"] == found["unanswered"] == 0
    assert found["connection_errors"] == {} and found["late_p99_ms"] is None


def test_warm_up_is_left_out() -> None:
    with scripted(slow(0.02)) as server:
        found = figures(server, Closed, num_clients=1, seconds=0.1)
    assert 0 < found["requests"] <= 5 and found["requests"] < len(server.asked), "0.1 s of the 0.2 s count"


@pytest.mark.slow
def test_an_open_loop_does_not_hide_a_stall() -> None:
    """A server that answers one by one, and stops once for 0.4 s: a closed loop sees one slow answer, an open one all that wait."""

    def stalling() -> Script:
        lock, times = threading.Lock(), list[float]()  # of the first request and of the stall

        def script(asked: Asked) -> bytes:
            with lock:
                now = time.perf_counter()
                if not times or (len(times) == 1 and now - times[0] > 0.5):
                    times.append(now)
                    time.sleep(0.4 if len(times) == 2 else 0.0)
            return GOOD

        return script

    with scripted(stalling()) as server:
        closed = figures(server, Closed, num_clients=1, seconds=1.2)
    with scripted(stalling()) as server:
        opened = figures(server, Open, rate=150, seconds=1.2)
    assert closed["p90_ms"] < 100 < closed["max_ms"]
    assert opened["p90_ms"] > 100, "those that were to be sent during the stall have waited since then"
    assert opened["requests"] == pytest.approx(180, abs=60) and opened["unanswered"] == 0


def test_an_open_loop_sends_on_time_at_its_rate() -> None:
    with scripted(in_order(GOOD)) as server:
        found = figures(server, Open, rate=200, seconds=0.5)
    assert found["requests"] == pytest.approx(100, abs=40)
    assert found["late_p50_ms"] < 2.0, "the generator itself is late"


def test_what_is_never_answered_counts_as_waiting() -> None:
    with scripted(slow(3.0)) as server:
        found = figures(server, Open, rate=30, seconds=0.3, timeout=0.5)
    assert found["requests"] == 0
    assert found["unanswered"] + sum(found["connection_errors"].values()) > 0 and found["p50_ms"] > 200


def test_times_of_arrival_are_random_and_the_same_for_a_seed() -> None:
    times = arrivals(1000, 5.0, 25.0, seed=1)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20000, rel=0.05) and times[0] > 5.0 and times[-1] < 25.0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "gaps of a Poisson process spread as much as they last"
    assert times == arrivals(1000, 5.0, 25.0, seed=1) != arrivals(1000, 5.0, 25.0, seed=2)


@pytest.mark.slow
def test_refusals_are_counted_apart_and_honoured_on_demand() -> None:
    def every_third(asked: Asked) -> bytes:
        time.sleep(0.005)
        return BUSY if asked.number % 3 else GOOD

    with scripted(every_third) as server:
        found = figures(server, Closed, num_clients=2)
    assert found["by_status"]["503"] == found["refused"] > found["requests"] > 0
    assert found["refused_p50_ms"] >= 5
    with scripted(in_order(BUSY)) as server:
        found = figures(server, Closed, num_clients=2, honour_retry_after=True)
    assert len(server.asked) == 2, "both were told to stay away for a second"
    with scripted(in_order(reply(503, {"error": "full"}, Retry_After="1", Connection="close"))) as server:
        figures(server, Closed, num_clients=2, honour_retry_after=True)
    assert len(server.asked) == 2, "on a new connection, too"


@pytest.mark.slow
def test_cut_connections_and_silence_are_errors_and_the_load_goes_on() -> None:
    with scripted(lambda asked: None if asked.number % 4 == 3 else GOOD) as server:
        found = figures(server, Closed, num_clients=2)
    assert found["connection_errors"]["cut"] > 3 and found["requests"] > 3
    with scripted(slow(2.0)) as server:
        found = figures(server, Closed, num_clients=2, timeout=0.2, seconds=0.5)
    assert found["connection_errors"]["timed out"] >= 2 and found["requests"] == 0
    with scripted(in_order(b"220 mail.example ESMTP\r\n")) as server:
        found = figures(server, Closed, num_clients=1)
    assert found["connection_errors"]["cut"] > 0 and found["requests"] == 0


def test_a_server_that_goes_away_is_told_of() -> None:
    with scripted(in_order(GOOD)) as server:
        pass
    found = figures(server, Closed, num_clients=2)
    assert found["connection_errors"]["not connected"] > 2 and found["requests"] == 0 and found["p50_ms"] is None


def test_percentiles_are_those_of_the_answers() -> None:
    found = percentiles(array("d", np.random.default_rng(0).permutation(np.arange(1, 1001)) / 1000.0))
    assert found == pytest.approx({"p50_ms": 500.0, "p90_ms": 900.0, "p99_ms": 990.0, "p999_ms": 999.0})
    few = percentiles(array("d", [0.001, 0.002]))
    assert few["p50_ms"] == 1.0 and few["p99_ms"] is None and few["p999_ms"] is None, "two answers tell nothing of the slowest"


def test_only_what_falls_into_the_window_counts() -> None:
    closed, opened = Tally(10.0, 20.0, by_intention=False), Tally(10.0, 20.0, by_intention=True)
    for tally in (closed, opened):
        for began, now in ((8.0, 9.0), (9.5, 11.0), (12.0, 12.5), (19.0, 21.0)):
            tally.answered(began, now, 200)
        tally.unanswered(15.0, 30.0)
    assert closed.latencies.tolist() == [1.5, 0.5] and opened.latencies.tolist() == [0.5, 2.0, 15.0]
    assert closed.num_done == opened.num_done == 2 and closed.num_unanswered == opened.num_unanswered == 1


def test_a_server_of_this_machine_is_known_as_such() -> None:
    assert is_local("127.0.0.1") and not is_local("192.0.2.1")


@pytest.mark.slow
def test_the_figures_of_a_real_server(call: Call, url: str) -> None:
    words = ("bench", "--url", url, "--branch", "1", "--clients", 2, "--rate", 50, "--batch", 3, "--seconds", 0.5)
    document = json.loads(call(*words, "--json")[0])
    closed, opened = document["results"]
    assert document["model"] == ENTRY and document["server"]["name"] == "kdzoo" and document["same_machine"]
    assert (closed["loop"], closed["clients"], opened["loop"], opened["rate"]) == ("closed", 2, "open", 50.0)
    for row in document["results"]:
        assert row["by_status"] == {"200": row["requests"]} and row["requests"] > 5 and row["generator_cores"] > 0
        assert row["images_per_s"] == pytest.approx(3 * row["requests_per_s"])
    text = describe_load(document)
    assert "2 clients" in text and "50 a second" in text and "shares this machine" in text and "kdzoo 0." in text


def test_a_load_that_cannot_be_is_refused_before_it_starts(url: str) -> None:
    with pytest.raises(UnknownName):
        bench_url(url, Traffic(clients=(1,)), model="nobody")
    with pytest.raises(UsageError, match="batch-size must be <= "):
        bench_url(url, Traffic(clients=(1,), batches=(1000,)), model=MODEL)
    with pytest.raises(HubError):
        bench_url("http://127.0.0.1:1", Traffic(clients=(1,), timeout=0.5), model="m")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("bench", "SOURCE"),
        ("bench somewhere --clients 3 --rate 5", "only with --url: --clients, --rate"),
        ("bench somewhere --url http://127.0.0.1:1", "the server has its own"),
        ("bench --url http://127.0.0.1:1 --format onnx --pin", "only without --url: --format, --pin"),
        ("bench --url http://127.0.0.1:1 -b 1 -b 2", "--branch goes once"),
        ("bench --url 127.0.0.1:1", "as in http://localhost:8000"),
    ],
)
def test_bench_says_what_does_not_go_together(words: str, sentence: str, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        call(*words.split())
    assert raised.value.code == 2 and sentence in capfd.readouterr().err


def test_words_warn_where_the_load_itself_is_the_limit() -> None:
    tally = Tally(0.0, 1.0, by_intention=True)
    for k in range(200):
        tally.answered(k / 300, k / 300 + 0.001, 200 if k % 2 else 429)
        tally.sent_late(k / 300, k / 300 + 0.01)
    tally.cpu_seconds = 0.95
    row = {"loop": "open", "clients": None, "rate": 200.0, "batch": 1, **tally.figures(1)}
    about = {"url": "u", "model": "m", "server": {"name": None, "version": None}, "host": "h", "load_average": None}
    text = describe_load({**about, "same_machine": False, "results": [row]})
    assert "0.95 of a core" in text and "10.00 ms late" in text and "refused in 1.00 ms" in text
