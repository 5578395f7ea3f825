"""Room that many share: what each is sure of, whoever takes the rest."""

from __future__ import annotations

from collectors.shares import Bound, Room


def taken(room: Room, container: str, wanted: int) -> int:
    return sum(room.take(container) for _ in range(wanted))


def test_one_has_its_share_and_no_more() -> None:
    assert taken(Room(Bound(100, share=20, sure=2)), "a", 50) == 20


def test_however_many_take_their_share_the_others_have_their_first_few() -> None:
    room = Room(Bound(100, share=20, sure=2))
    greedy = [taken(room, str(number), 50) for number in range(10)]
    assert greedy == [20, 20, 16, 2, 2, 2, 2, 2, 2, 2]
    assert [taken(room, name, 5) for name in "abc"] == [2, 2, 2]


def test_in_all_no_more_is_taken_than_the_bound() -> None:
    room = Room(Bound(100, share=20, sure=2))
    assert sum(taken(room, str(number), 50) for number in range(1000)) == 100


def test_what_is_given_back_can_be_taken_again() -> None:
    room = Room(Bound(100, share=3, sure=2))
    for _ in range(200):
        assert taken(room, "a", 5) == 3
        for _ in range(3):
            room.give_back("a")
