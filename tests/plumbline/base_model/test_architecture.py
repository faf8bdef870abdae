"""Which class a folder's config.json calls for, and where the language model is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from plumbline.base_model.architecture import skeleton
from plumbline.base_model.as_quantized import with_sequential_experts
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.inputs import require_readable
from plumbline.base_model.language import hidden_states_network, language_part
from plumbline.base_model.load import load_model
from plumbline.base_model.streamed import StreamedModel
from tests.helpers.multimodal import CONFIGS, multimodal_model

INNER = "model.language_model"
PARTS = dict.fromkeys(CONFIGS, INNER) | {"llama4": "language_model"}


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("base")
    multimodal_model(request.param).save_pretrained(folder)
    return request.param, folder


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_every_part_of_a_multimodal_model_is_loaded_in_all_three_ways(saved: tuple[str, Path]) -> None:
    name, folder = saved
    original = with_sequential_experts(multimodal_model(name))
    whole, streamed = load_model(folder, "cpu"), StreamedModel(folder, "cpu")
    assert type(whole) is type(streamed.model) is type(original)
    expected = with_sequential_experts(original).state_dict()
    assert [n for n, _ in streamed.model.named_modules()] == [n for n, _ in whole.named_modules()]
    assert [n for n, _ in with_sequential_experts(skeleton(folder)).named_modules()] == [
        n for n, _ in whole.named_modules()
    ]
    assert whole.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in whole.state_dict().items())
    if name == "llama4":  # its experts are held in another way layer by layer, which is refused
        return
    with streamed.present(lambda name: True):
        found = streamed.model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_the_language_model_is_run_layer_by_layer_bit_by_bit(saved: tuple[str, Path]) -> None:
    name, folder = saved
    model = load_model(folder, "cpu")
    assert language_part(model) == PARTS[name]
    network = hidden_states_network(model)
    assert not any(module is model.get_output_embeddings() for module in network.modules())
    decoder = Decoder(model)
    assert decoder.name == {"llama4": "language_model.model"}.get(name, INNER) + ".layers"
    assert len(decoder.names) == 2  # every tower but Llama 4's has more layers, or more weights, or both
    ids = torch.randint(9, 50, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    start = decoder.start(ids)
    hidden = start.hidden
    for number, call in enumerate(start.calls):
        hidden = decoder.run(number, hidden, call)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    assert torch.equal(decoder.logits(ids, hidden), logits)
    assert torch.equal(model.get_output_embeddings()(decoder.finish(ids, hidden)), logits)
    require_readable(model, "s", ids)
    with pytest.raises(ValueError, match="s has 65 tokens, the model reads at most 64"):
        require_readable(model, "s", [9] * 65)


def test_a_text_model_is_its_own_language_model(built: Any, config: Any) -> None:
    model: PreTrainedModel = built(config)
    assert language_part(model) == ""
    assert hidden_states_network(model) is model.base_model


@pytest.mark.parametrize("architectures", [None, ["SomebodysFineTune"]])
def test_without_a_known_class_no_input_of_the_model_is_dropped(tmp_path: Path, architectures: Any) -> None:
    # Llama 4 and Qwen3.5 have a class for text alone, too, which would leave their vision weights out.
    for name in ("llama4", "qwen3.5"):
        multimodal_model(name).save_pretrained(tmp_path / name)
        edit(tmp_path / name, architectures=architectures)
        assert type(skeleton(tmp_path / name)) is type(multimodal_model(name))


@pytest.mark.parametrize(("named", "dtype"), [("float16", torch.float16), (None, torch.bfloat16)])
def test_the_skeleton_has_the_dtype_that_the_configuration_names(tmp_path: Path, named: str | None, dtype) -> None:
    multimodal_model("llava").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(config | ({"dtype": named} if named else {})))
    assert {parameter.dtype for parameter in skeleton(tmp_path).parameters()} == {dtype}


def test_a_text_model_without_architectures_is_loaded(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                 num_attention_heads=2)).save_pretrained(tmp_path)  # fmt: skip
    edit(tmp_path, architectures=None)
    assert isinstance(load_model(tmp_path, "cpu"), LlamaForCausalLM)


def test_a_model_that_continues_no_text_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    sizes = {"vocab_size": 8, "d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path)
    for use in (skeleton, load_model, StreamedModel):
        with pytest.raises(
            ValueError, match=r"describes T5ForConditionalGeneration, from which transformers builds no"
        ):
            use(tmp_path)


def test_an_unknown_model_type_names_the_folder(tmp_path: Path) -> None:
    multimodal_model("llava").save_pretrained(tmp_path)
    edit(tmp_path, model_type="unheard_of")
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: transformers cannot read config\.json: .*unheard_of"):
        skeleton(tmp_path)
