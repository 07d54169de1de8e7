"""Packed rows, text-only logits and a frozen tower give what plain transformers gives."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.cpu_env, pytest.mark.timeout(300)]
pytest.importorskip("verl")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from arpo_replica.training import pixels, qwen_vl  # noqa: E402
from arpo_replica.training.recipe import ATTENTION  # noqa: E402

IMAGE, START, END = 90, 91, 92
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NORMALISATION = pixels.Normalisation(MEAN, STD)
GRIDS = [[(1, 8, 12), (1, 8, 12)], [(1, 16, 20), (1, 4, 4), (1, 8, 12)]]
"""Screenshots of two trajectories, in patches (time, rows, columns)."""
MODULES = {
    "Qwen2VL": "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "Qwen2_5_VL": "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
}


def small_model(name: str, attention: str) -> Any:
    """A model of the class in float32, always the same weights."""
    vision = {"depth": 3, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if name == "Qwen2VL":
        vision |= {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128, "window_size": 112}
        vision |= {"fullatt_block_indexes": [1]}
    config = getattr(transformers, f"{name}Config")(
        text_config={
            **{"vocab_size": 100, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        vision_config=vision,
        image_token_id=IMAGE,
        vision_start_token_id=START,
        vision_end_token_id=END,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def trajectory(index: int) -> SimpleNamespace:
    """Tokens, pixel values and grid of one trajectory."""
    torch.manual_seed(100 + index)
    grid = torch.tensor(GRIDS[index])
    pieces = []
    for t, h, w in GRIDS[index]:
        pieces += [torch.randint(0, 80, (7,)), torch.tensor([START])]
        pieces += [torch.full((t * h * w // 4,), IMAGE), torch.tensor([END])]
    ids = torch.cat([*pieces, torch.randint(0, 80, (5 + index,))])
    raw = torch.randint(0, 256, (int(grid.prod(-1).sum()), 588), dtype=torch.uint8)
    return SimpleNamespace(ids=ids, grid=grid, bytes=raw, pixels=pixels.expand(raw, NORMALISATION))


def positions(model: Any, sample: SimpleNamespace) -> torch.Tensor:
    """(4, tokens): the text's positions and the three of the images."""
    kinds = (sample.ids == IMAGE).int().unsqueeze(0)
    found, _ = model.model.get_rope_index(
        sample.ids.unsqueeze(0), mm_token_type_ids=kinds, image_grid_thw=sample.grid
    )
    return torch.cat([torch.arange(len(sample.ids)).view(1, 1, -1), found]).squeeze(1)


def plain_log_probs(model: Any, sample: SimpleNamespace) -> torch.Tensor:
    """What an unpatched model says of each next token (the last one: of the first)."""
    output = model(
        input_ids=sample.ids.unsqueeze(0),
        pixel_values=sample.pixels,
        image_grid_thw=sample.grid,
        position_ids=positions(model, sample)[1:].unsqueeze(1),
    )
    targets = sample.ids.roll(-1)
    return F.log_softmax(output.logits[0].float(), -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Our functions in place, and everything as before afterwards."""
    for name, module_name in MODULES.items():
        module = importlib.import_module(module_name)
        monkeypatch.setattr(module, "is_flash_attention_requested", module.is_flash_attention_requested)
        for part in ("Model", "ForConditionalGeneration", "Attention"):
            owner = getattr(module, f"{name}{part}")
            monkeypatch.setattr(owner, "forward", owner.forward)
    upstream = qwen_vl.qwen2_vl
    for attribute in ("_get_input_embeds", "forward_with_torch_backend", "_custom_flash_attention_forward"):
        monkeypatch.setattr(upstream, attribute, getattr(upstream, attribute))
    monkeypatch.setattr(upstream, "_flash_use_top_left_mask", False, raising=False)
    monkeypatch.setattr(qwen_vl, "SETTINGS", qwen_vl.Settings(normalisation=NORMALISATION))
    yield


def put_in_place(model: Any) -> None:
    """As verl does it after the external module was imported."""
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    upstream = qwen_vl.qwen2_vl
    upstream._get_input_embeds = qwen_vl.input_embeds
    upstream.forward_with_torch_backend = qwen_vl.text_log_probs
    upstream._custom_flash_attention_forward = qwen_vl.packed_attention
    transformers.AttentionInterface.register(ATTENTION, qwen_vl.vision_attention)
    qwen_vl._tell_segments_to_vision()
    apply_monkey_patch(
        model=model, use_remove_padding=True, use_fused_kernels=True, fused_kernels_backend="torch"
    )


def packed_log_probs(model: Any, samples: list[SimpleNamespace], values: str) -> torch.Tensor:
    """Both trajectories in one row, as verl's engine passes them."""
    ids = torch.cat([sample.ids for sample in samples])
    targets = torch.cat([sample.ids.roll(-1) for sample in samples])
    output = model(
        input_ids=ids.unsqueeze(0),
        attention_mask=None,
        position_ids=torch.cat([positions(model, sample) for sample in samples], -1).unsqueeze(1),
        pixel_values=torch.cat([getattr(sample, values) for sample in samples]),
        image_grid_thw=torch.cat([sample.grid for sample in samples]),
        temperature=1.0,
        shift_labels=targets.unsqueeze(0),
        return_dict=True,
        use_cache=False,
    )
    return output.log_probs[0]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("values", ["pixels", "bytes"])
def test_packed_rows_equal_single_trajectories(patched: None, name: str, values: str) -> None:
    samples = [trajectory(0), trajectory(1)]
    plain = small_model(name, "sdpa")
    expected = torch.cat([plain_log_probs(plain, sample) for sample in samples])
    text = torch.cat([sample.ids.roll(-1) for sample in samples]) != IMAGE
    expected[text].sum().backward()
    gradients = {key: weight.grad for key, weight in plain.named_parameters()}

    transformers.AttentionInterface.register(ATTENTION, qwen_vl.vision_attention)
    model = small_model(name, ATTENTION)
    model.load_state_dict(plain.state_dict())
    put_in_place(model)
    found = packed_log_probs(model, samples, values)
    torch.testing.assert_close(found[text], expected[text], rtol=1e-4, atol=1e-5)
    assert not found[~text].any()
    found.sum().backward()
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[key], rtol=1e-3, atol=1e-4, msg=key)


