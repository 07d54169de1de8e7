"""The trainer's attention on a GPU: is it right, and how fast is each of torch's kernels?

    python benchmarks/gpu_attention.py --out result.json

For the shapes of a training (one trajectory of 28,600 and of 42,500 tokens, one screenshot of 10,764 patches,
the windows of Qwen2.5-VL): relative error of output and gradients against float32, then milliseconds and
TFLOP/s of a forward and of a forward with backward pass, median of 5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from arpo_replica.training import pixels, qwen_vl  # noqa: E402

# name: lengths of the segments, heads, size of a head, causal
CASES = {
    "2b_language": ([28_600], 12, 128, True),
    "7b_language": ([42_500], 28, 128, True),
    "2b_vision_10_screenshots": ([10_764] * 10, 16, 80, False),
    "7b_vision_windows": (([64] * 161 + [40] * 10 + [20]) * 10, 16, 80, False),
}
CHECKED = {
    "causal": ([700, 300, 41], 4, 128, True),
    "windows": ([64, 64, 40, 20, 64], 4, 80, False),
}


def draw(lengths: list[int], heads: int, size: int) -> list[torch.Tensor]:
    """Random queries, keys and values."""
    shape = (sum(lengths), heads, size)
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]


def exact(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], *, causal: bool
) -> torch.Tensor:
    """Attention in float32, segment by segment."""
    parts = []
    for rows in zip(*(x.float().split(lengths) for x in (q, k, v)), strict=True):
        queries, keys, values = (x.transpose(0, 1) for x in rows)
        scores = queries @ keys.transpose(1, 2) / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
        parts.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(parts)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def check(kernel: str) -> dict[str, list[float]]:
    """Errors of the output and of the three gradients."""
    qwen_vl.SETTINGS.kernel = kernel
    result = {}
    for name, (lengths, heads, size, causal) in CHECKED.items():
        inputs = draw(lengths, heads, size)
        weight = torch.randn(inputs[0].shape, device="cuda")
        outputs = []
        for compute in (qwen_vl.attend, exact):
            for x in inputs:
                x.grad = None
            output = compute(inputs[0], inputs[1], inputs[2], lengths, causal=causal)
            (output.float() * weight).sum().backward()
            outputs.append([output.detach(), *(x.grad.clone() for x in inputs if x.grad is not None)])
        result[name] = [distance(a, b) for a, b in zip(*outputs, strict=True)]
    return result


def median_ms(run: Callable[[], Any]) -> float:
    """Median milliseconds of five runs after two."""
    times = []
    for index in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if index >= 2:
            times.append(start.elapsed_time(end))
    return float(statistics.median(times))


def measure(kernel: str, case: str) -> dict[str, float]:
    """Times of one case."""
    qwen_vl.SETTINGS.kernel = kernel
    lengths, heads, size, causal = CASES[case]
    inputs = draw(lengths, heads, size)
    weight = torch.randn_like(inputs[0])

    def forward() -> torch.Tensor:
        return qwen_vl.attend(inputs[0], inputs[1], inputs[2], lengths, causal=causal)

    def both() -> None:
        forward().backward(weight)

    with torch.no_grad():
        alone = median_ms(forward)
    together = median_ms(both)
    flops = 4.0 * heads * size * sum(length**2 for length in lengths) * (0.5 if causal else 1.0)
    return {
        "forward_ms": round(alone, 3),
        "forward_backward_ms": round(together, 3),
        "forward_tflops": round(flops / alone / 1e9, 1),
        "forward_backward_tflops": round(3.5 * flops / together / 1e9, 1),
    }


def check_pixels() -> bool:
    """Bytes expanded on the GPU give what they give on the CPU; the fingerprints agree with themselves."""
    normalisation = pixels.Normalisation((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    values = torch.randint(0, 256, (10_764, 588), dtype=torch.uint8)
    there = pixels.expand(values.cuda(), normalisation).cpu()
    same = torch.allclose(there, pixels.expand(values, normalisation), rtol=0, atol=1e-6)
    keys = pixels.fingerprints(values.cuda(), [10_764])
    return same and keys == pixels.fingerprints(values, [10_764])


def main() -> None:
    """Check and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "pixels": check_pixels(),
    }
    for kernel in ("flash", "cudnn"):
        try:
            result[kernel] = {"errors": check(kernel)}
            for case in CASES:
                if kernel == "flash" or case != "7b_vision_windows":
                    result[kernel][case] = measure(kernel, case)
        except RuntimeError as error:
            result.setdefault(kernel, {})["failed"] = str(error)[:500]
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    result["matmul_tflops"] = round(2 * 8192**3 / median_ms(lambda: F.linear(a, b)) / 1e9, 1)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
