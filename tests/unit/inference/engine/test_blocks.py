"""Without these, one sequence could read another's keys and values, or blocks could be lost."""

import random

import pytest

from glmtune.inference.engine.blocks import BlockPool, block_names


def names_of(*token_ids: int, namespace: str = "") -> list[bytes]:
    """Of blocks of two tokens."""
    return block_names(namespace, token_ids, 2)[1:]


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(6, 2)


def test_a_name_stands_for_all_tokens_before_and_the_namespace():
    names = names_of(1, 2, 3, 4, 5)
    assert len(names) == 2
    assert names_of(1, 2, 3, 4, 6) == names
    assert names_of(1, 2, 9, 4)[0] == names[0]
    others = [names_of(9, 2, 3, 4)[1], names_of(3, 4)[0], names_of(1, 2, 4, 3)[1]]
    others += names_of(1, 2, 3, 4, namespace="a")
    assert len({*names, *others}) == 7


def test_block_0_is_never_given_out(pool):
    assert pool.num_free == 5
    assert sorted(pool.take(5)) == [1, 2, 3, 4, 5]
    assert pool.num_free == 0


def test_a_known_beginning_is_found_while_in_use_and_after(pool):
    names = names_of(1, 2, 3, 4, 5, 6)
    blocks = pool.take(3)
    for block, name in zip(blocks[:2], names, strict=False):
        pool.publish(block, name)
    assert pool.find(names) == blocks[:2]
    pool.free(blocks)
    assert pool.num_free == 5
    assert pool.find(names) == blocks[:2]
    assert pool.find(names[1:]) == blocks[1:2]
    assert pool.find([names[2], *names]) == []


def test_a_shared_block_is_free_when_nobody_has_it(pool):
    [block] = pool.take(1)
    pool.publish(block, b"a")
    pool.share([block])
    pool.free([block])
    assert pool.num_free == 4
    assert pool.num_users(block) == 1
    pool.free([block])
    assert pool.num_free == 5
    pool.share(pool.find([b"a"]))
    assert pool.num_free == 4
    assert block not in pool.take(4)


def test_known_blocks_are_taken_last_the_longest_freed_first_and_ends_before_beginnings(pool):
    first, second = pool.take(2), pool.take(2)
    for block in (*first, *second):
        pool.publish(block, bytes([block]))
    pool.free(second)
    pool.free(first)
    [unknown] = pool.take(1)
    assert unknown not in (*first, *second)
    assert [pool.take(1)[0] for _ in range(4)] == [*reversed(second), *reversed(first)]
    assert pool.find([bytes([second[0]])]) == []


def test_of_two_blocks_of_the_same_contents_the_first_is_known(pool):
    first, second = pool.take(2)
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    pool.free([first, second])
    assert pool.find([b"a"]) == [first]
    pool.take(4)
    assert pool.find([b"a"]) == [first]
    pool.take(1)
    assert pool.find([b"a"]) == []


def test_a_forgotten_block_is_not_found(pool):
    first, second = pool.take(2)
    pool.publish(first, b"a")
    pool.publish(second, b"b")
    pool.forget(first)
    pool.free([first, second])
    pool.forget(second)
    assert pool.find([b"a"]) == pool.find([b"b"]) == []
    assert pool.num_free == 5
    assert sorted(pool.take(5)) == [1, 2, 3, 4, 5]


def test_no_block_is_lost_or_given_out_twice():
    chance = random.Random(0)
    pool, owners = BlockPool(20, 2), []
    for _ in range(3000):
        if chance.random() < 0.5 and owners:
            pool.free(owners.pop(chance.randrange(len(owners))))
        else:
            names = names_of(*(chance.randrange(2) for _ in range(chance.randrange(1, 14))))
            shared = pool.find(names)
            pool.share(shared)
            count = len(names) - len(shared) + 1
            if pool.num_free < count:
                pool.free(shared)
                continue
            taken = pool.take(count)
            in_use = {block for blocks in owners for block in blocks}
            assert not in_use & {*taken}
            owners.append([*shared, *taken])
            for block, name in zip(owners[-1], names, strict=False):
                pool.publish(block, name)
        in_use = {block for blocks in owners for block in blocks}
        assert pool.num_free == 19 - len(in_use)
    assert len(owners) > 1
