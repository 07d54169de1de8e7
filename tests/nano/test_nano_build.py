"""Building the nano policy: reproducible, loadable, refused with one sentence when it cannot work."""

import json
import subprocess
import sys

import pytest
import torch
from nano_helpers import screenshot, small_config, write_demonstrations
from transformers import AutoProcessor
from transformers import Qwen2_5_VLForConditionalGeneration as Network

from arpo_replica.base.errors import UserError
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.models.nano.build import build_nano_model
from arpo_replica.policy.manifest import read_manifest
from arpo_replica.policy.prompt import build_messages

pytestmark = pytest.mark.cpu_env


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    return write_demonstrations(tmp_path_factory.mktemp("demos"), 24)


@pytest.fixture(scope="module")
def built(demonstrations, tmp_path_factory):
    out = tmp_path_factory.mktemp("nano") / "model"
    # The text of two page types is learned in some thirty updates, in seconds.
    return out, build_nano_model(small_config(epochs=12, learning_rate=0.01), demonstrations, out)


def test_the_same_demonstrations_and_seed_give_the_same_bits(demonstrations, tmp_path):
    config = small_config(epochs=1)
    first = build_nano_model(config, demonstrations, tmp_path / "first")
    second = build_nano_model(config, demonstrations, tmp_path / "second")
    other = build_nano_model(small_config(epochs=1, seed=1), demonstrations, tmp_path / "other")
    assert first.weights == second.weights
    assert first.recipe == second.recipe
    assert first.sha256 != other.sha256


def test_the_manifest_says_what_the_model_is(built):
    out, manifest = built
    assert read_manifest(out / "manifest.json", verify=True) == manifest
    assert manifest.model_path(out / "manifest.json") == out.resolve()
    assert manifest.recipe["demonstrations"] == 24
    assert manifest.recipe["weights"] > 100_000
    assert manifest.recipe["final_loss"]["text"] < 2
    assert set(manifest.versions) == {"arpo-replica", "torch", "transformers", "tokenizers"}


def test_transformers_loads_it_and_it_answers_in_the_format(built):
    out, _ = built
    processor = AutoProcessor.from_pretrained(out)
    model = Network.from_pretrained(out, dtype=torch.float32)
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    messages = build_messages("Click button ONE.", [], PolicyConfig(max_images=3))
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[screenshot((40, 30))], return_tensors="pt")
    assert int((inputs.input_ids == model.config.image_token_id).sum()) == 4 * 3
    answer = model.generate(**inputs, max_new_tokens=24, do_sample=False, temperature=None, top_k=None)
    reply = answer[0, inputs.input_ids.shape[1] :].tolist()
    assert reply[-1] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = processor.tokenizer.decode(reply, skip_special_tokens=True)
    assert text.startswith("Thought: ")
    assert "\nAction: " in text


def test_verls_conversation_grows_to_the_same_tokens(built):
    from PIL import Image

    wiring = pytest.importorskip("verl.utils.tokenizer.continuous_token_wiring")
    out, _ = built
    processor = AutoProcessor.from_pretrained(out)
    builder = wiring.create_continuous_token_builder(
        processor.tokenizer, hf_model_type="qwen2_5_vl", processor=processor
    )
    replies = ["Thought: Click ONE.\nAction: click(point='<point>8 9</point>')"]
    images: list[Image.Image] = [screenshot((40, 30)), screenshot(None)]
    first = build_messages("Click button ONE.", [], PolicyConfig(max_images=3))
    second = build_messages("Click button ONE.", replies, PolicyConfig(max_images=3))
    ids = builder.build_initial_tokens(first, images=images[:1])
    sampled = processor.tokenizer.encode(f"{replies[0]}<|im_end|>", add_special_tokens=False)
    ids = builder.merge_assistant_tokens(ids, sampled).token_ids
    # As verl's agent loop calls it: the new screenshot stands in the message itself.
    grown = [*second[:-1], {"role": "user", "content": [{"type": "image", "image": images[1]}]}]
    ids = builder.merge_context_tokens(second[:-1], grown, ids).token_ids
    text = processor.apply_chat_template(second, tokenize=False, add_generation_prompt=True)
    assert ids == processor(text=[text], images=images, return_tensors="pt").input_ids[0].tolist()


@pytest.mark.parametrize(
    ("nano", "said"),
    [({"hidden_size": 100}, "nano.hidden_size is 100"), ({"vocabulary": 500}, "nano.vocabulary is 500")],
)
def test_a_config_that_cannot_work_is_refused(demonstrations, tmp_path, nano, said):
    with pytest.raises(UserError, match=said):
        build_nano_model(small_config(**nano), demonstrations, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_failed_demonstrations_are_not_learned(tmp_path):
    failed = write_demonstrations(tmp_path / "demos", 2, outcome="failure")
    with pytest.raises(UserError, match="no successful demonstration"):
        build_nano_model(small_config(), failed, tmp_path / "model")


def test_the_module_ends_with_status_2_on_a_users_mistake(tmp_path):
    config = json.dumps(small_config().model_dump(mode="json"))
    command = [
        sys.executable,
        "-m",
        "arpo_replica.models.nano.build",
        config,
        str(tmp_path),
        str(tmp_path / "model"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("run record_demonstrations first.")
