"""Inner products against flattened float64 vectors."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from geffect.core.gram import CHUNK, DEVICE_SLAB, SLAB, Gram, _products, inner_products
from tests.support.properties import assert_gram_close


def _random(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@given(
    numel=st.sampled_from([1, 2, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK * SLAB, CHUNK * SLAB + 17]),
    num_vectors=st.integers(1, 5),
    exponent=st.integers(-8, 8),
)
@settings(max_examples=40, deadline=None)
def test_every_entry_is_the_float64_inner_product(numel: int, num_vectors: int, exponent: int) -> None:
    vectors = [_random((numel,), i, 10.0**exponent) for i in range(num_vectors)]
    stacked = torch.stack(vectors).double()
    assert_gram_close(inner_products(vectors), stacked @ stacked.T, 1e-6)


def test_a_callers_autocast_rounds_nothing() -> None:
    vectors = [_random((5000,), i) for i in range(3)]
    vectors[1] -= 0.999 * vectors[0]
    stacked = torch.stack(vectors).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert_gram_close(inner_products(vectors), stacked @ stacked.T, 1e-6)
        assert torch.is_autocast_enabled("cpu")


def test_a_missing_row_is_zero() -> None:
    gram = inner_products([None, torch.ones(3), None])
    assert gram.tolist() == [[0, 0, 0], [0, 3, 0], [0, 0, 0]]
    assert inner_products([None, None]).tolist() == [[0, 0], [0, 0]]


def test_an_empty_tensor_has_no_length() -> None:
    assert inner_products([torch.empty(0)]).tolist() == [[0.0]]


def test_long_sums_keep_digits_that_float32_loses() -> None:
    vector = torch.full((20_000_000,), 1.1)
    exact = float(vector[0].double()) ** 2 * len(vector)
    assert abs(float(inner_products([vector])) / exact - 1) < 1e-6


def test_float64_rows_are_multiplied_in_float64() -> None:
    a, b = (_random((CHUNK * 3 + 5,), i).double() for i in range(2))
    expected = torch.stack([a, b]) @ torch.stack([a, b]).T
    assert_gram_close(inner_products([a, b]), expected, 1e-14)


def test_bfloat16_rows_are_multiplied_in_float32() -> None:
    vectors = [_random((CHUNK * 2,), i).bfloat16() for i in range(2)]
    stacked = torch.stack(vectors).double()
    assert_gram_close(inner_products(vectors), stacked @ stacked.T, 1e-6)


def test_shapes_and_strides_do_not_matter() -> None:
    a, b = _random((6, 7), 0), _random((7, 6), 1).T
    assert torch.allclose(inner_products([a, b]), inner_products([a.flatten(), b.flatten()]))


def test_parts_sum_to_the_whole() -> None:
    values = {name: inner_products([_random((5,), i), _random((5,), i + 9)]) for i, name in enumerate("abcd")}
    gram = Gram(("x", "y"), values)
    parts = gram.by({"a": "one", "b": "two", "c": "one", "d": "three"})
    assert list(parts) == ["one", "two", "three"]
    assert torch.allclose(sum(parts.values(), torch.zeros(2, 2, dtype=torch.float64)), gram.total(), rtol=1e-15)


@given(coefficients=st.lists(st.floats(-3, 3), min_size=2, max_size=2))
@settings(deadline=None)
def test_combinations_equal_the_gram_of_combined_gradients(coefficients: list[float]) -> None:
    a, b = _random((40,), 0).double(), _random((40,), 1).double()
    mixed = coefficients[0] * a + coefficients[1] * b
    gram = Gram(("a", "b"), {"w": inner_products([a, b])})
    found = gram.combine({"a": {"a": 1.0}, "mixed": dict(zip("ab", coefficients, strict=True))})
    assert torch.allclose(found.values["w"], inner_products([a, mixed]), atol=1e-12)


class Launches(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func.overloadpacket in (torch.ops.aten.detach, torch.ops.aten._unsafe_view))
        return func(*args, **(kwargs or {}))


SHAPES: dict[str, dict[str, Any]] = {
    "1.24B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8.03B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("num_gradients", [2, 4])
def test_a_slab_costs_few_launches_and_slabs_are_few(name: str, num_gradients: int) -> None:
    config = LlamaConfig(vocab_size=128256, num_attention_heads=32, num_key_value_heads=8, **SHAPES[name])
    with torch.device("meta"):
        parameters = list(LlamaForCausalLM(config).parameters())
    with Launches() as launches:
        for parameter in parameters:
            _products([parameter.detach().reshape(-1)] * num_gradients)
    slabs = sum(math.ceil(parameter.numel() * num_gradients / DEVICE_SLAB) for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) > 1e9
    assert launches.count <= 5 * slabs + len(parameters)
    print(f"{name}, {num_gradients} gradients: {launches.count} launches")
