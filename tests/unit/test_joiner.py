"""Labels, pairs and answers of one request find each other, in whatever order they come."""

from __future__ import annotations

import msgspec
import numpy as np

from monitoring.join import Answer, Joiner, Truth


def test_a_label_finds_its_request_and_pair_in_any_order() -> None:
    for order in ("rpl", "rlp", "lrp", "lpr", "plr", "prl"):
        joiner, found = Joiner(), []
        for step in order:
            if step == "r":
                joiner.request(7, "int8", 0)
            elif step == "p":
                found.append(joiner.pair(7, "int8", cls=1, ref_cls=0, at_ns=0))
            else:
                found += joiner.label(7, 0, 0).pairs
        (labelled,) = [item for item in found if item is not None]
        assert (labelled.teacher_right, labelled.candidate_right) == (True, False)
        assert joiner.counts.joined == {"int8": 1}


def test_an_answer_with_its_label_comes_once_whichever_was_first() -> None:
    for first in ("label", "request"):
        joiner = Joiner()
        if first == "label":
            assert joiner.label(7, 0, 0).answer is None
            found = joiner.request(7, "int8", 0, cls=1, prob=0.9)
        else:
            assert joiner.request(7, "int8", 0, cls=1, prob=0.9) is None
            found = joiner.label(7, 0, 0).answer
        assert found == Answer("int8", cls=1, label=0, prob=0.9)
        assert joiner.label(7, 0, 0).answer is None
        assert joiner.request(7, "int8", 0, cls=1, prob=0.9) is None


def test_answers_that_are_in_no_statistic_are_joined_and_not_told() -> None:
    joiner = Joiner()
    joiner.request(7, "int8", 0)
    assert joiner.label(7, 0, 0).answer is None
    assert joiner.counts.joined == {"int8": 1}


def test_the_delay_of_labels_is_counted() -> None:
    joiner = Joiner()
    for key, delay_s in enumerate((1, 60, 61, 3000, 80_000, 86_401)):
        joiner.request(key, "int8", 0, cls=0, prob=0.9)
        joiner.label(key, 0, delay_s * 10**9)
    assert joiner.counts.delays == {"int8": [2, 1, 1, 0, 1, 1]}
    assert joiner.counts.answers == {"int8": 6}


def test_one_request_is_labelled_once() -> None:
    joiner = Joiner()
    joiner.pair(7, "int8", 1, 0, 0)
    joiner.request(7, "int8", 0)
    assert len(joiner.label(7, 0, 0).pairs) == 1
    assert joiner.label(7, 1, 0) == joiner.label(7, 0, 0) == Truth()
    assert joiner.pair(7, "int8", 1, 0, 0) is None
    assert joiner.counts.duplicate == 2


def test_unknown_ids_are_kept_then_counted() -> None:
    joiner = Joiner(ttl_ns=100)
    joiner.label(1, 0, at_ns=0)
    joiner.request(2, "int8", at_ns=99)
    assert joiner.counts.unknown == 0
    joiner.request(3, "int8", at_ns=101)
    assert (joiner.counts.unknown, len(joiner)) == (1, 2)


def test_memory_is_bounded() -> None:
    joiner = Joiner(capacity=10)
    for key in range(100):
        joiner.request(key, "int8", key)
        assert len(joiner) <= 10
    assert len(joiner) + joiner.counts.evicted == 100


def test_prompt_labels_all_count_and_late_ones_by_a_sample_of_the_whole_day() -> None:
    joiner, keys = Joiner(capacity=1000), np.random.default_rng(2).integers(0, 2**63, 20_000).tolist()
    for at, key in enumerate(keys):
        joiner.request(key, "int8", at, cls=0, prob=0.9)
    kept = joiner.state()

    def found(began: int, ended: int) -> int:
        again = Joiner(capacity=1000)
        again.load(kept)
        return sum(again.label(key, 0, 20_000).answer is not None for key in keys[began:ended])

    assert found(19_500, 20_000) == 500
    late = [found(began, began + 390) for began in range(0, 19_500, 390)]
    assert 200 <= sum(late) <= 500
    assert all(sum(late[at : at + 10]) >= 20 for at in range(0, 50, 10))


def test_a_label_brings_back_the_epoch_of_its_request() -> None:
    joiner = Joiner()
    joiner.request(7, "int8", 0, cls=0, prob=0.9, epoch=3)
    joiner.pair(7, "int8", 1, 0, 0, epoch=3)
    truth = joiner.label(7, 0, 0)
    assert truth.answer is not None
    assert (truth.answer.epoch, truth.pairs[0].epoch) == (3, 3)


def test_it_can_be_stored() -> None:
    joiner, again = Joiner(), Joiner()
    joiner.request(1 << 63, "int8", 5)
    joiner.pair(1 << 63, "int8", 1, 0, 6)
    again.load(msgspec.msgpack.decode(msgspec.msgpack.encode(joiner.state())))
    assert len(again.label(1 << 63, 0, 7).pairs) == 1