def test_frozen_tower_runs_once_per_screenshot(patched: None) -> None:
    samples = [trajectory(0), trajectory(1)]
    transformers.AttentionInterface.register(ATTENTION, qwen_vl.vision_attention)
    model = small_model("Qwen2VL", ATTENTION)
    put_in_place(model)
    expected = packed_log_probs(model, samples, "bytes").detach()
    qwen_vl.SETTINGS.cache = qwen_vl.FeatureCache(2**24)
    model.model.visual.requires_grad_(False)
    seen: list[int] = []
    model.model.visual.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    first = packed_log_probs(model, samples, "bytes")
    again = packed_log_probs(model, [samples[1]], "bytes")
    assert seen == [sum(len(sample.bytes) for sample in samples)], "each screenshot passed the tower once"
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(again, expected[len(samples[0].ids) :], rtol=1e-4, atol=1e-5)
    again.sum().backward()
    assert all(weight.grad is None for weight in model.model.visual.parameters())
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.grad is not None


@pytest.mark.parametrize("name", MODULES)
def test_features_of_vllm_take_the_place_of_the_tower(
    patched: None, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Same log-probabilities and gradients; a screenshot whose features are not there passes the tower."""
    caplog.set_level("INFO")
    samples = [trajectory(0), trajectory(1)]
    transformers.AttentionInterface.register(ATTENTION, qwen_vl.vision_attention)
    model = small_model(name, ATTENTION)
    put_in_place(model)
    model.model.visual.requires_grad_(False)
    qwen_vl.SETTINGS.cache = qwen_vl.FeatureCache(2**24)
    expected = packed_log_probs(model, samples, "bytes")
    expected.sum().backward()
    gradients = {key: w.grad for key, w in model.named_parameters() if w.requires_grad}
    model.zero_grad()

    folder = qwen_vl.SETTINGS.folder = pixels.FeatureFolder(tmp_path / "features")
    shots = [shot for s in samples for shot in s.bytes.split(s.grid.prod(-1).tolist())]
    grids = torch.cat([sample.grid for sample in samples])
    for number, (shot, grid) in enumerate(zip(shots[1:], grids[1:], strict=True), start=1):
        folder.save(f"shot{number}", qwen_vl.run_tower(model.model.visual, shot, grid.unsqueeze(0)).detach())
        folder.link(shot, f"shot{number}")
    folder.link(shots[0], "not_made")
    qwen_vl.SETTINGS.cache = qwen_vl.FeatureCache(2**24)
    seen: list[int] = []
    model.model.visual.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    found = packed_log_probs(model, samples, "bytes")
    assert seen == [len(shots[0])] and "of 4 screenshots come from vLLM, not of 1" in caplog.text
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    for key, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(key).grad, gradient, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["Qwen2VL"])
def test_compiled_layers_compute_the_same(patched: None, name: str) -> None:
    """Forwards and backwards, by the same graphs for every layer and every length. What is captured runs as
    it is: inductor takes minutes here."""
    samples = [trajectory(0), trajectory(1)]
    transformers.AttentionInterface.register(ATTENTION, qwen_vl.vision_attention)
    model = small_model(name, ATTENTION)
    put_in_place(model)
    expected = [packed_log_probs(model, some, "bytes") for some in (samples, samples[:1], samples[1:])]
    expected[0].sum().backward()
    gradients = {key: weight.grad for key, weight in model.named_parameters()}
    model.zero_grad()

    torch.compiler.reset()
    counters.clear()
    qwen_vl.compile_layers(model, backend="aot_eager")
    found = [packed_log_probs(model, some, "bytes") for some in (samples, samples[:1], samples[1:])]
    assert 0 < counters["stats"]["unique_graphs"] <= 10
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found[0].sum().backward()
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[key], rtol=1e-3, atol=1e-4, msg=key)


def test_features_last_until_the_second_update_after_them(tmp_path: Path) -> None:
    folder = pixels.FeatureFolder(tmp_path)
    values = torch.randint(0, 256, (8, 588), dtype=torch.uint8)
    (key,) = pixels.fingerprints(values, [8])
    folder.forget()
    folder.save("name", torch.ones(2, 3))
    folder.link(values, "name")
    for kept in (True, False):
        folder.forget()
        assert (folder.read(key) is not None) == kept
    assert not list(tmp_path.iterdir())


def test_some_layers_keep_their_activations() -> None:
    model = small_model("Qwen2VL", "sdpa")
    qwen_vl.keep_some_activations(model, 0.5)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert [layer.gradient_checkpointing for layer in model.model.language_model.layers] == [True, False]
    assert all(block.gradient_checkpointing for block in model.model.visual.blocks)


def test_cache_keeps_to_its_limit_and_tells_screenshots_apart() -> None:
    cache = qwen_vl.FeatureCache(limit_bytes=100)
    for number in range(5):
        cache.put(str(number), torch.zeros(10))
    assert list(cache.features) == ["3", "4"] and cache.size == 80
    values = torch.randint(0, 256, (20, 588), dtype=torch.uint8)
    other = values.clone()
    other[7, 3] += 1
    swapped = values[torch.tensor([1, 0, *range(2, 20)])]
    keys = {pixels.fingerprints(v, [20])[0] for v in (values, other, swapped)}
    assert len(keys) == 3
    assert pixels.fingerprints(torch.cat([values, other]), [20, 20]) == [
        pixels.fingerprints(values, [20])[0],
        pixels.fingerprints(other, [20])[0],
    ]


def test_bytes_give_what_the_processor_gives() -> None:
    from PIL import Image

    processor = transformers.Qwen2VLImageProcessor(image_mean=list(MEAN), image_std=list(STD))
    images = [Image.effect_noise((420, 300), 90).convert("RGB"), Image.new("RGB", (200, 80), (1, 128, 255))]
    limits = {"min_pixels": 3136, "max_pixels": 80_000}
    expected = processor(images=images, return_tensors="pt", **limits)
    original = processor.preprocess
    pixels.carry_bytes(processor, NORMALISATION)
    found = processor(images=[images], return_tensors="pt", **limits)
    values = found["pixel_values"]
    assert values.nbytes * 8 == expected["pixel_values"].nbytes
    torch.testing.assert_close(
        pixels.expand(values, NORMALISATION), expected["pixel_values"], rtol=0, atol=1e-6
    )
    assert found["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()

    fast = processor.preprocess
    calls: list[int] = []
    fast.original = lambda batch, **options: calls.append(len(batch)) or original(batch, **options)
    processor(images=images, return_tensors="pt", **limits)
    assert not calls, "known images are not processed again"
    images[0] = images[0].copy()
    processor(images=images, return_tensors="pt", **limits)
    assert calls == [1]
    images.clear()
    assert len(fast._known) <= 1, "what nobody holds any more is forgotten"

    pixels.carry_bytes(processor, NORMALISATION)
    assert processor.preprocess is fast
    other = transformers.Qwen2VLImageProcessor(image_mean=[0.1, 0.1, 0.1], image_std=list(STD))
    with pytest.raises(RuntimeError, match="compact_pixels"):
        pixels.carry_bytes(other, NORMALISATION)
