"""The unpadded encoder: the model's own vectors for any lengths, none at all for a model it does not know."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from tunemill.embed import fast_bert
from tunemill.embed.config import EmbedConfig
from tunemill.embed.embedder import Embedder
from tunemill.embed.fast_bert import PackedBert, packed_bert
from tunemill.embed.precision import cosines
from tunemill.embedded import minilm_folder

LENGTHS = [1, 1, 2, 3, 3, 7, 16, 17, 17, 17, 64, 255, 256]


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    """MiniLM in fp32."""
    return SentenceTransformer(str(minilm_folder()), device="cpu").eval()


def texts_of(lengths: list[int]) -> list[list[int]]:
    """Token ids, a text for each length."""
    rng = np.random.default_rng(0)
    return [rng.integers(1000, 30000, length).tolist() for length in lengths]


def by_model(model: Any, ids: list[int]) -> Any:
    """The model's own vector of one text."""
    features = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    with torch.inference_mode():
        return model(features)["sentence_embedding"].float().numpy()[0]


def packed(model: Any, dtype: Any, texts: list[list[int]]) -> np.ndarray:
    """Vectors by the unpadded encoder."""
    found = packed_bert(model, dtype)
    assert found is not None
    with torch.inference_mode():
        return found(texts).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 0.999999), (torch.bfloat16, 0.999)])
def test_vectors_are_the_models_own(model: SentenceTransformer, pooling: str, dtype: Any, bound: float) -> None:
    """Texts of one token up to the longest, several of a length or one, get the vectors of the plain modules."""
    ours = SentenceTransformer(modules=[model[0], Pooling(384, pooling_mode=pooling), Normalize()])  # type: ignore[arg-type]
    texts = texts_of(LENGTHS)
    assert cosines(packed(ours, dtype, texts), np.stack([by_model(ours, ids) for ids in texts])).min() > bound


@pytest.mark.parametrize("name", ["_reorder_linear_weight", "_linear_pointwise"])
def test_without_fused_operators_the_vectors_are_the_same(
    model: SentenceTransformer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch that lacks the private operators, or whose operators refuse, costs speed and nothing else."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("not on this processor")

    texts = texts_of(LENGTHS[:9])
    usual = packed(model, torch.float32, texts)
    monkeypatch.setattr(torch.ops.mkldnn, name, refuse, raising=False)
    assert cosines(packed(model, torch.float32, texts), usual).min() > 0.999999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_does_not_depend_on_what_it_is_packed_with(model: SentenceTransformer, dtype: Any) -> None:
    """On one thread a text of two tokens or more, as every text has with its marks, gives the same bits in any company."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        texts = sorted(texts_of(LENGTHS[2:] * 4), key=len)
        together = packed(model, dtype, texts)
        alone = np.concatenate([packed(model, dtype, [ids]) for ids in texts[::5]])
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(together[::5], alone)


def roberta(modules: list[Any]) -> None:
    """Another architecture with the same parts."""
    modules[0].model = RobertaModel(RobertaConfig(num_hidden_layers=1, hidden_size=384, vocab_size=30522))


def decoder(modules: list[Any]) -> None:
    """Tokens that see only what is before them."""
    modules[0].model = BertModel(BertConfig(num_hidden_layers=1, hidden_size=384, is_decoder=True))


def other_activation(modules: list[Any]) -> None:
    """A feed-forward with another function."""
    modules[0].model = BertModel(BertConfig(num_hidden_layers=1, hidden_size=384, hidden_act="gelu_new"))


def subclass(modules: list[Any]) -> None:
    """Its forward pass may do anything."""
    modules[0].model.__class__ = type("OtherBert", (BertModel,), {})


def adapter(modules: list[Any]) -> None:
    """A linear layer that is more than its weight."""
    modules[0].model.encoder.layer[0].output.dense = type("Adapter", (torch.nn.Linear,), {})(1536, 384)


def dense(modules: list[Any]) -> None:
    """A projection after the pooling."""
    modules.insert(2, Dense(384, 64))


def max_pooling(modules: list[Any]) -> None:
    """Another pooling."""
    modules[1] = Pooling(384, pooling_mode="max")


def without_prompt(modules: list[Any]) -> None:
    """Pooling that leaves the prompt's tokens out."""
    modules[1] = Pooling(384, include_prompt=False)


@pytest.mark.parametrize(
    "change", [roberta, decoder, other_activation, subclass, adapter, dense, max_pooling, without_prompt]
)  # fmt: skip
def test_other_structures_are_left_to_the_model(model: SentenceTransformer, change: Callable[[list[Any]], None]) -> None:
    """Whatever is not exactly this kind of encoder is not taken."""
    modules = [copy.deepcopy(module) for module in model]
    assert isinstance(modules[0], Transformer)
    assert isinstance(packed_bert(modules, torch.float32), PackedBert)
    change(modules)
    assert packed_bert(modules, torch.float32) is None


def test_heads_whose_scores_overflow_take_the_usual_softmax() -> None:
    """Scores of any size give softmax attention, in the heads concerned and in those beside them, bit by bit as alone."""
    qkv = torch.randn(3, 5, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    qkv[1, :, 0, 2] *= 1e3
    qkv[2, :, 0, 0] = -100 * qkv[2, :, 1, 0]
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    wanted = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
    found, alone = torch.empty(3, 5, 4, 8), torch.empty(1, 5, 4, 8)
    fast_bert._attend(qkv, found)
    assert (found - wanted.transpose(1, 2)).abs().max() < 1e-4
    fast_bert._attend(qkv[:1], alone)
    assert torch.equal(found[:1], alone)


def test_a_wrong_encoder_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the unpadded vectors miss the bound, the model itself computes, in bf16 where that holds."""
    monkeypatch.setattr("tunemill.embed.embedder.candidates", lambda config, device: ["bf16", "fp32"])
    monkeypatch.setattr(fast_bert, "_attend", lambda qkv, out: out.copy_(qkv[:, :, 2]))
    embedder = Embedder(EmbedConfig(device="cpu"), sample=["a cat sat on the mat", "the dog ran home", "it rained"])
    tried = embedder.facts["precision_check"]["tried"]
    assert tried["bf16 unpadded"] < 0.999 < tried["bf16"]
    assert embedder.precision == "bf16"
    monkeypatch.setattr(fast_bert, "_attend", None)
    assert np.isfinite(embedder.encode(["a cat"])).all()
