"""Deep Hash Embedding against a loop over nodes, its encodings, its size, and batch-norm without stored statistics."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from baselines.decoders import hash_encoding
from baselines.dhe import DHE
from c2f.budget import Budget
from c2f.errors import BudgetError, ConfigError
from c2f.method import build

PRIME = 2**31 - 1


def made(budget, num_nodes=60, seed=1, **params):
    params = DHE.Params(**{"dim": 8, **params})
    return build(DHE, Budget.parse(budget), SimpleNamespace(num_nodes=num_nodes), params, seed)


def naive_table(arrays, num_nodes, buckets):
    """The table from one hash, one node and one unit at a time, in Python's floats."""
    rows = [
        [2 * ((a * node + b) % PRIME % buckets) / (buckets - 1) - 1 for a, b in arrays["hash_constants"].tolist()]
        for node in range(num_nodes)
    ]
    layers = zip([arrays["first"], *arrays["deeper"]], arrays["norm"], strict=True)
    for weights, (scales, shifts) in layers:
        columns = []
        for unit, scale, shift in zip(weights.T.tolist(), scales.tolist(), shifts.tolist(), strict=True):
            sums = [sum(w * x for w, x in zip(unit, row, strict=True)) for row in rows]
            mean = sum(sums) / num_nodes
            variance = sum((value - mean) ** 2 for value in sums) / num_nodes
            normed = [(value - mean) / math.sqrt(variance + 1e-5) * scale + shift for value in sums]
            columns.append([x * math.tanh(math.log1p(math.exp(x))) for x in normed])  # mish
        rows = list(zip(*columns, strict=True))
    return np.array(rows) @ arrays["output"] + arrays["bias"]


@pytest.mark.parametrize("hidden_layers", [2, 4])
def test_the_table_equals_a_loop_over_nodes_and_units(hidden_layers):
    method = made("numbers-600", hidden_layers=hidden_layers)
    expected = naive_table(method.export(), 60, 1_000_000)
    np.testing.assert_allclose(method.table().detach(), expected, atol=2e-6)
    np.testing.assert_allclose(DHE.decode(method.export(), method.params), expected, atol=2e-6)


# dim 8, two hidden layers of 10 units, 4 * 10 hashes: first and second layer, scales and shifts, output with its bias;
# in bytes also 40 pairs of uint32 constants and N.
NUMBERS = 40 * 10 + 10 * 10 + 2 * 2 * 10 + (10 + 1) * 8
BYTES = 4 * NUMBERS + 40 * 8 + 4


@pytest.mark.parametrize(("kind", "size"), [("numbers", NUMBERS), ("bytes", BYTES)])
def test_the_width_is_the_largest_that_fits(kind, size):
    for amount, width in ((size, 10), (size - 1, 9)):
        method = made(f"{kind}-{amount}")
        assert method.details == {"hidden_width": width, "num_hashes": 4 * width}
    arrays = made(f"{kind}-{size}").export()
    assert sum(arrays[name].size for name in DHE.counted) == NUMBERS
    assert sum(array.nbytes for array in arrays.values()) == BYTES


def test_a_wide_network_takes_all_hashes_and_a_narrow_one_four_for_each_unit():
    assert made("numbers-40000").details["num_hashes"] == 256
    assert made("numbers-40000", num_hashes=32).details["num_hashes"] == 32
    least = 4 * 1 + 1 * 1 + 2 * 2 * 1 + (1 + 1) * 8
    with pytest.raises(BudgetError) as error:
        made(f"numbers-{least - 1}")
    assert error.value.needs == least
    assert made(f"numbers-{least}").details == {"hidden_width": 1, "num_hashes": 4}


@pytest.mark.parametrize("encoding", ["uniform", "gaussian"])
def test_the_vectors_start_with_the_variance_of_the_backbone(encoding):
    table = made("numbers-9000", num_nodes=2000, encoding=encoding).table().detach()
    assert float(table.std()) == pytest.approx(0.1, rel=1e-4)


def constants(num_hashes):
    return np.random.default_rng(0).integers(1, PRIME, size=(num_hashes, 2))


def test_uniform_encodings_lie_evenly_between_minus_one_and_one():
    encoding = hash_encoding(5000, constants(64), DHE.Params())
    assert encoding.min() >= -1
    assert encoding.max() <= 1
    assert encoding.mean() == pytest.approx(0, abs=0.01)
    assert encoding.var() == pytest.approx(1 / 3, rel=0.02)


def test_gaussian_encodings_are_box_mullers_of_pairs_of_hashes():
    encoding = hash_encoding(5000, constants(64), DHE.Params(encoding="gaussian"))
    assert encoding.mean() == pytest.approx(0, abs=0.01)
    assert encoding.var() == pytest.approx(1, rel=0.02)
    assert (abs(encoding) < 1.96).mean() == pytest.approx(0.95, abs=0.005)
    u, v = (((int(a) * 7 + int(b)) % PRIME % 1_000_000 + 1) / 1_000_000 for a, b in constants(2))
    expected = [math.sqrt(-2 * math.log(u)) * turn(2 * math.pi * v) for turn in (math.cos, math.sin)]
    np.testing.assert_allclose(hash_encoding(8, constants(2), DHE.Params(encoding="gaussian"))[7], expected, rtol=1e-5)


def test_encodings_tell_nodes_apart_whose_single_hashes_do_not():
    encoding = hash_encoding(1000, constants(64), DHE.Params(num_buckets=10))
    assert all(len(np.unique(column)) <= 10 for column in encoding.T)
    assert len(np.unique(encoding, axis=0)) == 1000


def test_batch_norm_serves_as_it_trains_and_stores_no_statistics():
    method = made("numbers-600")
    trained = method.train().table().detach()
    np.testing.assert_array_equal(method.eval().table().detach(), trained)
    assert set(method.state_dict()) == set(DHE.counted)
    assert set(method.export()) == {*DHE.counted, "hash_constants", "num_nodes"}


def test_an_odd_number_of_hashes_is_refused():
    with pytest.raises(ConfigError, match="num_hashes = 7, but it must be even"):
        DHE.Params(num_hashes=7)
