"""The fast forward pass against transformers' own modules."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nano_helpers import SCREEN, screenshot, small_config, webp, write_demonstrations
from transformers import AutoProcessor
from transformers import Qwen2_5_VLForConditionalGeneration as Network

from arpo_replica.actions.coordinates import Frame
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.models.nano import data
from arpo_replica.models.nano.model import IMAGE_MEAN, IMAGE_STD, new_model, write_folder
from arpo_replica.models.nano.network import multimodal_hidden
from arpo_replica.models.nano.tokenizer import build_tokenizer, choose_vocabulary
from arpo_replica.models.nano.train import orthogonal
from arpo_replica.policy.prompt import build_messages

pytestmark = pytest.mark.cpu_env


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model folder with fresh weights."""
    config = small_config()
    tokenizer = build_tokenizer(choose_vocabulary([], 113, 640, "English"))
    out = tmp_path_factory.mktemp("model")
    write_folder(new_model(config, tokenizer, 113), tokenizer, config.policy, out)
    return out


@pytest.fixture(scope="module")
def batch(folder, tmp_path_factory):
    """Three conversations of different length, their processor inputs and the screenshots."""
    config = small_config()
    processor = AutoProcessor.from_pretrained(folder)
    demonstrations, _ = data.read_demonstrations(write_demonstrations(tmp_path_factory.mktemp("demos"), 3))
    demonstrations[0].steps.pop()
    shots = data.Screenshots(Frame.of(config.policy, SCREEN))
    conversations = [
        conversation
        for demonstration in demonstrations
        for conversation in data.make_conversations(demonstration, processor.tokenizer, config.policy, shots)
    ]
    return processor, demonstrations, conversations, shots


def inputs_of(processor, demonstration):
    """What transformers makes of the same episode."""
    from PIL import Image

    replies = [step.text for step in demonstration.steps]
    messages = build_messages(demonstration.record.instruction, replies[:-1], PolicyConfig(max_images=3))
    messages.append({"role": "assistant", "content": [{"type": "text", "text": replies[-1]}]})
    images = [Image.open(demonstration.directory / step.screenshot) for step in demonstration.steps]
    text = processor.apply_chat_template(messages, tokenize=False)
    return processor(text=[text], images=images, return_tensors="pt")


def test_logits_positions_and_pixels_are_those_of_transformers(folder, batch):
    processor, demonstrations, conversations, shots = batch
    model = Network.from_pretrained(folder, dtype=torch.float32)
    made = data.make_batch(conversations, shots)
    patches = (made.patches.float() / 255 - IMAGE_MEAN) / IMAGE_STD
    with torch.no_grad():
        hidden = multimodal_hidden(model, made.ids, made.positions, patches, shots.grid)
        first = 0
        for row, (demonstration, conversation) in enumerate(zip(demonstrations, conversations, strict=True)):
            inputs = inputs_of(processor, demonstration)
            assert inputs.input_ids[0].tolist() == conversation.ids
            own = patches[first : first + len(conversation.screenshots)].reshape(-1, 3, 1, 14, 14)
            first += len(conversation.screenshots)
            same = own.expand(-1, 3, 2, 14, 14).reshape(inputs.pixel_values.shape)
            assert torch.allclose(same, inputs.pixel_values, atol=1e-5)
            positions, _ = model.model.get_rope_index(
                inputs.input_ids, inputs.mm_token_type_ids, inputs.image_grid_thw
            )
            assert torch.equal(positions[:, 0], conversation.positions)
            expected = model(**inputs).logits[0]
            got = hidden[row, : len(conversation.ids)] @ model.lm_head.weight.T
            assert expected.std() > 0.5
            assert torch.allclose(got, expected, atol=1e-4)


def test_the_loss_is_on_replies_alone(batch):
    processor, demonstrations, conversations, _ = batch
    for demonstration, conversation in zip(demonstrations, conversations, strict=True):
        learned = [token for token, own in zip(conversation.ids, conversation.learned, strict=True) if own]
        expected = "".join(f"{step.text}<|im_end|>" for step in demonstration.steps)
        assert processor.tokenizer.decode(learned, skip_special_tokens=False) == expected
        numbers = [
            processor.tokenizer.decode([token])
            for token, kind in zip(conversation.ids, conversation.kinds, strict=True)
            if kind != data.OTHER
        ]
        point = demonstration.steps[0].text.split("<point>")[1].split("</point>")[0]
        assert "".join(numbers) == point


def test_a_history_longer_than_max_images_is_learned_step_by_step(batch):
    processor, demonstrations, _, shots = batch
    policy = small_config().policy.model_copy(update={"max_images": 1})
    parts = data.make_conversations(demonstrations[1], processor.tokenizer, policy, shots)
    assert [len(part.screenshots) for part in parts] == [1, 1]
    learned = [t for t, own in zip(parts[1].ids, parts[1].learned, strict=True) if own]
    assert processor.tokenizer.decode(learned, skip_special_tokens=True) == demonstrations[1].steps[1].text


def test_turns_that_serving_forgets_are_not_learned_from_either(batch):
    """Supervised prompts are those of serving, with ``max_turns`` too."""
    processor, demonstrations, _, shots = batch
    steps = demonstrations[1].steps
    longer = replace(demonstrations[1], steps=[*steps, steps[0]])
    policy = small_config().policy.model_copy(update={"max_turns": 1, "max_images": 3})
    parts = data.make_conversations(longer, processor.tokenizer, policy, shots)
    assert [len(part.screenshots) for part in parts] == [1, 2, 2]
    served = build_messages(longer.record.instruction, [step.text for step in steps], policy)
    text = processor.apply_chat_template(served, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * (shots.token_grid[0] * shots.token_grid[1]))
    prompt = processor.tokenizer.encode(text, add_special_tokens=False)
    assert parts[2].ids[: len(prompt)] == prompt
    assert not any(parts[2].learned[: len(prompt)])
    assert any(parts[2].learned[len(prompt) :])


def test_a_screenshot_of_another_size_is_resized(tmp_path):
    path = tmp_path / "large.webp"
    path.write_bytes(webp(screenshot((10, 10), (200, 150))))
    frame = Frame.of(small_config().policy.model_copy(update={"max_pixels": 112 * 84}), (200, 150))
    assert frame.image != (200, 150)
    assert data.read_patches(path, frame).shape == (frame.image[0] * frame.image[1] // 196, 588)


def test_muon_makes_updates_orthogonal():
    for shape in ((8, 24), (24, 8)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonal(matrix))
        assert values.min() > 0.6
        assert values.max() < 1.3
