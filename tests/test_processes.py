"""What processes say to each other, and how they join; what they do together is tested in runs and sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore, Store

from mhicl_fast.meeting import meet
from mhicl_fast.presets import preset
from mhicl_fast.processes import ALONE, DistributedError, Processes, in_short, launched
from mhicl_fast.train import briefing
from mhicl_fast.train.briefing import brief, hear_briefing
from mhicl_fast.train.machine import machine


@pytest.fixture
def pair() -> tuple[Processes, Processes]:
    store = HashStore()
    return Processes(0, 2, 0, 2, "0", store=store), Processes(1, 2, 1, 2, "0", store=store)


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with launched() as processes:
        assert processes is ALONE
        assert processes.leads
    processes.tell({"nobody": "listens"})


def test_another_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(RuntimeWarning, match="WORLD_SIZE=2 is set, but not by torchrun"), launched() as processes:
        assert processes is ALONE


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_strange_timeouts_are_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds"), launched(timeout):
        pass


def test_words_are_heard_in_order(pair: tuple[Processes, Processes]) -> None:
    leader, follower = pair
    assert (leader.leads, follower.leads) == (True, False)
    for word in ({"first": 1}, {"second": [2.5, "σ"]}):
        leader.tell(word)
    leader.dismiss("there is nothing to do")
    assert [follower.hear() for _ in range(3)] == [
        {"first": 1},
        {"second": [2.5, "σ"]},
        {"go home": "there is nothing to do"},
    ]


def test_a_store_that_is_gone_is_a_lost_leader(pair: tuple[Processes, Processes]) -> None:
    class Gone(HashStore):
        def check(self, keys: list[str]) -> bool:
            raise torch.distributed.DistNetworkError("[/src/TCPStore.cpp:12] Broken pipe\nException raised from …")

    with pytest.raises(
        DistributedError, match=r"^process 1 of 2 .* waited for its leader, which is gone: Broken pipe$"
    ):
        replace(pair[1], store=Gone()).hear()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[/x/pair.cc:553] Connection closed by peer [127.0.0.1]:9. This is typically caused by a remote worker",
            "Connection closed by peer [127.0.0.1]:9",
        ),
        (
            "[/__w/x/pair.cc:537] Read error [127.0.0.1]:63724: Connection reset by peer",
            "Read error [127.0.0.1]:63724: Connection reset by peer",
        ),
        (
            "[../gloo/unbound_buffer.cc:81] Timed out waiting 3000ms for recv operation to complete\nmore",
            "Timed out waiting 3000ms for recv operation to complete",
        ),
        ("Gloo connectFullMesh failed with [../tcp/pair.cc:144] no error", "Gloo connectFullMesh failed with no error"),
        ("Failed to recv, got 0 bytes. Connection was likely closed. Did it crash?", "Failed to recv, got 0 bytes"),
        ("Broken pipe", "Broken pipe"),
    ],
)
def test_reasons_are_said_in_short(text: str, said: str) -> None:
    assert in_short(RuntimeError(text)) == said


def meet_all(store: Store, size: int, counts: Sequence[int], timeout: float = 10) -> list[tuple[Store, int]]:
    """What each of the processes gets, which torchrun tells these numbers of restarts."""
    with ThreadPoolExecutor(size) as threads:
        found = [threads.submit(meet, store, rank, size, counts[rank], timeout) for rank in range(size)]
        return [future.result() for future in found]


def test_processes_meet_those_of_their_own_attempt() -> None:
    """Whatever others have left in the store, and though each node counts restarts by itself."""
    shared = HashStore()
    first = meet_all(shared, 3, (0, 0, 0))
    assert [restarts for _, restarts in first] == [0, 0, 0]
    first[0][0].set("word", "of the first attempt")
    with pytest.raises(TimeoutError, match="process 0, the leader, did not come"):
        meet(shared, 2, 3, 0, 0.1)  # and leaves its name
    again = meet_all(shared, 3, (0, 0, 1))
    assert [restarts for _, restarts in again] == [1, 1, 1]
    assert not any(store.check(["word"]) for store, _ in again)
    again[0][0].set("word", "of the second attempt")
    assert [store.get("word") for store, _ in again] == [b"of the second attempt"] * 3
    assert [restarts for _, restarts in meet_all(shared, 2, (0, 0))] == [2, 2]
    assert [restarts for _, restarts in meet_all(HashStore(), 2, (0, 4))] == [4, 4]


def test_the_missing_are_named() -> None:
    with pytest.raises(TimeoutError, match="of 12 processes these did not come: 1, 2, 3, 4, 5, 6, 7, 8 and 3 more"):
        meet(HashStore(), 0, 12, 0, 0.1)


def test_the_machine_s_facts_name_the_processes(pair: tuple[Processes, Processes]) -> None:
    assert "processes" not in machine()
    assert machine(processes=pair[0])["processes"] == "2, 2 on this machine; threads are those of each"


def computes_with(monkeypatch: pytest.MonkeyPatch, instructions: str) -> None:
    native = SimpleNamespace(active_isa=lambda: instructions, compiled_isas=lambda: ["portable", "avx2", "avx512"])
    monkeypatch.setattr(briefing, "native", native)


@pytest.mark.parametrize(("leaders", "own", "lower"), [("avx2", "portable", "portable"), ("avx2", "avx512", "avx2")])
def test_processes_that_round_differently_do_not_train_together(
    pair: tuple[Processes, Processes], monkeypatch: pytest.MonkeyPatch, leaders: str, own: str, lower: str
) -> None:
    """Their weights would drift apart."""
    leader, follower = pair
    config, cpu = preset("demo"), torch.device("cpu")
    computes_with(monkeypatch, leaders)
    brief(leader, config, cpu, None)
    assert hear_briefing(follower) == (config, None)
    brief(leader, config, cpu, None)
    computes_with(monkeypatch, own)
    said = f"^process 1 of 2 .* with {own}, its leader with {leaders}, .* set MHICL_ISA={lower} for all"
    with pytest.raises(DistributedError, match=said):
        hear_briefing(follower)
